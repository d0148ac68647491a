# SSE2 floating point: a 32x32 double matrix product (packed), a scalar n-body-like update with square roots and divisions, conversions. About 200 k instructions an iteration.
	.text
	.globl kernel_run
kernel_run:
	push %rbx
	push %rbp
	push %r12
	push %r13
	mov %rdi, %r12
	mov %rsi, %r13
	# A at 0, B at 8192, C at 16384.
	xor %ecx, %ecx
1:	lea 1(%rcx), %eax
	cvtsi2sd %eax, %xmm0
	movsd %xmm0, (%r13, %rcx, 8)
	sqrtsd %xmm0, %xmm0
	movsd %xmm0, 8192(%r13, %rcx, 8)
	inc %ecx
	cmp $1024, %ecx
	jb 1b
iteration:
	xor %esi, %esi
2:	xor %edi, %edi			# row
3:	xorpd %xmm0, %xmm0
	xorpd %xmm1, %xmm1
	mov %rsi, %rax
	shl $8, %rax
	add %r13, %rax
	lea 8192(%r13, %rdi, 8), %rdx
	mov $32, %ecx
4:	movsd (%rax), %xmm2
	unpcklpd %xmm2, %xmm2
	movupd (%rdx), %xmm3
	movupd 16(%rdx), %xmm4
	mulpd %xmm2, %xmm3
	mulpd %xmm2, %xmm4
	addpd %xmm3, %xmm0
	addpd %xmm4, %xmm1
	add $8, %rax
	add $256, %rdx
	dec %ecx
	jnz 4b
	mov %rsi, %rax
	shl $8, %rax
	add %r13, %rax
	movupd %xmm0, 16384(%rax, %rdi, 8)
	movupd %xmm1, 16400(%rax, %rdi, 8)
	add $4, %edi
	cmp $32, %edi
	jb 3b
	inc %esi
	cmp $32, %esi
	jb 2b
	# Scalar chain.
	mov $4000, %ecx
	movsd 8(%r13), %xmm0
	movsd 24(%r13), %xmm1
	movsd one(%rip), %xmm7
	xorpd %xmm6, %xmm6
5:	movapd %xmm0, %xmm2
	subsd %xmm1, %xmm2
	mulsd %xmm2, %xmm2
	addsd %xmm7, %xmm2
	sqrtsd %xmm2, %xmm3
	mulsd %xmm3, %xmm2
	movapd %xmm7, %xmm4
	divsd %xmm2, %xmm4
	addsd %xmm4, %xmm0
	subsd %xmm4, %xmm1
	addsd %xmm4, %xmm6
	cvttsd2si %xmm6, %eax
	cvtsi2sd %eax, %xmm5
	ucomisd %xmm5, %xmm6
	jae 6f
	addsd %xmm5, %xmm6
6:	dec %ecx
	jnz 5b
	movsd %xmm6, 24576(%r13)
	dec %r12
	jnz iteration
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret
	.data
	.balign 16
one:	.double 1.0, 1.0
	.section .note.GNU-stack, "", @progbits
