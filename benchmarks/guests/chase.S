# Memory chase: a random cycle through 4 MiB, one node in each cache line. 262,144 loads an iteration.
	.text
	.globl kernel_run
kernel_run:
	push %rbx
	push %rbp
	mov %rdi, %rbp
	# Sattolo's shuffle of 65536 indices at arena + 8 MiB.
	lea 0x800000(%rsi), %r8
	xor %ecx, %ecx
1:	mov %ecx, (%r8, %rcx, 4)
	inc %ecx
	cmp $65536, %ecx
	jb 1b
	mov $0x2545f4914f6cdd1d, %r9
	mov $65535, %ecx
2:	mov $6364136223846793005, %rax
	imul %rax, %r9
	add $12345, %r9
	mov %r9, %rax
	shr $33, %rax
	xor %edx, %edx
	div %ecx
	mov (%r8, %rcx, 4), %eax
	mov (%r8, %rdx, 4), %ebx
	mov %ebx, (%r8, %rcx, 4)
	mov %eax, (%r8, %rdx, 4)
	dec %ecx
	jnz 2b
	# Node i holds the address of node index[i].
	xor %ecx, %ecx
3:	mov (%r8, %rcx, 4), %eax
	shl $6, %rax
	add %rsi, %rax
	mov %rcx, %rdx
	shl $6, %rdx
	mov %rax, (%rsi, %rdx)
	inc %ecx
	cmp $65536, %ecx
	jb 3b
	mov %rsi, %rax
iteration:
	mov $32768, %ecx
4:	mov (%rax), %rax
	mov (%rax), %rax
	mov (%rax), %rax
	mov (%rax), %rax
	mov (%rax), %rax
	mov (%rax), %rax
	mov (%rax), %rax
	mov (%rax), %rax
	dec %ecx
	jnz 4b
	dec %rbp
	jnz iteration
	pop %rbp
	pop %rbx
	ret
	.section .note.GNU-stack, "", @progbits
