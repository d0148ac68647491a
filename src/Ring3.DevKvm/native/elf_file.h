/*
 * What ring3-exec wants to know of an ELF file. Nothing in the file is trusted: what cannot be read is not there.
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

#endif
