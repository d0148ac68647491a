/* RING3_PARAMETERS=cpu=...: the processor that /dev/kvm itself reports, and that VMs have, whatever the host's vendor. */
#include "test.h"

#define HWCR 0xc0010015
#define FEATURE_CONTROL 0x3a

static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[128];
} cpuid;

static bool listed(int kvm, uint32_t msr)
{
	static struct {
		struct kvm_msr_list head;
		uint32_t indices[512];
	} list;
	list.head.nmsrs = 512;
	CHECK(ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &list.head) == 0);
	for (uint32_t i = 0; i < list.head.nmsrs; i++)
		if (list.indices[i] == msr)
			return true;
	return false;
}

static void of_vendor(const char *parameters, bool intel)
{
	/* xor eax, eax; cpuid; out 0x10, al */
	static const char code[] = "\x66\x31\xc0\x0f\xa2\xe6\x10";
	struct machine m;
	struct kvm_regs regs;

	if (getenv("RING3_REAL_KVM"))
		SKIP("not under ring3 exec");
	CHECK(setenv("RING3_PARAMETERS", parameters, 1) == 0);
	create(&m, code, sizeof code - 1, false);
	cpuid.head.nent = 128;
	CHECK(ioctl(m.kvm, KVM_GET_SUPPORTED_CPUID, &cpuid.head) == 0);
	CHECK(memcmp(&cpuid.entries[0].ebx, intel ? "Genu" : "Auth", 4) == 0);
	CHECK(listed(m.kvm, HWCR) != intel && listed(m.kvm, FEATURE_CONTROL) == intel);
	CHECK(ioctl(m.vcpu, KVM_SET_CPUID2, &cpuid.head) == 0);
	CHECK(run(&m) == 0 && m.run->exit_reason == KVM_EXIT_IO);
	CHECK(ioctl(m.vcpu, KVM_GET_REGS, &regs) == 0);
	CHECK(memcmp(&regs.rbx, intel ? "Genu" : "Auth", 4) == 0);
	destroy(&m);
}

static void intel(void) { of_vendor("pml=Y,cpu=intel", true); }
static void amd(void) { of_vendor("cpu=amd", false); }

static const struct test tests[] = { { "intel", intel }, { "amd", amd } };
MAIN(tests)
