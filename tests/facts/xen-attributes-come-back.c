/* The GET of each Xen attribute, of VM and vCPU, gives what the last SET gave, also where that takes something back (KVM_XEN_INVALID_GPA, KVM_XEN_INVALID_GFN, port 0); nothing of the SET before it is left. */
#include "fact.h"

NO_GUEST;

#ifndef KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG
#define KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG 0x5
#endif
#ifndef KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG
#define KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG (1 << 6)
#endif
enum { NEEDED = KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_RUNSTATE | KVM_XEN_HVM_CONFIG_EVTCHN_SEND };
static const uint64_t NONE = ~0ull;

static void enable_xen(struct machine *m)
{
	int has = ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM);
	struct kvm_xen_hvm_config config = { .flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL };

	if ((has & NEEDED) != NEEDED) {
		fprintf(stderr, "this KVM has no Xen (0x%x)\n", (unsigned)has);
		exit(4);
	}
	EXPECT_EQ(ioctl(m->vm, KVM_XEN_HVM_CONFIG, &config), 0);
}

static void vm_attribute(struct machine *m, struct kvm_xen_hvm_attr attr, size_t bytes)
{
	struct kvm_xen_hvm_attr get = { .type = attr.type };

	EXPECT_EQ(ioctl(m->vm, KVM_XEN_HVM_SET_ATTR, &attr), 0);
	EXPECT_EQ(ioctl(m->vm, KVM_XEN_HVM_GET_ATTR, &get), 0);
	if (memcmp(&get.u, &attr.u, bytes) != 0) {
		fprintf(stderr, "VM attribute %u: 0x%llx instead of 0x%llx\n", attr.type, get.u.pad[0], attr.u.pad[0]);
		exit(1);
	}
}

static void vcpu_attribute(struct machine *m, struct kvm_xen_vcpu_attr attr, size_t bytes)
{
	struct kvm_xen_vcpu_attr get = { .type = attr.type };

	EXPECT_EQ(ioctl(m->cpu, KVM_XEN_VCPU_SET_ATTR, &attr), 0);
	EXPECT_EQ(ioctl(m->cpu, KVM_XEN_VCPU_GET_ATTR, &get), 0);
	if (memcmp(&get.u, &attr.u, bytes) != 0) {
		fprintf(stderr, "vCPU attribute %u: 0x%llx instead of 0x%llx\n", attr.type, get.u.pad[0], attr.u.pad[0]);
		exit(1);
	}
}
#define VM_IS(TYPE, field, value) vm_attribute(m, (struct kvm_xen_hvm_attr){ .type = KVM_XEN_ATTR_TYPE_##TYPE, .u.field = value }, sizeof(((struct kvm_xen_hvm_attr *)0)->u.field))
#define VCPU_IS(TYPE, field, ...) vcpu_attribute(m, (struct kvm_xen_vcpu_attr){ .type = KVM_XEN_VCPU_ATTR_TYPE_##TYPE, .u.field = __VA_ARGS__ }, sizeof(((struct kvm_xen_vcpu_attr *)0)->u.field))

static void check(struct machine *m, uint64_t n, bool any)
{
	VM_IS(LONG_MODE, long_mode, n & 1);
	VM_IS(SHARED_INFO, shared_info.gfn, any ? 0x10 + n % 16 : NONE);
	VM_IS(UPCALL_VECTOR, vector, any ? (uint8_t)(0x10 + n % 0xe0) : 0);
	VM_IS(XEN_VERSION, xen_version, any ? (uint32_t)(0x40000 + n % 20) : 0);
	if (ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG)
		VM_IS(RUNSTATE_UPDATE_FLAG, long_mode, n >> 1 & 1);

	VCPU_IS(VCPU_INFO, gpa, any ? 0x20000 + n % 8 * 64 : NONE);
	VCPU_IS(VCPU_TIME_INFO, gpa, any ? 0x21000 + n % 8 * 32 : NONE);
	VCPU_IS(VCPU_ID, vcpu_id, any ? (uint32_t)(n % 1000) : 0);
	VCPU_IS(TIMER, timer, { .port = any ? (uint32_t)(1 + n % 1000) : 0, .priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, .expires_ns = any ? 1000000000000000 + n : 0 });
	VCPU_IS(UPCALL_VECTOR, vector, any ? (uint8_t)(0x20 + n % 0xd0) : 0);
	/* Times add up to that of the last change, which is past. */
	VCPU_IS(RUNSTATE_DATA, runstate, { .state = n % 4, .state_entry_time = 1000 + n % 1000, .time_running = 500, .time_runnable = n % 1000, .time_blocked = 300, .time_offline = 200 });
	if (any)
		VCPU_IS(RUNSTATE_ADDR, gpa, 0x22000 + n % 8 * 64);
}

FACT(.mode = REAL, .irqchip = KERNEL, .prepare = enable_xen)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, .u.gpa = NONE };

	check(m, (uint64_t)m->rounds, true);
	check(m, (uint64_t)m->rounds * 7 + 3, true);
	/* Where there was none there is nothing to read. */
	EXPECT_EQ(ioctl(m->cpu, KVM_XEN_VCPU_SET_ATTR, &attr), 0);
	EXPECT_ERROR(ioctl(m->cpu, KVM_XEN_VCPU_GET_ATTR, &attr), ENOENT);
	check(m, 0, false);
	/* What is refused changes nothing. */
	VM_IS(UPCALL_VECTOR, vector, 0x77);
	struct kvm_xen_hvm_attr vm = { .type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, .u.vector = 0x0f };
	EXPECT_ERROR(ioctl(m->vm, KVM_XEN_HVM_SET_ATTR, &vm), EINVAL);
	EXPECT_EQ(ioctl(m->vm, KVM_XEN_HVM_GET_ATTR, &vm), 0);
	EXPECT_EQ(vm.u.vector, 0x77);
	attr = (struct kvm_xen_vcpu_attr){ .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, .u.runstate = { .state = 1, .state_entry_time = 10, .time_running = 9 } };
	EXPECT_ERROR(ioctl(m->cpu, KVM_XEN_VCPU_SET_ATTR, &attr), EINVAL);
	EXPECT_EQ(ioctl(m->cpu, KVM_XEN_VCPU_GET_ATTR, &attr), 0);
	EXPECT_EQ(attr.u.runstate.state_entry_time, 1000);
}
