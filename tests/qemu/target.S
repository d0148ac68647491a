# Guest of the debugger's tests: a Multiboot kernel in 32-bit protected mode. It counts for ever; a debugger stops it by storing 1 in `leave`,
# then it ends QEMU through isa-debug-exit with the value 21 (status 43).
        .text
        .align 4
        .long 0x1badb002, 0, -0x1badb002
        .text
        .globl _start, tick, tock, counter, leave
_start: movl $stack, %esp
        movl $0, counter
again:  call tick
        call tock
        cmpl $0, leave
        je again
        movl $21, %eax
        outl %eax, $0xf4
dead:   hlt
        jmp dead
tick:   incl counter
        movl counter, %eax
        movl $0x1234, %ecx
        addl %eax, %ecx
        ret
tock:   movl counter, %edx
        movl %edx, copy
        ret
        .data
        .align 4
counter: .long 0
copy:   .long 0
leave:  .long 0
        .bss
        .align 16
        .skip 4096
stack:
