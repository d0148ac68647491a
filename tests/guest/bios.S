# A boot sector that asks the BIOS for what a PC's has: the memory size of INT 12h and of the data area, a tick that wakes HLT, a key that is waited for, a block moved above 1 MiB. Prints "bios KEY" and leaves through the
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
        incl    %ebp
        pushw   %ds                             # check 5: a block moved to 1 MiB, and back to behind this sector
        popw    %es
        movw    $256, %cx
        movw    $up, %si
        movb    $0x87, %ah
        int     $0x15
        jc      leave
        movw    $256, %cx
        movw    $down, %si
        movb    $0x87, %ah
        int     $0x15
        jc      leave
        movw    $_start, %si
        movw    $0x7e00, %di
        movw    $256, %cx
        repe    cmpsw
        jne     leave
        movl    $16, %ebp
leave:  movl    %ebp, %eax
        movw    $0xf4, %dx
        outl    %eax, %dx
        cli
        hlt
text:   .asciz  "bios "
        .macro  move from, to                   # INT 15h's table: two descriptors of its own, source, destination, two more
        .fill   16, 1, 0
        .word   0xffff, \from & 0xffff
        .byte   \from >> 16, 0x93, 0, 0
        .word   0xffff, \to & 0xffff
        .byte   \to >> 16, 0x93, 0, 0
        .fill   16, 1, 0
        .endm
up:     move    0x7c00, 0x100000
down:   move    0x100000, 0x7e00
        .org    510
        .word   0xaa55
