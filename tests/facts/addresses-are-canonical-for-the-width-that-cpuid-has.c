/*
 * With LA57 in CPUID, addresses that are loaded (LGDT, LIDT, LLDT, LTR, WRMSR of bases and entry points, INVPCID) must be canonical for 57 bits, also while 4-level paging uses 48. Without it, for 48.
 * Linux: so since 6.13; before, MSRs were checked for the paging of the moment.
 */
#include "fact.h"

GUEST(64,
	"guest_wrmsr: wrmsr\n out %al, $0x10\n"
	"guest_lgdt: lgdt (%rbx)\n out %al, $0x10\n"
	"guest_lidt: lidt (%rbx)\n out %al, $0x10\n"
	"guest_lldt: lldt %dx\n out %al, $0x10\n"
	"guest_ltr: ltr %dx\n out %al, $0x10\n"
	"guest_invpcid: invpcid (%rbx), %rcx\n out %al, $0x10\n");

enum { TABLE = DATA, LDT = 0x48, OTHER_TASK = 0x58 };
#define WIDE_ADDRESS 0x00fe000000000000ull
#define WILD_ADDRESS 0x0200000000000000ull

/* False: this KVM has no LA57. */
static bool give_cpuid(struct machine *m, bool la57)
{
	static struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid;
	bool has = false;

	cpuid.head.nent = 256;
	EXPECT_EQ(ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
	for (uint32_t i = 0; i < cpuid.head.nent; i++) {
		if (cpuid.entries[i].function != 7 || cpuid.entries[i].index != 0)
			continue;
		has = cpuid.entries[i].ecx >> 16 & 1;
		if (!la57)
			cpuid.entries[i].ecx &= ~(1u << 16);
	}
	EXPECT_EQ(ioctl(m->cpu, KVM_SET_CPUID2, &cpuid), 0);
	return has;
}

static void try(struct machine *m, uint64_t rip, uint64_t rcx, uint64_t value, bool works)
{
	struct kvm_regs regs = get_regs(m);

	regs.rip = rip;
	regs.rax = (uint32_t)value;
	regs.rdx = value >> 32;
	regs.rcx = rcx;
	regs.rbx = TABLE;
	regs.rsp = STACK;
	regs.rflags = 2;
	set_regs(m, regs);
	if (works)
		run_to_port(m, 0x10);
	else {
		run_to_vector(m, 13);
		EXPECT_EQ(returns_to(m, true), rip);
	}
}

static void try_all(struct machine *m, uint64_t address, bool works)
{
	static const uint32_t msrs[] = { 0x175, 0x176, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102 };
	struct kvm_sregs sregs = get_sregs(m);

	for (size_t i = 0; i < sizeof msrs / sizeof *msrs; i++) {
		uint64_t value;
		/* The client and, where it is no alias, the guest's own way. AMD's SYSENTER takes whatever comes. */
		if (msrs[i] == 0x175 || msrs[i] == 0x176)
			continue;
		try(m, AT(wrmsr), msrs[i], address, works);
		EXPECT_EQ(get_msr(m, msrs[i], &value), 1);
		EXPECT_EQ(value == address, works);
		set_sregs(m, sregs);
	}
	memset(m->memory + TABLE, 0xff, 2);
	put64(m, TABLE + 2, address);
	try(m, AT(lgdt), 0, 0, works);
	EXPECT_EQ(get_sregs(m).gdt.base == address, works);
	set_sregs(m, sregs);
	try(m, AT(lidt), 0, 0, works);
	EXPECT_EQ(get_sregs(m).idt.base == address, works);
	set_sregs(m, sregs);
	for (int selector = LDT; selector <= OTHER_TASK; selector += OTHER_TASK - LDT) {
		uint64_t type = selector == LDT ? 0x82 : 0x89, low = 0x67 | (address & 0xffffff) << 16 | type << 40 | (address >> 24 & 0xff) << 56;
		put64(m, GDT + (uint64_t)selector, low);
		put64(m, GDT + (uint64_t)selector + 8, address >> 32);
		try(m, selector == LDT ? AT(lldt) : AT(ltr), 0, (uint64_t)selector << 32, works);
		struct kvm_sregs now = get_sregs(m);
		EXPECT_EQ((selector == LDT ? now.ldt.base : now.tr.base) == address, works);
		set_sregs(m, sregs);
	}
	put64(m, TABLE, 0);
	put64(m, TABLE + 8, address);
	try(m, AT(invpcid), 0, 0, works);
}

FACT_ON(RING3 | HARDWARE, "needs kvm_intel or kvm_amd: KVM's emulator alone does not have this", .mode = LONG)
{
	struct kvm_sregs sregs;

	if (!give_cpuid(m, true)) {
		fprintf(stderr, "this KVM has no LA57\n");
		exit(4);
	}
	sregs = get_sregs(m);
	sregs.gdt.limit = OTHER_TASK + 15;
	set_sregs(m, sregs);
	try_all(m, WIDE_ADDRESS, true);
	try_all(m, WILD_ADDRESS, false);
	/* CPUID cannot change after the first entry. */
	if (m->rounds > 20)
		return;
	WITH (other, .mode = LONG) {
		(void)give_cpuid(other, false);
		sregs = get_sregs(other);
		sregs.gdt.limit = OTHER_TASK + 15;
		set_sregs(other, sregs);
		try_all(other, WIDE_ADDRESS, host() != RING3);
	}
}
