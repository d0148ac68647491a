/*
 * dlsym and dlvsym with a handle: ctypes.CDLL("libc.so.6").open, .NET's DllImport("libc"), any language that asks the C library by name.
 *
 * Invariants
 *   - A lookup answers what the C library answers, except that the function behind one of ours becomes ours. Compared are addresses, so it
 *     does not matter through which handle (libc.so.6, libpthread.so.0, a library that depends on them) or version the lookup went.
 *   - The C library's dlsym looks at its return address (RTLD_NEXT, RTLD_DEFAULT, and the namespace of the caller). What is not about a
 *     handle therefore goes on by a jump, with the caller's return address.
 */
#include "ring3.h"

#include <elf.h>
#include <link.h>
#include <string.h>

typedef void *(*dlsym_function)(void *, const char *);
typedef void *(*dlvsym_function)(void *, const char *, const char *);

static dlsym_function real_dlsym;
static dlvsym_function real_dlvsym;
static struct dl_phdr_info own; /* libring3.so */

/* ---- the C library's own dlsym and dlvsym, without them ---- */

struct tables {
	const ElfW(Sym) *symbols;
	const char *strings;
	const uint32_t *gnu_hash;
};

static bool tables_of(const struct dl_phdr_info *info, struct tables *t)
{
	const ElfW(Dyn) *dynamic = NULL;

	memset(t, 0, sizeof *t);
	for (int i = 0; i < info->dlpi_phnum; i++) {
		if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
			dynamic = (const void *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
	}
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		/* The dynamic linker has made addresses of them, except in objects that it cannot write to (the vDSO). */
		uintptr_t at = dynamic->d_un.d_ptr < info->dlpi_addr ? info->dlpi_addr + dynamic->d_un.d_ptr : dynamic->d_un.d_ptr;
		if (dynamic->d_tag == DT_SYMTAB)
			t->symbols = (const void *)at;
		else if (dynamic->d_tag == DT_STRTAB)
			t->strings = (const void *)at;
		else if (dynamic->d_tag == DT_GNU_HASH)
			t->gnu_hash = (const void *)at;
	}
	return t->symbols && t->strings && t->gnu_hash;
}

/* The DT_GNU_HASH lookup; 0: the object does not define it. */
static uintptr_t defined(const struct dl_phdr_info *info, const char *name)
{
	struct tables t;
	uint32_t hash = 5381;

	if (!tables_of(info, &t))
		return 0;
	for (const unsigned char *c = (const void *)name; *c; c++)
		hash = hash * 33 + *c;
	uint32_t bucket_count = t.gnu_hash[0], first = t.gnu_hash[1], bloom_words = t.gnu_hash[2];
	const uint32_t *buckets = t.gnu_hash + 4 + bloom_words * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
	const uint32_t *chain = buckets + bucket_count;
	uint32_t n = bucket_count ? buckets[hash % bucket_count] : 0;
	if (n < first || !n)
		return 0;
	for (;; n++) {
		uint32_t of = chain[n - first];
		const ElfW(Sym) *s = t.symbols + n;
		if ((of | 1) == (hash | 1) && s->st_shndx != SHN_UNDEF && strcmp(t.strings + s->st_name, name) == 0)
			return info->dlpi_addr + s->st_value;
		if (of & 1)
			return 0;
	}
}

static bool contains(const struct dl_phdr_info *info, uintptr_t at)
{
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = info->dlpi_phdr + i;
		if (p->p_type == PT_LOAD && at - (info->dlpi_addr + p->p_vaddr) < p->p_memsz)
			return true;
	}
	return false;
}

struct search {
	bool passed; /* libring3.so itself: what comes behind it counts */
	uintptr_t dlsym, dlvsym;
};

