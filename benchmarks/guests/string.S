# Strings: REP MOVS/STOS of several sizes, REP SCAS/CMPS, strlen and memchr with SSE2.
	.text
	.globl kernel_run
kernel_run:
	push %rbx
	push %rbp
	push %r12
	mov %rdi, %r12
	mov %rsi, %rbp
iteration:
	# 64 KiB in one go, 4 KiB blocks, and short unaligned copies.
	mov %rbp, %rdi
	mov $0x61, %eax
	mov $65536, %ecx
	rep stosb
	movb $0, -1(%rdi)
	mov %rbp, %rsi
	lea 0x20000(%rbp), %rdi
	mov $8192, %ecx
	rep movsq
	mov $64, %ebx
1:	mov %rbp, %rsi
	lea 0x40000(%rbp), %rdi
	mov $4096, %ecx
	rep movsb
	dec %ebx
	jnz 1b
	mov $2000, %ebx
2:	lea 3(%rbp), %rsi
	lea 0x50001(%rbp), %rdi
	mov $40, %ecx
	rep movsb
	dec %ebx
	jnz 2b
	# strlen, SSE2
	pxor %xmm0, %xmm0
	mov $4, %ebx
3:	mov %rbp, %rax
4:	movdqu (%rax), %xmm1
	pcmpeqb %xmm0, %xmm1
	pmovmskb %xmm1, %edx
	add $16, %rax
	test %edx, %edx
	jz 4b
	dec %ebx
	jnz 3b
	# memchr, SSE2, two vectors at a time
	mov $0x62, %eax
	movd %eax, %xmm2
	punpcklbw %xmm2, %xmm2
	pshuflw $0, %xmm2, %xmm2
	pshufd $0, %xmm2, %xmm2
	mov $4, %ebx
5:	mov %rbp, %rax
	lea 65536(%rbp), %rcx
6:	movdqa (%rax), %xmm3
	movdqa 16(%rax), %xmm4
	pcmpeqb %xmm2, %xmm3
	pcmpeqb %xmm2, %xmm4
	por %xmm4, %xmm3
	pmovmskb %xmm3, %edx
	test %edx, %edx
	jnz 7f
	add $32, %rax
	cmp %rcx, %rax
	jb 6b
7:	dec %ebx
	jnz 5b
	# scan and compare
	mov %rbp, %rdi
	xor %eax, %eax
	mov $65536, %ecx
	repne scasb
	mov %rbp, %rsi
	lea 0x20000(%rbp), %rdi
	mov $8192, %ecx
	repe cmpsq
	dec %r12
	jnz iteration
	pop %r12
	pop %rbp
	pop %rbx
	ret
	.section .note.GNU-stack, "", @progbits
