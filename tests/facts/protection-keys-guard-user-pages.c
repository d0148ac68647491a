/* With CR4.PKE a user page's key decides over data accesses: PKRU's AD forbids all, WD writes (the supervisor's with CR0.WP), and bit 5 of the error code says so. WRPKRU takes effect at once. */
#include "fact.h"

enum { KEY = 5, ALIAS = 0x200000, PKE = 1 << 22, WP = 1 << 16, PKU = 1 << 3 };

GUEST(64,
	"guest_write: wrpkru\n"
	"guest_store: mov %rbx, (%rsi)\n"
	"out %al, $0x10\n"
	"guest_read: wrpkru\n"
	"guest_load: mov (%rsi), %rbx\n"
	"out %al, $0x11\n"
	"guest_tell: rdpkru\n"
	"out %al, $0x12\n");

/* Offset of PKRU in KVM_GET_XSAVE; 0: the host has no protection keys. */
static uint32_t pkru_offset(struct machine *m)
{
	static struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid;
	uint32_t offset = 0;
	bool has = false;

	cpuid.head.nent = 256;
	EXPECT_EQ(ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
	for (uint32_t i = 0; i < cpuid.head.nent; i++) {
		has |= cpuid.entries[i].function == 7 && cpuid.entries[i].index == 0 && cpuid.entries[i].ecx & PKU;
		if (cpuid.entries[i].function == 0xd && cpuid.entries[i].index == 9)
			offset = cpuid.entries[i].ebx;
	}
	return has ? offset : 0;
}

static void at(struct machine *m, uint64_t rip, uint32_t rights)
{
	struct kvm_regs regs = get_regs(m);

	regs.rip = rip;
	regs.rsp = STACK;
	regs.rax = rights << 2 * KEY;
	regs.rcx = regs.rdx = 0;
	regs.rbx = 0x1122334455667788 + rights;
	regs.rsi = ALIAS + DATA;
	set_regs(m, regs);
}

static void refused(struct machine *m, uint64_t rip, uint64_t code)
{
	run_to_vector(m, 14);
	EXPECT_EQ(peek64(m, get_regs(m).rsp), code);
	EXPECT_EQ(returns_to(m, true), rip);
	EXPECT_EQ(get_sregs(m).cr2, ALIAS + DATA);
}

FACT(.mode = LONG, .cpuid = true)
{
	static struct kvm_xsave xsave;
	uint32_t offset = pkru_offset(m), pkru;

	if (offset == 0) {
		EXPECT(host() != RING3);
		return;
	}
	put64(m, PD + 8, 0x87 | (uint64_t)KEY << 59);
	for (int wp = 0; wp < 2; wp++) {
		struct kvm_sregs sregs = get_sregs(m);
		sregs.cr4 |= PKE;
		sregs.cr0 = wp ? sregs.cr0 | WP : sregs.cr0 & ~WP;
		set_sregs(m, sregs);
		for (uint32_t rights = 0; rights < 4; rights++) {
			put64(m, DATA, 7);
			at(m, AT(write), rights);
			if (rights & 1 || (rights & 2 && wp)) {
				refused(m, AT(store), 0x23);
				EXPECT_EQ(peek64(m, DATA), 7);
			} else {
				run_to_port(m, 0x10);
				EXPECT_EQ(peek64(m, DATA), 0x1122334455667788 + rights);
			}
			at(m, AT(read), rights);
			if (rights & 1)
				refused(m, AT(load), 0x21);
			else
				run_to_port(m, 0x11);
			at(m, AT(tell), 0);
			run_to_port(m, 0x12);
			EXPECT_EQ(get_regs(m).rax, rights << 2 * KEY);
			EXPECT_EQ(ioctl(m->cpu, KVM_GET_XSAVE, &xsave), 0);
			memcpy(&pkru, (char *)&xsave + offset, sizeof pkru);
			EXPECT_EQ(pkru, rights << 2 * KEY);
		}
	}
}
