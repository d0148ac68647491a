/*
 * What oracle.c and kvm_oracle.c share with their parent: the file of a batch. The numbers and layouts are those of SandboxLayout.cs.
 */
#ifndef RING3_ORACLE_H
#define RING3_ORACLE_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

#define CODE_ADDRESS 0x50010000UL
#define CODE_SIZE 0x20000UL
#define DATA_ADDRESS 0x50100000UL
#define DATA_WRITABLE 0x2000UL
#define DATA_SIZE 0x3000UL
#define MAX_CASES 256
#define MAX_DIFFS 16
#define LINE 64
#define XSAVE_BYTES 832

struct header { u64 magic; u32 count, done; u64 exit_address; u64 quirks; u64 own_rip, own_address; u32 own_vector, reserved; };

/* Quirks of the host that the parent found (HostProbes.cs). */
#define QUIRK_BASES_LOST 1 /* a switch of threads puts the kernel's idea of the bases in: host_fs and GS_MARK */
#define GS_MARK 0x123456789000ul
#define QUIRK_STACK_CHECKED 2 /* an interrupt in a case with an RSP that is not canonical ends in #GP */
#define QUIRK_NT_LOST 4 /* an interrupt clears RFLAGS.NT */

struct input {
	u64 gpr[16];
	u64 rip, rflags, fs_base, gs_base;
	u64 next_rip;
	u32 patch_offset, patch_length;
	u32 bits, code_selector; /* 64; 32 for compatibility mode; 16 for 16-bit segments of the LDT */
	u32 skip, step; /* skip: not for this host, only SKIPPED_VECTOR is answered; step: one instruction, by KVM_GUESTDBG_SINGLESTEP (kvm_oracle.c alone) */
	u8 xsave[XSAVE_BYTES];
	u8 patch[1024];
};

struct output {
	u64 gpr[16];
	u64 rip, rflags, fs_base, gs_base;
	u32 vector, error_code;
	u64 cr2;
	u32 diffs, signal;
	u64 reserved;
	u8 xsave[XSAVE_BYTES];
	u32 diff_line[MAX_DIFFS];
	u8 diff_bytes[MAX_DIFFS][LINE];
};

struct shared {
	struct header header;
	u8 pad0[4096 - sizeof(struct header)];
	u8 code[CODE_SIZE];
	u8 data[DATA_SIZE]; /* initial contents of the data pages, for every case of the batch */
	u8 pad1[4096];
	struct input in[MAX_CASES];
	struct output out[MAX_CASES];
};

_Static_assert(offsetof(struct input, xsave) == 192 && sizeof(struct input) == 2048, "input");
_Static_assert(offsetof(struct output, xsave) == 192 && sizeof(struct output) == 2112, "output");

#define NO_VECTOR 0xffffffffu
#define TIMEOUT_VECTOR 254u
#define SYSTEM_CALL_VECTOR 253u
#define SKIPPED_VECTOR 252u

#endif
