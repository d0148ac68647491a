/*
 * Latency of Xen events as an unmodified KVM client and its guest see it: from EVTCHNOP_send on one vCPU until the other's handler has run, and from a
 * write to an eventfd until the handler has run. Prints lines of name, value and unit, separated by tabs.
 *
 * Inside: the port is bound (KVM_XEN_ATTR_TYPE_EVTCHN), the eventfd is an irqfd on a route to the port. Nothing reaches the client.
 * Bounce: what a client has to do without that, as QEMU did it. The hypercall is KVM_EXIT_XEN, the eventfd wakes a thread of the client; with its lock
 * taken it sets the bits in the guest's memory and gets the target out of KVM_RUN by a signal whose handler sets immediate_exit. KVM injects the vector
 * when that thread enters again.
 * Call: as the bounce, but the client has the hypervisor deliver (KVM_XEN_HVM_EVTCHN_SEND) and sends no signal.
 */
#include "../../tests/native/devkvm/test.h"
#include <cpuid.h>
#include <sys/eventfd.h>

/* Each figure is the best of several rounds by its median: on a busy machine a round may have lost a processor to others. */
enum { ROUNDS = 10, EVENTS = 1000, IDLE_EVENTS = 300, HOST_EVENTS = 500, WARM_UP = 200 };
enum { PORT = 5, EVTCHNSTAT_IPI = 5, GSI = 30, VECTOR = 0xf3, FIFO_PRIORITY = 7, FIFO_ATTRIBUTE = 0x8000, TWO_LEVEL = 0xffffffff };
enum how { INSIDE, BOUNCE, CALL };

/* Guest-physical addresses; the programs below know them. */
#define SENDER 0x1000
#define SPINNER 0x1200
#define HALTER 0x1280
#define TWO_LEVEL_HANDLER 0x1300
#define FIFO_HANDLER 0x1380
#define IDT 0x3000
#define GDT 0x5000
#define COUNTER 0x8000
#define START 0x8010
#define ARGUMENT 0x8020
#define PAUSE_TICKS 0x8030
#define SHARED 0x20000
#define TARGET_INFO 0x20040
#define CONTROL 0x21000
#define EVENT_ARRAY 0x22000
#define TIMES 0x40000
#define GUEST_BYTES 0x100000

