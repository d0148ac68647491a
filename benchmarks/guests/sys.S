# System calls and page faults: touches 64 pages for the first time with four system calls after each, then gives the pages back. 257 calls and 64 faults an iteration.
# Linux's numbers, so that the same code runs as a process: 110 getppid, 28 madvise(MADV_DONTNEED).
	.text
	.globl kernel_run
kernel_run:
	push %rbx
	push %r12
	push %r13
	mov %rdi, %r12
	mov %rsi, %r13
iteration:
	mov $64, %ebx
	mov %r13, %r8
1:	movb $1, (%r8)
	.rept 4
	mov $110, %eax
	syscall
	.endr
	add $4096, %r8
	dec %ebx
	jnz 1b
	mov $28, %eax
	mov %r13, %rdi
	mov $262144, %esi
	mov $4, %edx
	syscall
	dec %r12
	jnz iteration
	pop %r13
	pop %r12
	pop %rbx
	ret
	.section .note.GNU-stack, "", @progbits