static int look(struct dl_phdr_info *info, size_t size, void *context)
{
	struct search *search = context;

	(void)size;
	if (!search->passed) {
		search->passed = contains(info, (uintptr_t)look);
		if (search->passed)
			own = *info;
		return 0;
	}
	if (!search->dlsym)
		search->dlsym = defined(info, "dlsym");
	if (!search->dlvsym)
		search->dlvsym = defined(info, "dlvsym");
	return search->dlsym && search->dlvsym;
}

static void find_real(void)
{
	struct search search = { 0 };

	dl_iterate_phdr(look, &search);
	if (!search.dlsym || !search.dlvsym)
		__builtin_trap(); /* libdl.so or libc.so is a dependency of this library */
	real_dlvsym = (dlvsym_function)search.dlvsym;
	/* Threads that find both at once find the same. */
	__atomic_store_n(&real_dlsym, (dlsym_function)search.dlsym, __ATOMIC_RELEASE);
}

void *next_definition(const char *name)
{
	if (UNLIKELY(!__atomic_load_n(&real_dlsym, __ATOMIC_ACQUIRE)))
		find_real();
	return real_dlsym(RTLD_NEXT, name);
}

/* ---- the interposed lookups ---- */

/* Ours for the C library's function `found` of this name; else `found`. dlerror() afterwards is as after a lookup that found it. */
static void *replaced(const char *name, void *found)
{
	uintptr_t ours;

	if (!found || !(ours = defined(&own, name)) || (uintptr_t)found == ours)
		return found;
	void *behind = real_dlsym(RTLD_NEXT, name);
	if (!behind)
		dlerror();
	return behind == found ? (void *)ours : found;
}

static bool is_for_us(const void *handle, const void *caller)
{
	if (UNLIKELY(!__atomic_load_n(&real_dlsym, __ATOMIC_ACQUIRE)))
		find_real();
	return handle != RTLD_DEFAULT && handle != RTLD_NEXT && !from_core(caller);
}

/* true and the answer in *found; or false and where to jump to. */
__attribute__((used)) bool lookup(void *handle, const char *name, const void *caller, void **found)
{
	bool ours = is_for_us(handle, caller);
	*found = ours ? replaced(name, real_dlsym(handle, name)) : (void *)real_dlsym;
	return ours;
}

__attribute__((used)) bool lookup_version(void *handle, const char *name, const void *caller, void **found, const char *version)
{
	bool ours = is_for_us(handle, caller);
	*found = ours ? replaced(name, real_dlvsym(handle, name, version)) : (void *)real_dlvsym;
	return ours;
}

/* Three arguments are kept for the jump; the fourth word is *found. The stack is aligned at the call. */
#define LOOKUP(name, decide) \
	__asm__(".text\n" \
		".p2align 4\n" \
		".globl " name "\n" \
		".type " name ", @function\n" \
		name ":\n" \
		"	.cfi_startproc\n" \
		"	endbr64\n" \
		"	sub $40, %rsp\n" \
		"	.cfi_adjust_cfa_offset 40\n" \
		"	mov %rdi, (%rsp)\n" \
		"	mov %rsi, 8(%rsp)\n" \
		"	mov %rdx, 16(%rsp)\n" \
		"	mov %rdx, %r8\n" \
		"	mov 40(%rsp), %rdx\n" \
		"	lea 24(%rsp), %rcx\n" \
		"	call " decide "\n" \
		"	mov %eax, %ecx\n" \
		"	mov 24(%rsp), %rax\n" \
		"	mov (%rsp), %rdi\n" \
		"	mov 8(%rsp), %rsi\n" \
		"	mov 16(%rsp), %rdx\n" \
		"	add $40, %rsp\n" \
		"	.cfi_adjust_cfa_offset -40\n" \
		"	test %cl, %cl\n" \
		"	je 1f\n" \
		"	ret\n" \
		"1:	jmp *%rax\n" \
		"	.cfi_endproc\n" \
		".size " name ", .-" name "\n")
LOOKUP("dlsym", "lookup");
LOOKUP("dlvsym", "lookup_version");