#define STRING_(x) #x
#define STRING(x) STRING_(x)
#define PROGRAM(name, code) \
	asm(".section .rodata\n.code32\n" #name "_begin:\n" code "\n" #name "_end:\n.code64\n.text\n"); \
	extern const unsigned char name##_begin[], name##_end[]

/* Waits PAUSE_TICKS, takes the time, sends, waits for the handler, stores how long it took; ESI times. VMCALL; the loader makes it AMD's. */
PROGRAM(sender,
	"mov $" STRING(TIMES) ", %edi\n"
	"1: rdtsc; mov %eax, %ebp\n"
	"2: pause; rdtsc; sub %ebp, %eax; cmp " STRING(PAUSE_TICKS) ", %eax; jb 2b\n"
	"mov " STRING(COUNTER) ", %ebp\n"
	"rdtsc; mov %eax, " STRING(START) "\n"
	"mov $32, %eax; mov $4, %ebx; mov $" STRING(ARGUMENT) ", %ecx\n"
	"vmcall\n"
	"3: pause; cmp %ebp, " STRING(COUNTER) "; je 3b\n"
	"rdtsc; sub " STRING(START) ", %eax; mov %eax, (%edi); add $4, %edi\n"
	"dec %esi; jnz 1b\n"
	"out %al, $0x80");
PROGRAM(spinner, "sti; 1: pause; jmp 1b");
PROGRAM(halter, "sti; 1: hlt; jmp 1b");
PROGRAM(two_level,
	"push %eax; movb $0, " STRING(TARGET_INFO) "\n"
	"xor %eax, %eax; xchg %eax, " STRING(TARGET_INFO) "+4\n"
	"lock andl $~0x20, " STRING(SHARED) "+0x800\n"
	"incl " STRING(COUNTER) "; pop %eax; iret");
PROGRAM(fifo,
	"movb $0, " STRING(TARGET_INFO) "\n"
	"lock andl $0, " STRING(CONTROL) "\n"
	"lock andl $0x5ffe0000, " STRING(EVENT_ARRAY) "+20\n"
	"incl " STRING(COUNTER) "; iret");

struct guest {
	int kvm, vm, vcpu[2], eventfd;
	unsigned char *memory;
	struct kvm_run *run[2];
	pthread_t target, device;
	pthread_mutex_t lock;
	enum how how;
	bool fifo;
	volatile bool stop;
	double tsc_khz;
};

static struct kvm_run *target_run;

/* As QEMU's handler of SIG_IPI: also a signal that comes just before KVM_RUN ends it. */
static void kicked(int signal)
{
	(void)signal;
	target_run->immediate_exit = 1;
}

#define WORD(g, at) ((uint32_t *)(g->memory + (at)))

static void place(struct guest *g, uint32_t at, const unsigned char *from, const unsigned char *to)
{
	memcpy(g->memory + at, from, (size_t)(to - from));
}

static void enter(struct guest *g, int vcpu, uint32_t rip, uint32_t rsp)
{
	struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .g = 1, .db = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1 };
	struct kvm_regs regs = { .rip = rip, .rsp = rsp, .rflags = 2 };
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_sregs s;

	CHECK(ioctl(g->vcpu[vcpu], KVM_GET_SREGS, &s) == 0);
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.gdt.base = GDT, s.gdt.limit = 23;
	s.idt.base = IDT, s.idt.limit = 0x7ff;
	s.cr0 = 0x11;
	CHECK(ioctl(g->vcpu[vcpu], KVM_SET_SREGS, &s) == 0);
	CHECK(ioctl(g->vcpu[vcpu], KVM_SET_REGS, &regs) == 0);
	CHECK(ioctl(g->vcpu[vcpu], KVM_SET_MP_STATE, &runnable) == 0);
}

static bool is_amd(void)
{
	unsigned int eax, vendor, c, d;
	return __get_cpuid(0, &eax, &vendor, &c, &d) && (vendor == 0x68747541 || vendor == 0x6f677948);
}

static void load(struct guest *g, bool idle)
{
	uint32_t handler = g->fifo ? FIFO_HANDLER : TWO_LEVEL_HANDLER;
	uint64_t gate = (handler & 0xffff) | 8ull << 16 | 0x8e00ull << 32 | (uint64_t)(handler >> 16) << 48;

	place(g, SENDER, sender_begin, sender_end);
	place(g, SPINNER, spinner_begin, spinner_end);
	place(g, HALTER, halter_begin, halter_end);
	place(g, TWO_LEVEL_HANDLER, two_level_begin, two_level_end);
	place(g, FIFO_HANDLER, fifo_begin, fifo_end);
	if (is_amd()) {
		unsigned char *call = memmem(g->memory + SENDER, 0x200, "\x0f\x01\xc1", 3);
		CHECK(call);
		call[2] = 0xd9;
	}
	*WORD(g, ARGUMENT) = PORT;
	memcpy(g->memory + GDT + 8, &(uint64_t){ 0x00cf9b000000ffffull }, 8);
	memcpy(g->memory + GDT + 16, &(uint64_t){ 0x00cf93000000ffffull }, 8);
	memcpy(g->memory + IDT + VECTOR * 8, &gate, 8);
	enter(g, 0, SENDER, 0x7000);
	enter(g, 1, idle ? HALTER : SPINNER, 0x6000);
}

static void vm_attribute(struct guest *g, struct kvm_xen_hvm_attr a) { CHECK(ioctl(g->vm, KVM_XEN_HVM_SET_ATTR, &a) == 0); }

static void fifo_command(struct guest *g, uint32_t command, uint64_t gfn)
{
	struct kvm_xen_hvm_attr a = { .type = FIFO_ATTRIBUTE };
	struct { uint32_t command, pages; uint64_t gfn; } c = { command, 0, gfn };
	memcpy(&a.u, &c, sizeof c);
	vm_attribute(g, a);
}

