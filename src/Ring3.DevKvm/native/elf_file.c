/*
 * See elf_file.h.
 */
#define _GNU_SOURCE
#include "elf_file.h"

#include <elf.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_HEADERS = 1024, MOST_BYTES = 1 << 20, GO_BUILD_ID = 4 };

/* size bytes at `at` of the file, allocated with a 0 behind them; NULL: the file does not have them. */
static char *part(int fd, uint64_t at, uint64_t size)
{
	char *bytes = size && size <= MOST_BYTES && at <= INT64_MAX - MOST_BYTES ? malloc(size + 1) : NULL;

	if (bytes && pread(fd, bytes, size, (off_t)at) != (ssize_t)size) {
		free(bytes);
		return NULL;
	}
	if (bytes)
		bytes[size] = 0;
	return bytes;
}

static void copy_text(char *to, size_t size, const char *from)
{
	size_t n = strnlen(from, size - 1);
	memcpy(to, from, n);
	to[n] = 0;
}

/* The Go linker names its build in a note. */
static bool is_go_note(const char *notes, uint64_t size)
{
	for (uint64_t at = 0; size - at >= sizeof(Elf64_Nhdr);) {
		Elf64_Nhdr note;
		memcpy(&note, notes + at, sizeof note);
		at += sizeof note;
		uint64_t name = (note.n_namesz + 3ull) & ~3ull, description = (note.n_descsz + 3ull) & ~3ull;
		if (name + description > size - at)
			return false;
		if (note.n_type == GO_BUILD_ID && note.n_namesz == 4 && memcmp(notes + at, "Go\0", 4) == 0)
			return true;
		at += name + description;
	}
	return false;
}

/* Or, where the note was not wanted (-buildid=), in a section. */
static bool has_go_section(int fd, const Elf64_Ehdr *head)
{
	bool found = false;

	if (head->e_shentsize != sizeof(Elf64_Shdr) || head->e_shstrndx >= head->e_shnum)
		return false;
	Elf64_Shdr *sections = (Elf64_Shdr *)part(fd, head->e_shoff, (uint64_t)head->e_shnum * sizeof *sections);
	char *names = sections ? part(fd, sections[head->e_shstrndx].sh_offset, sections[head->e_shstrndx].sh_size) : NULL;
	for (unsigned i = 0; names && i < head->e_shnum && !found; i++) {
		if (sections[i].sh_name < sections[head->e_shstrndx].sh_size)
			found = strcmp(names + sections[i].sh_name, ".go.buildinfo") == 0;
	}
	free(names);
	free(sections);
	return found;
}

/* Where an address of the program is in the file; UINT64_MAX: nowhere. */
static uint64_t file_offset(const Elf64_Phdr *programs, unsigned count, uint64_t address)
{
	for (unsigned i = 0; i < count; i++) {
		if (programs[i].p_type == PT_LOAD && address - programs[i].p_vaddr < programs[i].p_filesz)
			return programs[i].p_offset + (address - programs[i].p_vaddr);
	}
	return UINT64_MAX;
}

static void read_soname(int fd, const Elf64_Phdr *programs, unsigned count, const Elf64_Phdr *dynamic, struct elf *elf)
{
	uint64_t strings = 0, name = 0;
	Elf64_Dyn *entries = (Elf64_Dyn *)part(fd, dynamic->p_offset, dynamic->p_filesz);

	for (uint64_t i = 0; entries && i < dynamic->p_filesz / sizeof *entries && entries[i].d_tag != DT_NULL; i++) {
		if (entries[i].d_tag == DT_STRTAB)
			strings = entries[i].d_un.d_ptr;
		else if (entries[i].d_tag == DT_SONAME)
			name = entries[i].d_un.d_val;
	}
	free(entries);
	if (!name)
		return;
	uint64_t at = file_offset(programs, count, strings + name);
	if (at == UINT64_MAX || at > INT64_MAX || pread(fd, elf->soname, sizeof elf->soname - 1, (off_t)at) <= 0)
		elf->soname[0] = 0;
	elf->soname[sizeof elf->soname - 1] = 0;
}

void elf_read(int fd, struct elf *elf)
{
	Elf64_Ehdr head;

	memset(elf, 0, sizeof *elf);
	if (pread(fd, &head, sizeof head, 0) != sizeof head || head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_machine != EM_X86_64)
		return;
	elf->is_x86_64 = true;
	elf->is_go = has_go_section(fd, &head);
	if (head.e_phentsize != sizeof(Elf64_Phdr) || head.e_phnum > MOST_HEADERS)
		return;
	Elf64_Phdr *programs = (Elf64_Phdr *)part(fd, head.e_phoff, (uint64_t)head.e_phnum * sizeof *programs);
	for (unsigned i = 0; programs && i < head.e_phnum; i++) {
		const Elf64_Phdr *p = programs + i;
		char *bytes = p->p_type == PT_INTERP || p->p_type == PT_NOTE ? part(fd, p->p_offset, p->p_filesz) : NULL;
		if (bytes && p->p_type == PT_INTERP)
			copy_text(elf->interpreter, sizeof elf->interpreter, bytes);
		else if (bytes && is_go_note(bytes, p->p_filesz))
			elf->is_go = true;
		else if (p->p_type == PT_DYNAMIC)
			read_soname(fd, programs, head.e_phnum, p, elf);
		free(bytes);
	}
	free(programs);
}

static bool is_musl(const struct elf *elf)
{
	return strstr(elf->interpreter, "ld-musl") || strstr(elf->soname, "musl") || strcmp(elf->soname, "libc.so") == 0;
}

bool elf_is_dynamic(const struct elf *elf)
{
	return *elf->interpreter || strncmp(elf->soname, "ld-linux", 8) == 0 || is_musl(elf);
}

bool elf_needs_direct(const struct elf *elf)
{
	return elf->is_x86_64 && (elf->is_go || is_musl(elf) || !elf_is_dynamic(elf));
}
