/* KVM_SET_MP_STATE: without a local APIC here only RUNNABLE; with one each state of x86, AP_RESET_HOLD included, which GET tells again; SIPI_RECEIVED becomes INIT_RECEIVED with a SIPI. */
#include "fact.h"

NO_GUEST;

static int set(int cpu, uint32_t state)
{
	struct kvm_mp_state mp = { state };
	return ioctl(cpu, KVM_SET_MP_STATE, &mp);
}

static uint32_t get(int cpu)
{
	struct kvm_mp_state mp = { ~0u };
	EXPECT_EQ(ioctl(cpu, KVM_GET_MP_STATE, &mp), 0);
	return mp.mp_state;
}

FACT(.mode = REAL)
{
	for (uint32_t state = 1; state < 20; state++)
		EXPECT_ERROR(set(m->cpu, state), EINVAL);
	EXPECT_EQ(set(m->cpu, KVM_MP_STATE_RUNNABLE), 0);
	if (m->rounds > 50)
		return;

	int vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	EXPECT_EQ(ioctl(vm, KVM_CREATE_IRQCHIP, 0), 0);
	int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	int second = ioctl(vm, KVM_CREATE_VCPU, 1);
	EXPECT_EQ(get(cpu), KVM_MP_STATE_RUNNABLE);
	EXPECT_EQ(get(second), KVM_MP_STATE_UNINITIALIZED);
	for (uint32_t state = 0; state < 20; state++) {
		if (state == KVM_MP_STATE_SIPI_RECEIVED)
			continue;
		if (state <= KVM_MP_STATE_HALTED || state == KVM_MP_STATE_AP_RESET_HOLD) {
			EXPECT_EQ(set(second, state), 0);
			EXPECT_EQ(get(second), state);
		} else
			EXPECT_ERROR(set(second, state), EINVAL);
	}
	close(second);
	close(cpu);
	close(vm);
}
