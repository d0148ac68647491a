# Branches: a bytecode interpreter (jump table), data-dependent conditional branches, indirect calls and recursion. About 1 M instructions an iteration.
	.text
	.globl kernel_run
kernel_run:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rdi, %r12
	mov %rsi, %r13
	mov $88172645463325252, %r14
iteration:
	# 1. A program of 4096 random byte codes, run 8 times.
	xor %ecx, %ecx
1:	call random
	mov %eax, %edx
	and $7, %edx
	mov %dl, (%r13, %rcx)
	inc %ecx
	cmp $4096, %ecx
	jb 1b
	movb $8, (%r13, %rcx)
	lea table(%rip), %r15
	mov $8, %ebp
2:	mov %r13, %rsi
	xor %eax, %eax
	mov $1, %edx
	jmp next
op0:	add %rdx, %rax
	jmp next
op1:	sub %rdx, %rax
	jmp next
op2:	xor %rax, %rdx
	jmp next
op3:	lea 1(%rdx, %rdx, 2), %rdx
	jmp next
op4:	shr $1, %rax
	jmp next
op5:	test $1, %al
	jz next
	inc %rdx
	jmp next
op6:	cmp %rax, %rdx
	ja next
	xchg %rax, %rdx
	jmp next
op7:	neg %rax
next:	movzbl (%rsi), %ebx
	inc %rsi
	jmp *(%r15, %rbx, 8)
op8:	dec %ebp
	jnz 2b
	# 2. Unpredictable conditional branches.
	mov $20000, %ecx
	xor %ebx, %ebx
3:	call random
	test $1, %al
	jz 4f
	inc %ebx
	test $2, %al
	jnz 5f
	add $3, %ebx
	jmp 5f
4:	sub $2, %ebx
	test $4, %al
	jz 5f
	xor $5, %ebx
5:	dec %ecx
	jnz 3b
	# 3. Indirect calls.
	lea calls(%rip), %r15
	mov $10000, %ecx
6:	mov %ecx, %edx
	imul $0x9e3779b1, %edx, %edx
	shr $30, %edx
	call *(%r15, %rdx, 8)
	dec %ecx
	jnz 6b
	# 4. Recursion.
	mov $17, %edi
	call fibonacci
	dec %r12
	jnz iteration
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret

random:
	mov %r14, %rax
	shl $13, %rax
	xor %rax, %r14
	mov %r14, %rax
	shr $7, %rax
	xor %rax, %r14
	mov %r14, %rax
	shl $17, %rax
	xor %rax, %r14
	mov %r14, %rax
	ret

fibonacci:
	cmp $2, %edi
	jb 1f
	push %rdi
	dec %edi
	call fibonacci
	pop %rdi
	push %rax
	sub $2, %edi
	call fibonacci
	pop %rdx
	add %rdx, %rax
	ret
1:	mov %edi, %eax
	ret

call0:	add $1, %rbx
	ret
call1:	sub $3, %rbx
	ret
call2:	xor $7, %rbx
	ret
call3:	rol $5, %rbx
	ret

	.data
	.balign 8
table:	.quad op0, op1, op2, op3, op4, op5, op6, op7, op8
calls:	.quad call0, call1, call2, call3
	.section .note.GNU-stack, "", @progbits
