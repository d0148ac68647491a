/*
 * What is to be known before a program is executed of an ELF file. Nothing in the file is trusted: what cannot be read is not there.
 */
#ifndef RING3_ELF_FILE_H
#define RING3_ELF_FILE_H

#include <limits.h>
#include <stdbool.h>

struct elf {
	bool is_x86_64;              /* class 64, machine x86-64 */
	bool is_go;                  /* the Go linker has made it, or has made a part of it */
	char interpreter[PATH_MAX];  /* the dynamic linker that it asks for; empty: none */
	char soname[64];             /* its own name as a library; a program has none, the dynamic linker has */
};

void elf_read(int fd, struct elf *elf);
/* Whether it is a program that no library of the GNU C library can stand in front of: its system calls are its own. */
bool elf_needs_direct(const struct elf *elf);
/* Whether it loads libraries itself, or is what loads them. */
bool elf_is_dynamic(const struct elf *elf);

#endif