static void configure(struct guest *g)
{
	struct kvm_xen_hvm_config config = { .flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND, .msr = 0x40000000 };
	struct kvm_xen_vcpu_attr info = { .type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, .u.gpa = TARGET_INFO };

	CHECK(ioctl(g->vm, KVM_XEN_HVM_CONFIG, &config) == 0);
	vm_attribute(g, (struct kvm_xen_hvm_attr){ .type = KVM_XEN_ATTR_TYPE_SHARED_INFO, .u.shared_info.gfn = SHARED >> 12 });
	vm_attribute(g, (struct kvm_xen_hvm_attr){ .type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, .u.vector = VECTOR });
	CHECK(ioctl(g->vcpu[1], KVM_XEN_VCPU_SET_ATTR, &info) == 0);
	if (g->fifo) {
		struct kvm_xen_vcpu_attr control = { .type = FIFO_ATTRIBUTE, .u.gpa = CONTROL };
		fifo_command(g, 1, 0);
		fifo_command(g, 2, EVENT_ARRAY >> 12);
		CHECK(ioctl(g->vcpu[1], KVM_XEN_VCPU_SET_ATTR, &control) == 0);
	}
	if (g->how == INSIDE)
		vm_attribute(g, (struct kvm_xen_hvm_attr){ .type = KVM_XEN_ATTR_TYPE_EVTCHN, .u.evtchn = { .send_port = PORT, .type = EVTCHNSTAT_IPI, .deliver.port = { .port = PORT, .vcpu = 1, .priority = TWO_LEVEL } } });
}

static void open_guest(struct guest *g, bool fifo, enum how how, bool idle)
{
	struct kvm_userspace_memory_region slot = { .memory_size = GUEST_BYTES };
	int bytes;

	memset(g, 0, sizeof *g);
	g->fifo = fifo, g->how = how;
	pthread_mutex_init(&g->lock, NULL);
	g->kvm = open_kvm();
	g->vm = ioctl(g->kvm, KVM_CREATE_VM, 0);
	CHECK(g->vm >= 0 && ioctl(g->vm, KVM_CREATE_IRQCHIP, 0) == 0);
	g->memory = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(g->memory != MAP_FAILED);
	slot.userspace_addr = (uintptr_t)g->memory;
	CHECK(ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0);
	bytes = ioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	for (int i = 0; i < 2; i++) {
		g->vcpu[i] = ioctl(g->vm, KVM_CREATE_VCPU, i);
		CHECK(g->vcpu[i] >= 0);
		g->run[i] = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu[i], 0);
		CHECK(g->run[i] != MAP_FAILED);
	}
	g->tsc_khz = ioctl(g->vcpu[0], KVM_GET_TSC_KHZ, 0);
	CHECK(g->tsc_khz > 0);
	load(g, idle);
	configure(g);
	target_run = g->run[1];
	signal(SIGUSR1, kicked);
}

static cpu_set_t processors;

/* Gives this thread one of the process's processors, where there are two; -1: all of them. */
static void pin(int which)
{
	cpu_set_t one = processors;
	int seen = 0;

	if (which >= 0 && CPU_COUNT(&processors) >= 2)
		for (int i = 0; i < CPU_SETSIZE; i++)
			if (CPU_ISSET(i, &processors) && seen++ != which)
				CPU_CLR(i, &one);
	CHECK(pthread_setaffinity_np(pthread_self(), sizeof one, &one) == 0);
}

static void *run_target(void *argument)
{
	struct guest *g = argument;
	pin(1);
	while (!g->stop) {
		int r = ioctl(g->vcpu[1], KVM_RUN, 0);
		CHECK(r == 0 || errno == EINTR);
		g->run[1]->immediate_exit = 0;
	}
	return NULL;
}

