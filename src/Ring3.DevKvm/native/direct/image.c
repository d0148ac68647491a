/*
 * The program's image: segments, what interprets it, and a heap that brk() moves.
 */
#include "direct.h"

#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096ul
#define MOST_HEADERS 512
#define HEAP_BYTES (64ul << 30) /* of addresses */

static uintptr_t page_of(uintptr_t at)
{
	return at & ~(PAGE - 1);
}

static int protection_of(uint32_t flags)
{
	return (flags & PF_R ? PROT_READ : 0) | (flags & PF_W ? PROT_WRITE : 0) | (flags & PF_X ? PROT_EXEC : 0);
}

static bool map_segment(int fd, const Elf64_Phdr *p, uintptr_t bias)
{
	uintptr_t at = page_of(bias + p->p_vaddr), file_end = bias + p->p_vaddr + p->p_filesz, end = bias + p->p_vaddr + p->p_memsz;
	uintptr_t zero_page = page_of(file_end + PAGE - 1);
	int protection = protection_of(p->p_flags);

	if (p->p_filesz && mmap((void *)at, file_end - at, protection, MAP_PRIVATE | MAP_FIXED, fd, (off_t)page_of(p->p_offset)) == MAP_FAILED)
		return false;
	if (end > file_end && p->p_filesz && (p->p_flags & PF_W) && (file_end & (PAGE - 1)))
		memset((void *)file_end, 0, (zero_page < end ? zero_page : page_of(end + PAGE - 1)) - file_end);
	if (!p->p_filesz)
		zero_page = at;
	return end <= zero_page || mmap((void *)zero_page, end - zero_page, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

static bool is_valid_segment(const Elf64_Phdr *p, uint64_t file_bytes)
{
	if (p->p_offset > file_bytes || p->p_filesz > file_bytes - p->p_offset || p->p_filesz > p->p_memsz)
		return false;
	return p->p_vaddr <= INT64_MAX - p->p_memsz && !((p->p_vaddr ^ p->p_offset) & (PAGE - 1));
}

/* 0, or an errno and why. */
int image_load(int fd, struct image *image, const char **why)
{
	Elf64_Ehdr head;
	Elf64_Phdr programs[MOST_HEADERS];
	uintptr_t low = UINTPTR_MAX, high = 0, bias = 0;
	struct stat st;

	memset(image, 0, sizeof *image);
	*why = "is not an x86-64 program";
	if (pread(fd, &head, sizeof head, 0) != sizeof head || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0)
		return ENOEXEC;
	if (head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_machine != EM_X86_64)
		return ENOEXEC;
	if ((head.e_type != ET_EXEC && head.e_type != ET_DYN) || head.e_phentsize != sizeof *programs || !head.e_phnum || head.e_phnum > MOST_HEADERS)
		return ENOEXEC;
	ssize_t size = (ssize_t)(head.e_phnum * sizeof *programs);
	if (head.e_phoff > INT64_MAX || pread(fd, programs, (size_t)size, (off_t)head.e_phoff) != size || fstat(fd, &st) != 0)
		return ENOEXEC;
	for (unsigned i = 0; i < head.e_phnum; i++) {
		const Elf64_Phdr *p = programs + i;
		if (p->p_type == PT_INTERP && p->p_filesz >= PATH_MAX)
			return ENOEXEC;
		if (p->p_type == PT_INTERP) {
			image->interpreter = p->p_offset;
			image->interpreter_size = p->p_filesz;
		}
		if (p->p_type != PT_LOAD)
			continue;
		if (!is_valid_segment(p, (uint64_t)st.st_size))
			return ENOEXEC;
		if (page_of(p->p_vaddr) < low)
			low = page_of(p->p_vaddr);
		if (p->p_vaddr + p->p_memsz > high)
			high = p->p_vaddr + p->p_memsz;
	}
	if (low >= high)
		return ENOEXEC;
	*why = "cannot be mapped";
	void *wanted = head.e_type == ET_EXEC ? (void *)low : NULL;
	void *at = mmap(wanted, high - low, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (wanted ? MAP_FIXED_NOREPLACE : 0), -1, 0);
	if (at == MAP_FAILED)
		return errno;
	bias = (uintptr_t)at - low;
	for (unsigned i = 0; i < head.e_phnum; i++) {
		if (programs[i].p_type == PT_LOAD && !map_segment(fd, programs + i, bias))
			return errno;
		const Elf64_Phdr *p = programs + i;
		if (p->p_type == PT_LOAD && head.e_phoff - p->p_offset < p->p_filesz)
			image->headers = bias + p->p_vaddr + (head.e_phoff - p->p_offset);
	}
	image->end = bias + high;
	image->entry = bias + head.e_entry;
	image->bias = bias;
	image->header_count = head.e_phnum;
	return 0;
}

/* ---- brk ---- */

static uintptr_t heap_begin, heap_now, heap_limit;
static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

/* Behind the image, where Linux has it, if there is room. */
void break_prepare(uintptr_t end)
{
	for (size_t bytes = HEAP_BYTES; bytes >= 1 << 20; bytes >>= 1) {
		void *at = mmap((void *)page_of(end + PAGE - 1), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (at == MAP_FAILED)
			continue;
		heap_begin = heap_now = (uintptr_t)at;
		heap_limit = heap_begin + bytes;
		return;
	}
}

/* In host. As the kernel: the break, moved or not. */
long client_brk(uintptr_t to)
{
	pthread_mutex_lock(&heap_lock);
	uintptr_t before = page_of(heap_now + PAGE - 1), after = page_of(to + PAGE - 1);
	if (to >= heap_begin && to <= heap_limit) {
		bool moved = true;
		if (after > before)
			moved = mprotect((void *)before, after - before, PROT_READ | PROT_WRITE) == 0;
		else if (after < before)
			moved = mmap((void *)after, before - after, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
		if (moved)
			heap_now = to;
	}
	uintptr_t now = heap_now;
	pthread_mutex_unlock(&heap_lock);
	return (long)now;
}
