/* Split irqchip: the handler of a level-triggered interrupt moves its pin to another CPU and then ends the interrupt: the client gets the EOI (KVM_EXIT_IOAPIC_EOI). One that is triggered by an edge is not the client's. */
#include "fact.h"

GUEST(64,
	"mov $0x80f, %ecx\n mov $0x1ff, %eax\n xor %edx, %edx\n wrmsr\n"
	"sti\n"
	"guest_wait: hlt\n jmp guest_wait\n"
	"guest_interrupt: out %al, $0x10\n mov $0x80b, %ecx\n xor %eax, %eax\n xor %edx, %edx\n wrmsr\n out %al, $0x11\n"
	"iretq\n");

enum { VECTOR = 0x55, LEVEL = 0xc000 };

static void route(struct machine *m, uint32_t destination, uint32_t trigger)
{
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entry; } routing = {
		.head = { .nr = 1 },
		.entry = { .gsi = 4, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000 | destination << 12, .data = VECTOR | trigger } },
	};
	EXPECT_EQ(ioctl(m->vm, KVM_SET_GSI_ROUTING, &routing), 0);
}

static void deliver(struct machine *m, uint32_t trigger)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = VECTOR | trigger };
	EXPECT_EQ(ioctl(m->vm, KVM_SIGNAL_MSI, &msi), 1);
}

GUEST_FACT(.mode = LONG, .irqchip = SPLIT, .cpuid = true)
{
	struct kvm_sregs sregs = get_sregs(m);

	sregs.apic_base |= 0xc00;
	set_sregs(m, sregs);
	EXPECT_EQ(set_msr(m, 0x80f, 0x1ff), 1);
	set_gate(m, VECTOR, AT(interrupt), 0);
	for (uint32_t moved = 0; moved < 2; moved++) {
		route(m, 0, LEVEL);
		deliver(m, LEVEL);
		run_to_port(m, 0x10);
		route(m, moved, LEVEL);
		run_to(m, KVM_EXIT_IOAPIC_EOI);
		EXPECT_EQ(m->run->eoi.vector, VECTOR);
		run_to_port(m, 0x11);
	}
	route(m, 0, 0);
	deliver(m, 0);
	run_to_port(m, 0x10);
	run_to_port(m, 0x11);
}