/* The client's own delivery, with its lock held. */
static void deliver(struct guest *g)
{
	if (g->how == CALL) {
		struct kvm_irq_routing_xen_evtchn e = { .port = PORT, .vcpu = 1, .priority = TWO_LEVEL };
		CHECK(ioctl(g->vm, KVM_XEN_HVM_EVTCHN_SEND, &e) >= 0);
		return;
	}
	if (g->fifo) {
		/* Pending and linked; the queue was empty, so the port is its head. */
		__atomic_or_fetch(WORD(g, EVENT_ARRAY + 4 * PORT), 1u << 31 | 1u << 29, __ATOMIC_SEQ_CST);
		__atomic_store_n(WORD(g, CONTROL + 8 + 4 * FIFO_PRIORITY), PORT, __ATOMIC_SEQ_CST);
		__atomic_or_fetch(WORD(g, CONTROL), 1u << FIFO_PRIORITY, __ATOMIC_SEQ_CST);
	} else {
		__atomic_or_fetch(WORD(g, SHARED + 0x800), 1u << PORT, __ATOMIC_SEQ_CST);
		__atomic_or_fetch(WORD(g, TARGET_INFO + 4), 1u, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(g->memory + TARGET_INFO, 1, __ATOMIC_SEQ_CST);
	CHECK(pthread_kill(g->target, SIGUSR1) == 0);
}

static void *run_device(void *argument)
{
	struct guest *g = argument;
	uint64_t count;
	while (read(g->eventfd, &count, sizeof count) == sizeof count && !g->stop) {
		pthread_mutex_lock(&g->lock);
		deliver(g);
		pthread_mutex_unlock(&g->lock);
	}
	return NULL;
}

static void run_sender(struct guest *g, uint32_t events)
{
	struct kvm_regs regs;
	CHECK(ioctl(g->vcpu[0], KVM_GET_REGS, &regs) == 0);
	regs.rip = SENDER, regs.rsi = events;
	CHECK(ioctl(g->vcpu[0], KVM_SET_REGS, &regs) == 0);
	for (;;) {
		CHECK(ioctl(g->vcpu[0], KVM_RUN, 0) == 0);
		if (g->run[0]->exit_reason == KVM_EXIT_IO)
			return;
		CHECK(g->run[0]->exit_reason == KVM_EXIT_XEN);
		pthread_mutex_lock(&g->lock);
		deliver(g);
		g->run[0]->xen.u.hcall.result = 0;
		pthread_mutex_unlock(&g->lock);
	}
}

static void close_guest(struct guest *g)
{
	g->stop = true;
	/* The thread may be about to enter: it is told until it has gone. */
	while (pthread_tryjoin_np(g->target, NULL) != 0) {
		pthread_kill(g->target, SIGUSR1);
		sched_yield();
	}
	for (int i = 0; i < 2; i++)
		close(g->vcpu[i]);
	close(g->vm);
	close(g->kvm);
	munmap(g->memory, GUEST_BYTES);
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void report(const char *abi, const char *name, double value, const char *unit)
{
	printf("%s.%s\t%.2f\t%s\n", abi, name, value, unit);
	fflush(stdout);
}

struct figures {
	double p50, p99;
};

static void round_done(struct figures *best, double *us, int n)
{
	qsort(us, (size_t)n, sizeof *us, ascending);
	if (best->p50 == 0 || us[n / 2] < best->p50)
		*best = (struct figures){ us[n / 2], us[n / 100 * 99] };
}

/* Prints p50 and p99 under NAME_p50_us and NAME_p99_us; returns p50. */
static double percentiles(const char *abi, const char *name, struct figures f)
{
	char line[64];
	snprintf(line, sizeof line, "%s_p50_us", name);
	report(abi, line, f.p50, "us");
	snprintf(line, sizeof line, "%s_p99_us", name);
	report(abi, line, f.p99, "us");
	return f.p50;
}

static double ipi(const char *abi, const char *name, enum how how, bool idle)
{
	static double us[EVENTS];
	struct figures best = { 0, 0 };
	int events = idle ? IDLE_EVENTS : EVENTS;
	struct guest g;

	open_guest(&g, abi[0] == 'f', how, idle);
	/* An idle target gets the time to halt before each event. */
	*WORD((&g), PAUSE_TICKS) = idle ? (uint32_t)(g.tsc_khz / 1000 * 30) : 0;
	CHECK(pthread_create(&g.target, NULL, run_target, &g) == 0);
	pin(0);
	run_sender(&g, WARM_UP);
	for (int round = 0; round < ROUNDS; round++) {
		run_sender(&g, (uint32_t)events);
		for (int i = 0; i < events; i++)
			us[i] = *WORD((&g), TIMES + 4 * i) * 1e3 / g.tsc_khz;
		round_done(&best, us, events);
	}
	pin(-1);
	close_guest(&g);
	return percentiles(abi, name, best);
}

static double from_eventfd(const char *abi, const char *name, enum how how)
{
	static double us[HOST_EVENTS];
	struct kvm_irq_routing *routes = calloc(1, sizeof *routes + sizeof routes->entries[0]);
	struct figures best = { 0, 0 };
	struct guest g;
	uint64_t one = 1;

	open_guest(&g, abi[0] == 'f', how, false);
	g.eventfd = eventfd(0, EFD_CLOEXEC);
	CHECK(routes && g.eventfd >= 0);
	if (how == INSIDE) {
		struct kvm_irqfd irqfd = { .fd = (uint32_t)g.eventfd, .gsi = GSI };
		routes->nr = 1;
		routes->entries[0] = (struct kvm_irq_routing_entry){ .gsi = GSI, .type = KVM_IRQ_ROUTING_XEN_EVTCHN, .u.xen_evtchn = { .port = PORT, .vcpu = 1, .priority = TWO_LEVEL } };
		CHECK(ioctl(g.vm, KVM_SET_GSI_ROUTING, routes) == 0);
		CHECK(ioctl(g.vm, KVM_IRQFD, &irqfd) == 0);
	}
	CHECK(pthread_create(&g.target, NULL, run_target, &g) == 0);
	if (how != INSIDE)
		CHECK(pthread_create(&g.device, NULL, run_device, &g) == 0);
	volatile uint32_t *counter = WORD((&g), COUNTER);
	for (int i = -WARM_UP; i < ROUNDS * HOST_EVENTS; i++) {
		uint32_t before = *counter;
		uint64_t start = now_ns();
		CHECK(write(g.eventfd, &one, sizeof one) == sizeof one);
		while (*counter == before)
			__builtin_ia32_pause();
		if (i >= 0)
			us[i % HOST_EVENTS] = (double)(now_ns() - start) / 1e3;
		if (i % HOST_EVENTS == HOST_EVENTS - 1)
			round_done(&best, us, HOST_EVENTS);
	}
	close_guest(&g);
	if (how != INSIDE) {
		CHECK(write(g.eventfd, &one, sizeof one) == sizeof one);
		pthread_join(g.device, NULL);
	}
	close(g.eventfd);
	free(routes);
	return percentiles(abi, name, best);
}

int main(void)
{
	static const char *const abis[] = { "xen", "fifo" };

	CHECK(sched_getaffinity(0, sizeof processors, &processors) == 0);
	for (int i = 0; i < 2; i++) {
		const char *abi = abis[i];
		double inside = ipi(abi, "ipi", INSIDE, false), bounce = ipi(abi, "ipi_bounce", BOUNCE, false);
		report(abi, "ipi_gain", bounce / inside, "x");
		report(abi, "ipi_call_gain", ipi(abi, "ipi_call", CALL, false) / inside, "x");
		inside = ipi(abi, "ipi_idle", INSIDE, true), bounce = ipi(abi, "ipi_idle_bounce", BOUNCE, true);
		report(abi, "ipi_idle_gain", bounce / inside, "x");
		inside = from_eventfd(abi, "eventfd", INSIDE), bounce = from_eventfd(abi, "eventfd_bounce", BOUNCE);
		report(abi, "eventfd_gain", bounce / inside, "x");
	}
	return 0;
}
