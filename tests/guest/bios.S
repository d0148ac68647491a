# A boot sector that asks the BIOS for what a PC's has: the memory size of INT 12h and of the data area, a tick that wakes HLT, a key that is waited for. Prints "bios KEY" and leaves through the
# debug-exit port: 16, or 17 + N when the check N fails.
# Build: gcc -m32 -nostdlib -static -no-pie -Wl,-n,-Ttext=0x7c00,--build-id=none,--oformat=binary -o bios bios.S
        .code16
        .text
        .globl  _start
_start: xorw    %ax, %ax
        movw    %ax, %ds
        movl    $17, %ebp
        int     $0x12
        cmpw    0x413, %ax                      # check 0: memory in KiB
        jne     leave
        incl    %ebp
        movw    0x40e, %bx                      # check 1: the EBDA lies behind it
        shlw    $6, %ax
        cmpw    %bx, %ax
        jne     leave
        incl    %ebp
        movw    %bx, %es
        cmpb    $1, %es:0                       # check 2: and says how large it is
        jne     leave
        movl    0x46c, %ebx                     # three ticks: without them this sleeps for ever
        addl    $3, %ebx
        sti
1:      hlt
        cmpl    0x46c, %ebx
        jg      1b
        movw    $text, %si
2:      lodsb
        testb   %al, %al
        jz      3f
        movb    $0x0e, %ah
        int     $0x10
        jmp     2b
3:      incl    %ebp
        xorw    %ax, %ax                        # a key, waited for
        int     $0x16
        cmpw    $0x256b, %ax                    # check 3: 'k' with its scan code
        jne     leave
        movb    $0x0e, %ah
        int     $0x10
        incl    %ebp
        movb    $1, %ah                         # check 4: no other
        int     $0x16
        jnz     leave
        movl    $16, %ebp
leave:  movl    %ebp, %eax
        movw    $0xf4, %dx
        outl    %eax, %dx
        cli
        hlt
text:   .asciz  "bios "
        .org    510
        .word   0xaa55
