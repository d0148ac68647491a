/*
 * The processor that the client sees: `ring3 exec --cpuid` (RING3_CPUID) shows one with the virtualisation that Ring3 gives, where the
 * host's CPUID has none. The kernel makes CPUID fault (arch_prctl ARCH_SET_CPUID), and signals.c asks here first about a SIGSEGV.
 *
 * Invariants
 *   - Every thread of the client has faulting on: the constructor's does, clone and fork inherit it, exec ends it and the next constructor
 *     begins it again. Only emulate() turns it off, with every signal blocked.
 *   - SIGSEGV is never blocked on such a thread, because a fault then ends the process. BLOCKED_SEGV stands for it in the kernel's masks.
 *   - Threads of the core, and the core's code in any thread, see the host's processor.
 */
#include "ring3.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>

enum { HYGON_EBX = 0x6f677948 }; /* "Hygo" */
enum { GENERAL_PROTECTION = 13, LONGEST_INSTRUCTION = 15, CODE_64 = 0x33 };
enum { ECX_VMX = 1 << 5, ECX_SVM = 1 << 2, EXTENDED = (int)0x80000000, SVM_LEAF = (int)0x8000000A, SVM_REVISION = 1, SVM_ASIDS = 8, SVM_NESTED_PAGING = 1 };

volatile bool r3_cpuid;
static bool shows_svm;

struct registers {
	uint32_t eax, ebx, ecx, edx;
};

static void cpuid(uint32_t leaf, uint32_t subleaf, struct registers *r)
{
	__cpuid_count(leaf, subleaf, r->eax, r->ebx, r->ecx, r->edx);
}

static long set_faulting(bool on)
{
	return raw_call(SYS_arch_prctl, ARCH_SET_CPUID, !on, 0, 0, 0, 0);
}

/* ---- the host's leaves without a system call ---- */

/*
 * A filter that refuses arch_prctl leaves what was there when it came. What differs between processors (the APIC IDs) is that of the one
 * that installed it.
 */
struct leaf {
	uint32_t leaf, subleaf;
	struct registers r;
};

enum { MOST_LEAVES = 1024 };
static struct leaf *frozen; /* sorted as they were read; NULL: there is no such filter */
static unsigned frozen_count;

/* Whether the leaf after this one of the same number says something. */
static bool continues(const struct leaf *l)
{
	switch (l->leaf) {
	case 0x4: case 0x8000001D:
		return l->r.eax & 0x1F; /* the type of cache */
	case 0xB: case 0x1F: case 0x80000026:
		return l->r.ecx & 0xFF00; /* the type of level */
	case 0x7: case 0x14: case 0x17: case 0x18: case 0x1D: case 0x20: case 0x24:
		return l->subleaf < (l->subleaf ? (l - l->subleaf)->r.eax : l->r.eax); /* subleaf 0 says how many */
	case 0xD:
		return l->subleaf < 63;
	case 0xF: case 0x10: case 0x12: case 0x19: case 0x1E: case 0x23: case 0x80000020:
		return l->subleaf < 7;
	default:
		return false;
	}
}

static unsigned read_range(struct leaf *to, unsigned count, uint32_t first)
{
	struct registers head;

	cpuid(first, 0, &head);
	if (head.eax < first || head.eax - first > 0xFF)
		return count;
	for (uint32_t leaf = first; leaf <= head.eax; leaf++) {
		for (uint32_t subleaf = 0; count < MOST_LEAVES; subleaf++) {
			struct leaf *l = to + count++;
			l->leaf = leaf;
			l->subleaf = subleaf;
			cpuid(leaf, subleaf, &l->r);
			if (!continues(l) || subleaf == 255)
				break;
		}
	}
	return count;
}

static void freeze(void)
{
	kernel_sigset all = ~0ull, before;
	struct leaf *leaves = (struct leaf *)raw_call(SYS_mmap, 0, MOST_LEAVES * sizeof *leaves, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if ((unsigned long)leaves > -4096ul)
		return;
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&before, sizeof all, 0, 0);
	set_faulting(false);
	unsigned count = read_range(leaves, 0, 0);
	count = read_range(leaves, count, 0x40000000);
	frozen_count = read_range(leaves, count, 0x80000000);
	set_faulting(true);
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&before, 0, sizeof before, 0, 0);
	/* Two threads that do it at once read the same. */
	__atomic_store_n(&frozen, leaves, __ATOMIC_RELEASE);
}

void cpuid_before_filter(bool refuses)
{
	if (UNLIKELY(r3_cpuid) && refuses && !frozen)
		freeze();
}

/* What is beyond the range of a leaf is the last basic leaf on Intel's processors and nothing on AMD's, as for a leaf that was not read. */
static void cpuid_frozen(const struct leaf *leaves, uint32_t leaf, uint32_t subleaf, struct registers *r)
{
	const struct leaf *same = NULL;

	memset(r, 0, sizeof *r);
	for (unsigned i = 0; i < frozen_count; i++) {
		const struct leaf *l = leaves + i;
		if (l->leaf != leaf)
			continue;
		same = l;
		if (l->subleaf != subleaf)
			continue;
		*r = l->r;
		return;
	}
	if (same && same->subleaf == 0 && !continues(same))
		*r = same->r; /* the leaf has no subleaves */
	else if (same && (leaf == 0xB || leaf == 0x1F))
		*r = (struct registers){ .ecx = subleaf & 0xFF, .edx = same->r.edx };
}

static void cpuid_of_host(uint32_t leaf, uint32_t subleaf, struct registers *r)
{
	const struct leaf *leaves = __atomic_load_n(&frozen, __ATOMIC_ACQUIRE);
	kernel_sigset all = ~0ull, before;

	if (UNLIKELY(leaves != NULL)) {
		cpuid_frozen(leaves, leaf, subleaf, r);
		return;
	}
	/* A handler that came in between would see the host's processor, and could leave the thread so by a longjmp. */
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&before, sizeof all, 0, 0);
	set_faulting(false);
	cpuid(leaf, subleaf, r);
	set_faulting(true);
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&before, 0, sizeof before, 0, 0);
}

/* ---- the instruction ---- */

static void add_virtualisation(uint32_t leaf, struct registers *r)
{
	if (!shows_svm) {
		if (leaf == 1)
			r->ecx |= ECX_VMX;
		return;
	}
	if (leaf == (uint32_t)EXTENDED && r->eax < (uint32_t)SVM_LEAF)
		r->eax = (uint32_t)SVM_LEAF;
	else if (leaf == (uint32_t)EXTENDED + 1)
		r->ecx |= ECX_SVM;
	else if (leaf == (uint32_t)SVM_LEAF && !(r->eax & 0xFF))
		*r = (struct registers){ SVM_REVISION, SVM_ASIDS, 0, SVM_NESTED_PAGING };
}

static bool is_prefix(uint8_t byte, bool code64)
{
	switch (byte) {
	case 0x26: case 0x2E: case 0x36: case 0x3E: case 0x64: case 0x65: case 0x66: case 0x67: case 0xF2: case 0xF3:
		return true;
	default:
		return code64 && (byte & 0xF0) == 0x40;
	}
}

/* The length of the CPUID at this address, 0: it is another instruction. It was fetched, so it can be read as far as it goes. */
static unsigned instruction_length(const uint8_t *at, bool code64)
{
	unsigned n = 0;

	while (n < LONGEST_INSTRUCTION - 2 && is_prefix(at[n], code64))
		n++;
	return at[n] == 0x0F && at[n + 1] == 0xA2 ? n + 2 : 0;
}

/* A client that is loaded directly has another FS here: the core was loaded before it began. */
static bool is_of_core(uintptr_t at)
{
	return r3_direct ? at - r3_core_begin < r3_core_end - r3_core_begin : from_core((const void *)at);
}

bool cpuid_emulate(const siginfo_t *info, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	struct registers r;

	if (info->si_code != SI_KERNEL || g[REG_TRAPNO] != GENERAL_PROTECTION || g[REG_ERR])
		return false;
	unsigned length = instruction_length((const uint8_t *)g[REG_RIP], (g[REG_CSGSFS] & 0xFFFF) == CODE_64);
	if (!length)
		return false;
	uint32_t leaf = (uint32_t)g[REG_RAX];
	cpuid_of_host(leaf, (uint32_t)g[REG_RCX], &r);
	if (!is_of_core((uintptr_t)g[REG_RIP]))
		add_virtualisation(leaf, &r);
	g[REG_RAX] = r.eax;
	g[REG_RBX] = r.ebx;
	g[REG_RCX] = r.ecx;
	g[REG_RDX] = r.edx;
	g[REG_RIP] += length;
	return true;
}

const char *cpuid_flag(void)
{
	return shows_svm ? " svm" : " vmx";
}

/* ---- the beginning ---- */

void cpuid_of_own_thread(void)
{
	if (UNLIKELY(r3_cpuid))
		set_faulting(false);
}

static bool is_wanted(char *const *environment)
{
	for (; environment && *environment; environment++)
		if (strncmp(*environment, "RING3_CPUID=", 12) == 0)
			return strcmp(*environment + 12, "1") == 0;
	return false;
}

/* The library is linked with -z initfirst: before the constructors of all others, even of the C library, which has no environment yet. */
__attribute__((constructor)) static void begin(int count, char **arguments, char **environment)
{
	struct registers vendor;

	(void)count;
	(void)arguments;
	if (LIKELY(!is_wanted(environment)))
		return;
	cpuid(0, 0, &vendor);
	shows_svm = vendor.ebx == signature_AMD_ebx || vendor.ebx == HYGON_EBX;
	if (set_faulting(true) != 0)
		return; /* the launcher has said it */
	set_faulting(false);
	r3_cpuid = true;
	track();
	signals_install();
	signals_stand_in();
	set_faulting(true);
}
