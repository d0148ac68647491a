# A Multiboot 1 kernel that prints its command line, then name and bytes of each module, to COM1, and leaves through the debug-exit port: 16, or 17 when the loader's magic is wrong.
# Build: gcc -m32 -nostdlib -static -no-pie -Wl,-n,-Ttext=0x100000,--build-id=none -o multiboot multiboot.S
        .set    FLAGS, 3                        # page-aligned modules, memory information
        .text
        .globl  _start
        .align  4
        .long   0x1badb002, FLAGS, -(0x1badb002 + FLAGS)
_start: movl    $stack, %esp
        movl    $17, %ebp
        cmpl    $0x2badb002, %eax
        jne     leave
        testl   $0x0c, (%ebx)                   # command line and modules are there
        jz      leave
        movl    16(%ebx), %esi
        call    string
        call    newline
        movl    20(%ebx), %ecx                  # mods_count
        movl    24(%ebx), %edi                  # mods_addr: start, end, string, reserved
module: jecxz   good
        movl    8(%edi), %esi
        call    string
        movb    $':', %al
        call    putc
        movl    (%edi), %esi
        testl   $0xfff, %esi
        jnz     leave
1:      cmpl    4(%edi), %esi
        jae     2f
        lodsb
        call    putc
        jmp     1b
2:      call    newline
        addl    $16, %edi
        decl    %ecx
        jmp     module
good:   decl    %ebp
leave:  movl    %ebp, %eax
        outl    %eax, $0xf4
        cli
        hlt

newline:
        movb    $'\n', %al
putc:   pushl   %edx
        movb    %al, %ah
        movw    $0x3fd, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movb    %ah, %al
        movw    $0x3f8, %dx
        outb    %al, %dx
        popl    %edx
        ret

string: lodsb
        testb   %al, %al
        jz      1f
        call    putc
        jmp     string
1:      ret

        .bss
        .skip   4096
stack:
