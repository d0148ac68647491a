# Integer work: a sieve (byte stores and loads), a hash over a buffer, a bignum multiply-accumulate with carries. About 1 M instructions an iteration.
	.text
	.globl kernel_run
kernel_run:
	push %rbx
	push %rbp
	push %r12
	push %r13
	mov %rdi, %r12
	mov %rsi, %r13
iteration:
	# Sieve of 64 Ki numbers.
	mov %r13, %rdi
	mov $65536, %ecx
	xor %eax, %eax
1:	mov %rax, (%rdi)
	add $8, %rdi
	sub $8, %ecx
	jnz 1b
	mov $2, %esi
2:	cmpb $0, (%r13, %rsi)
	jne 4f
	lea (%rsi, %rsi), %edx
3:	movb $1, (%r13, %rdx)
	add %esi, %edx
	cmp $65536, %edx
	jb 3b
4:	inc %esi
	cmp $256, %esi
	jb 2b
	# Hash of the sieve: multiply, rotate, xor.
	mov $0x9e3779b97f4a7c15, %r8
	mov $0xcbf29ce484222325, %rax
	xor %ecx, %ecx
5:	xor (%r13, %rcx), %rax
	imul %r8, %rax
	rol $23, %rax
	mov %rax, %rdx
	shr $29, %rdx
	xor %rdx, %rax
	add $8, %ecx
	cmp $65536, %ecx
	jb 5b
	mov %rax, 65536(%r13)
	# 64 rows of a 64-word multiply-accumulate.
	mov $64, %ebx
6:	mov 65536(%r13), %r9
	add %rbx, %r9
	xor %ecx, %ecx
	xor %r10d, %r10d
7:	mov 0(%r13, %rcx, 8), %rax
	mul %r9
	add %r10, %rax
	adc $0, %rdx
	add %rax, 69632(%r13, %rcx, 8)
	adc $0, %rdx
	mov %rdx, %r10
	inc %ecx
	cmp $64, %ecx
	jb 7b
	dec %ebx
	jnz 6b
	# Bit tricks and conditional moves.
	mov $50000, %ecx
	mov 65536(%r13), %rax
	xor %edx, %edx
8:	mov %rax, %rbp
	shl $13, %rbp
	xor %rbp, %rax
	mov %rax, %rbp
	shr $7, %rbp
	xor %rbp, %rax
	mov %eax, %ebp
	and $63, %ebp
	cmp $32, %ebp
	cmovb %rax, %rdx
	lea 3(%rdx, %rbp, 4), %rdx
	dec %ecx
	jnz 8b
	mov %rdx, 65544(%r13)
	dec %r12
	jnz iteration
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret
	.section .note.GNU-stack, "", @progbits
