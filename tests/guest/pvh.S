# A PVH kernel in an ELF file of class 32 for x86-64: prints its command line to COM1 and leaves through the debug-exit port: 16, or 17 when the start info has not its magic.
# Build: gcc -mx32 -nostdlib -static -no-pie -Wl,-n,-Ttext=ADDRESS,--build-id=none -o pvh pvh.S
        .code32
        .section .note.Xen, "a", @note
        .long   4, 4, 18                        # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start
        .text
        .globl  _start
_start: movl    $17, %ebp
        cmpl    $0x336ec578, (%ebx)
        jne     leave
        movl    24(%ebx), %esi
        movw    $0x3f8, %dx
1:      lodsb
        testb   %al, %al
        jz      good
        outb    %al, %dx
        jmp     1b
good:   decl    %ebp
leave:  movl    %ebp, %eax
        movw    $0xf4, %dx
        outl    %eax, %dx
        cli
        hlt
