# Multiboot image that runs one benchmark kernel: 32-bit entry, identity-mapped long mode, kernel_run(iterations, arena), then the debug-exit port 0xf4.
# The number of iterations is the last word of the command line, decimal. Linked as a flat binary at 1 MiB; memory up to 64 MiB is needed.
# Assembled with USER_KERNEL for the kernel that needs rings, system calls and page faults: it then runs in ring 3 on top of the few services below.

	.set MAGIC, 0x1badb002
	.set FLAGS, 0x00010000
	.set ARENA, 0x1000000		# 16 MiB at 16 MiB
	.set REGION, 0x40000000		# demand-mapped pages
	.set REGION_PAGES, 64
	.set KERNEL_CS32, 0x08
	.set KERNEL_CS, 0x10
	.set KERNEL_DS, 0x18
	.set USER_BASE, 0x23		# SYSRET: SS = +8, CS = +16
	.set USER_DS, 0x2b
	.set USER_CS, 0x33
	.set TSS, 0x38
	.set EXIT_PORT, 0xf4

	.section .boot, "awx"
	.code32
	.globl _start
_start:
	jmp entry
	.balign 4
header:
	.long MAGIC, FLAGS, -(MAGIC + FLAGS)
	.long header, _start, _edata, _end, entry
entry:
	cld
	mov $stack_top, %esp
	mov 16(%ebx), %esi		# multiboot information: command line
	# The last word of the command line into EBP.
	xor %ebp, %ebp
1:	lodsb
	test %al, %al
	jz 3f
	sub $'0', %al
	cmp $9, %al
	ja 2f
	movzbl %al, %eax
	imul $10, %ebp, %ebp
	add %eax, %ebp
	jmp 1b
2:	xor %ebp, %ebp
	jmp 1b
3:
	# Identity map of the first GiB with 2 MiB pages; the second GiB is the demand-mapped region.
	movl $pdpt + 7, pml4
	movl $pd + 7, pdpt
	movl $pd_region + 7, pdpt + 8
	movl $pt_region + 7, pd_region
	mov $pd, %edi
	mov $0x87, %eax
	mov $512, %ecx
4:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $8, %edi
	add $0x200000, %eax
	loop 4b
	mov $pml4, %eax
	mov %eax, %cr3
	mov $0x620, %eax		# PAE, OSFXSR, OSXMMEXCPT
	mov %eax, %cr4
	mov $0xc0000080, %ecx
	rdmsr
	or $0x101, %eax			# LME, SCE
	wrmsr
	mov $0x80010033, %eax		# PG, WP, NE, ET, MP, PE
	mov %eax, %cr0
	lgdt gdt_pointer
	ljmp $KERNEL_CS, $long_mode

	.code64
long_mode:
	mov $KERNEL_DS, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $stack_top, %rsp
	mov %ebp, %ebp
	# IDT: everything fails except #PF.
	mov $idt, %rdi
	mov $failed, %rax
	mov $256, %ecx
1:	call set_gate
	add $16, %rdi
	loop 1b
	mov $idt + 14 * 16, %rdi
	mov $page_fault, %rax
	call set_gate
	lidt idt_pointer(%rip)
	# TSS
	movq $kernel_stack_top, tss + 4
	movw $0x67, tss + 102
	mov $tss, %rax
	mov %ax, gdt + TSS + 2
	shr $16, %rax
	mov %al, gdt + TSS + 4
	mov %ah, gdt + TSS + 7
	mov $TSS, %eax
	ltr %ax
	# SYSCALL
	mov $0xc0000081, %ecx
	xor %eax, %eax
	mov $USER_BASE << 16 | KERNEL_CS, %edx
	wrmsr
	inc %ecx
	mov $system_call, %eax
	xor %edx, %edx
	wrmsr
	mov $0xc0000084, %ecx
	mov $0x600, %eax
	wrmsr
	mov %rbp, %rdi
#ifdef USER_KERNEL
	mov $REGION, %rsi
	pushq $USER_DS
	pushq $user_stack_top
	pushq $2
	pushq $USER_CS
	pushq $user_entry
	iretq
user_entry:
	call kernel_run
	mov $60, %eax
	syscall
#else
	mov $ARENA, %rsi
	call kernel_run
	jmp done
#endif

set_gate:
	mov %ax, (%rdi)
	movw $KERNEL_CS, 2(%rdi)
	movw $0x8e00, 4(%rdi)
	mov %rax, %rdx
	shr $16, %rdx
	mov %dx, 6(%rdi)
	shr $16, %rdx
	mov %edx, 8(%rdi)
	ret

system_call:
	swapgs
	mov %rsp, user_rsp
	mov $kernel_stack_top, %rsp
	push %rcx
	push %r11
	push %rdi
	push %rsi
	push %rdx
	cmp $110, %eax
	je get_parent
	cmp $28, %eax
	je discard
	cmp $60, %eax
	je done
	mov $-38, %rax
	jmp leave_call
get_parent:
	mov $1, %eax
	jmp leave_call
discard:
	mov $pt_region, %rdi
	mov $REGION_PAGES, %ecx
	xor %eax, %eax
	rep stosq
	mov %cr3, %rax
	mov %rax, %cr3
	xor %eax, %eax
leave_call:
	pop %rdx
	pop %rsi
	pop %rdi
	pop %r11
	pop %rcx
	mov user_rsp, %rsp
	swapgs
	sysretq

page_fault:
	push %rax
	push %rcx
	push %rdi
	mov %cr2, %rax
	sub $REGION, %rax
	shr $12, %rax
	cmp $REGION_PAGES, %rax
	jae failed
	mov %rax, %rdi
	shl $12, %rdi
	add $ARENA, %rdi
	lea 7(%rdi), %rcx
	mov %rcx, pt_region(, %rax, 8)
	mov $512, %ecx
	xor %eax, %eax
	rep stosq
	pop %rdi
	pop %rcx
	pop %rax
	add $8, %rsp
	iretq

done:
	mov $0x10, %eax			# status 33
	jmp leave
failed:
	mov $0x11, %eax			# status 35
leave:
	mov $EXIT_PORT, %edx
	out %eax, %dx
	cli
1:	hlt
	jmp 1b

	.balign 16
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff	# 32-bit kernel code
	.quad 0x00af9b000000ffff	# 64-bit kernel code
	.quad 0x00cf93000000ffff	# kernel data
	.quad 0x00cffb000000ffff	# 32-bit user code
	.quad 0x00cff3000000ffff	# user data
	.quad 0x00affb000000ffff	# 64-bit user code
	.quad 0x0000890000000067, 0	# TSS
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt
idt_pointer:
	.word 256 * 16 - 1
	.quad idt

	.bss
	.balign 4096
pml4:		.skip 4096
pdpt:		.skip 4096
pd:		.skip 4096
pd_region:	.skip 4096
pt_region:	.skip 4096
idt:		.skip 4096
tss:		.skip 128
user_rsp:	.skip 8
	.balign 16
		.skip 16384
stack_top:
		.skip 16384
kernel_stack_top:
		.skip 16384
user_stack_top:
	.section .note.GNU-stack, "", @progbits
