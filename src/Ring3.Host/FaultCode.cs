namespace Ring3.Host;

/// <summary>
/// Machine code of the accessors whose faults are fixed up, and of the handler that does it. System V calling convention; leaf routines without a stack frame, so that a fix-up is a change of RIP and nothing else.
/// </summary>
/// <remarks>
/// Accessors return 0 in RAX; the fix-up returns 1. None touches a callee-saved register, except CompareExchange16, which keeps RBX in R9 and has a fix-up of its own.
/// SAFETY: constant bytes; <see cref="FaultGuard"/> places them and patches the address in the handler.
/// </remarks>
internal static class FaultCode
{
    /// <summary>copy(rdi = to, rsi = from, rdx = bytes). Forward order from 512 bytes on; shorter copies may write the end first.</summary>
    internal static ReadOnlySpan<byte> Copy =>
    [
        0x48, 0x83, 0xFA, 0x10,                         // cmp rdx, 16
        0x72, 0x33,                                     // jb under16
        0x48, 0x81, 0xFA, 0x00, 0x02, 0x00, 0x00,       // cmp rdx, 512
        0x73, 0x53,                                     // jae long
        0xF3, 0x0F, 0x6F, 0x4C, 0x16, 0xF0,             // movdqu xmm1, [rsi+rdx-16]
        0x48, 0x8D, 0x4A, 0xF0,                         // lea rcx, [rdx-16]
        0x31, 0xC0,                                     // xor eax, eax
        0xEB, 0x0E,                                     // jmp test
        0xF3, 0x0F, 0x6F, 0x04, 0x06,                   // loop: movdqu xmm0, [rsi+rax]
        0xF3, 0x0F, 0x7F, 0x04, 0x07,                   // movdqu [rdi+rax], xmm0
        0x48, 0x83, 0xC0, 0x10,                         // add rax, 16
        0x48, 0x39, 0xC8,                               // test: cmp rax, rcx
        0x72, 0xED,                                     // jb loop
        0xF3, 0x0F, 0x7F, 0x4C, 0x17, 0xF0,             // movdqu [rdi+rdx-16], xmm1
        0x31, 0xC0,                                     // xor eax, eax
        0xC3,                                           // ret
        0x83, 0xFA, 0x08,                               // under16: cmp edx, 8
        0x72, 0x13,                                     // jb under8
        0x48, 0x8B, 0x06,                               // mov rax, [rsi]
        0x48, 0x8B, 0x4C, 0x16, 0xF8,                   // mov rcx, [rsi+rdx-8]
        0x48, 0x89, 0x07,                               // mov [rdi], rax
        0x48, 0x89, 0x4C, 0x17, 0xF8,                   // mov [rdi+rdx-8], rcx
        0x31, 0xC0,                                     // xor eax, eax
        0xC3,                                           // ret
        0x31, 0xC0,                                     // under8: xor eax, eax
        0x39, 0xD0,                                     // bytes: cmp eax, edx
        0x73, 0x10,                                     // jae done
        0x0F, 0xB6, 0x0C, 0x06,                         // movzx ecx, byte [rsi+rax]
        0x88, 0x0C, 0x07,                               // mov [rdi+rax], cl
        0xFF, 0xC0,                                     // inc eax
        0xEB, 0xF1,                                     // jmp bytes
        0x48, 0x89, 0xD1,                               // long: mov rcx, rdx
        0xF3, 0xA4,                                     // rep movsb
        0x31, 0xC0,                                     // done: xor eax, eax
        0xC3,                                           // ret
    ];

    /// <summary>fill(rdi = to, esi = value, rdx = bytes).</summary>
    internal static ReadOnlySpan<byte> Fill =>
    [
        0x89, 0xF0,                                     // mov eax, esi
        0x48, 0x89, 0xD1,                               // mov rcx, rdx
        0xF3, 0xAA,                                     // rep stosb
        0x31, 0xC0, 0xC3,                               // xor eax, eax; ret
    ];

    /// <summary>load(rdi = from, rsi = to), one access each.</summary>
    internal static ReadOnlySpan<byte> Load1 => [0x0F, 0xB6, 0x07, 0x88, 0x06, 0x31, 0xC0, 0xC3];
    /// <inheritdoc cref="Load1"/>
    internal static ReadOnlySpan<byte> Load2 => [0x0F, 0xB7, 0x07, 0x66, 0x89, 0x06, 0x31, 0xC0, 0xC3];
    /// <inheritdoc cref="Load1"/>
    internal static ReadOnlySpan<byte> Load4 => [0x8B, 0x07, 0x89, 0x06, 0x31, 0xC0, 0xC3];
    /// <inheritdoc cref="Load1"/>
    internal static ReadOnlySpan<byte> Load8 => [0x48, 0x8B, 0x07, 0x48, 0x89, 0x06, 0x31, 0xC0, 0xC3];

    /// <summary>store(rdi = to, rsi = value), one access each.</summary>
    internal static ReadOnlySpan<byte> Store1 => [0x40, 0x88, 0x37, 0x31, 0xC0, 0xC3];
    /// <inheritdoc cref="Store1"/>
    internal static ReadOnlySpan<byte> Store2 => [0x66, 0x89, 0x37, 0x31, 0xC0, 0xC3];
    /// <inheritdoc cref="Store1"/>
    internal static ReadOnlySpan<byte> Store4 => [0x89, 0x37, 0x31, 0xC0, 0xC3];
    /// <inheritdoc cref="Store1"/>
    internal static ReadOnlySpan<byte> Store8 => [0x48, 0x89, 0x37, 0x31, 0xC0, 0xC3];

    /// <summary>
    /// move(rdi = to, rsi = from, rdx = elements), forward or backward as REP MOVS does it, whatever the overlap. Returns the elements not moved; a fault continues behind the REP MOVS.
    /// </summary>
    internal static byte[] Move(int size, bool backward)
    {
        byte[] rep = size switch { 1 => [0xF3, 0xA4], 2 => [0xF3, 0x66, 0xA5], 4 => [0xF3, 0xA5], _ => [0xF3, 0x48, 0xA5] };
        // mov rcx, rdx; std; rep movs; cld; mov rax, rcx; ret
        return backward ? [0x48, 0x89, 0xD1, 0xFD, .. rep, .. Moved] : [0x48, 0x89, 0xD1, .. rep, .. Moved];
    }

    /// <summary>The end of <see cref="Move"/>: cld; mov rax, rcx; ret.</summary>
    internal static ReadOnlySpan<byte> Moved => [0xFC, 0x48, 0x89, 0xC8, 0xC3];

    /// <summary>touch(rdi = address): a write that changes nothing, atomic. LOCK OR byte [rdi], 0.</summary>
    internal static ReadOnlySpan<byte> Touch => [0xF0, 0x80, 0x0F, 0x00, 0x31, 0xC0, 0xC3];

    /// <summary>compareExchange(rdi = address, rsi = value, rdx = pointer to the comparand, which receives the value found).</summary>
    internal static ReadOnlySpan<byte> CompareExchange1 => [0x0F, 0xB6, 0x02, 0xF0, 0x40, 0x0F, 0xB0, 0x37, 0x88, 0x02, 0x31, 0xC0, 0xC3];
    /// <inheritdoc cref="CompareExchange1"/>
    internal static ReadOnlySpan<byte> CompareExchange4 => [0x8B, 0x02, 0xF0, 0x0F, 0xB1, 0x37, 0x89, 0x02, 0x31, 0xC0, 0xC3];
    /// <inheritdoc cref="CompareExchange1"/>
    internal static ReadOnlySpan<byte> CompareExchange8 => [0x48, 0x8B, 0x02, 0xF0, 0x48, 0x0F, 0xB1, 0x37, 0x48, 0x89, 0x02, 0x31, 0xC0, 0xC3];

    /// <summary>As <see cref="CompareExchange1"/> for 16 bytes at a multiple of 16; rsi points to the value.</summary>
    internal static ReadOnlySpan<byte> CompareExchange16 =>
    [
        0x49, 0x89, 0xD9,                               // mov r9, rbx
        0x49, 0x89, 0xD0,                               // mov r8, rdx
        0x48, 0x8B, 0x1E,                               // mov rbx, [rsi]
        0x48, 0x8B, 0x4E, 0x08,                         // mov rcx, [rsi+8]
        0x48, 0x8B, 0x02,                               // mov rax, [rdx]
        0x48, 0x8B, 0x52, 0x08,                         // mov rdx, [rdx+8]
        0xF0, 0x48, 0x0F, 0xC7, 0x0F,                   // lock cmpxchg16b [rdi]
        0x49, 0x89, 0x00,                               // mov [r8], rax
        0x49, 0x89, 0x50, 0x08,                         // mov [r8+8], rdx
        0x31, 0xC0,                                     // xor eax, eax
        0x4C, 0x89, 0xCB,                               // mov rbx, r9
        0xC3,                                           // ret
    ];

    /// <summary>Where a fault inside CompareExchange16 continues; it runs on into <see cref="Failed"/>'s bytes.</summary>
    internal static ReadOnlySpan<byte> Failed16 => [0x4C, 0x89, 0xCB, 0xB8, 0x01, 0x00, 0x00, 0x00, 0xC3];
    /// <summary>Where a fault inside every other accessor continues: mov eax, 1; ret.</summary>
    internal static ReadOnlySpan<byte> Failed => [0xB8, 0x01, 0x00, 0x00, 0x00, 0xC3];

    /// <summary>Offset of the address of the control block in <see cref="Handler"/>, see FaultGuard.Control.</summary>
    internal const int HandlerControl = 2;

    /// <summary>
    /// handler(edi = signal, rsi = siginfo, rdx = ucontext). What it does not know goes to the previous action with the registers and the stack as they came, so that a previous handler cannot tell
    /// the difference. A previous default action is put back and the instruction runs again.
    /// </summary>
    internal static ReadOnlySpan<byte> Handler =>
    [
        0x48, 0xB9, 0, 0, 0, 0, 0, 0, 0, 0,             // movabs rcx, control
        0x83, 0x7E, 0x08, 0x00,                         // cmp dword [rsi+8], 0  ; si_code: only faults that the kernel raised
        0x0F, 0x8E, 0xAB, 0x01, 0x00, 0x00,             // jle chain
        0x83, 0xFF, 0x0B,                               // cmp edi, 11
        0x75, 0x36,                                     // jne known
        0x4C, 0x8B, 0x46, 0x10,                         // mov r8, [rsi+16]
        0x4C, 0x8B, 0x89, 0x80, 0x00, 0x00, 0x00,       // mov r9, [rcx+128]  ; paged memory
        0x4C, 0x3B, 0x89, 0x88, 0x00, 0x00, 0x00,       // paged: cmp r9, [rcx+136]
        0x73, 0x22,                                     // jae known
        0x4D, 0x3B, 0x01,                               // cmp r8, [r9]
        0x72, 0x06,                                     // jb other
        0x4D, 0x3B, 0x41, 0x08,                         // cmp r8, [r9+8]
        0x72, 0x06,                                     // jb wait
        0x49, 0x83, 0xC1, 0x10,                         // other: add r9, 16
        0xEB, 0xE6,                                     // jmp paged
        0x48, 0x8D, 0xB9, 0x90, 0x00, 0x00, 0x00,       // wait: lea rdi, [rcx+144]  ; nanosleep, and the instruction runs again
        0x31, 0xF6,                                     // xor esi, esi
        0xB8, 0x23, 0x00, 0x00, 0x00,                   // mov eax, 35
        0x0F, 0x05,                                     // syscall
        0xC3,                                           // ret
        0x48, 0x8B, 0x82, 0xA8, 0x00, 0x00, 0x00,       // known: mov rax, [rdx+0xA8]  ; RIP
        0x4C, 0x8B, 0x49, 0x40,                         // mov r9, [rcx+64]  ; routines
        0x4D, 0x8B, 0x01,                               // next: mov r8, [r9]  ; begin; 0 ends the table
        0x4D, 0x85, 0xC0,                               // test r8, r8
        0x74, 0x40,                                     // jz managed
        0x4C, 0x39, 0xC0,                               // cmp rax, r8
        0x72, 0x35,                                     // jb skip
        0x49, 0x3B, 0x41, 0x08,                         // cmp rax, [r9+8]
        0x73, 0x2F,                                     // jae skip
        0x4D, 0x8B, 0x41, 0x10,                         // mov r8, [r9+16]
        0x49, 0x83, 0xF8, 0x02,                         // cmp r8, 2
        0x77, 0x1D,                                     // ja resume
        0x41, 0xBA, 0x01, 0x00, 0x00, 0x00,             // mov r10d, 1
        0x72, 0x3A,                                     // jb guest
        0x66, 0x81, 0x78, 0xF5, 0x0F, 0x85,             // cmp word [rax-11], 0x850F  ; a run: the jump to this instruction's exit is in front of it
        0x0F, 0x85, 0x34, 0x01, 0x00, 0x00,             // jne chain
        0x4C, 0x63, 0x40, 0xF7,                         // movsxd r8, dword [rax-9]
        0x4E, 0x8D, 0x44, 0x00, 0xFB,                   // lea r8, [rax+r8-5]
        0x4C, 0x89, 0x82, 0xA8, 0x00, 0x00, 0x00,       // resume: mov [rdx+0xA8], r8
        0xC3,                                           // ret
        0x49, 0x83, 0xC1, 0x18,                         // skip: add r9, 24
        0xEB, 0xB8,                                     // jmp next
        0x45, 0x31, 0xD2,                               // managed: xor r10d, r10d  ; not in emitted code
        0x48, 0x3B, 0x41, 0x70,                         // cmp rax, [rcx+112]
        0x0F, 0x82, 0x10, 0x01, 0x00, 0x00,             // jb chain
        0x48, 0x3B, 0x41, 0x78,                         // cmp rax, [rcx+120]
        0x0F, 0x83, 0x06, 0x01, 0x00, 0x00,             // jae chain
        0x4C, 0x8B, 0x46, 0x10,                         // guest: mov r8, [rsi+16]
        0x4C, 0x8B, 0x49, 0x48,                         // mov r9, [rcx+72]
        0x4C, 0x8B, 0x59, 0x50,                         // mov r11, [rcx+80]  ; registered guest memory
        0x4D, 0x39, 0xD9,                               // range: cmp r9, r11
        0x0F, 0x83, 0xF1, 0x00, 0x00, 0x00,             // jae chain
        0x4D, 0x3B, 0x01,                               // cmp r8, [r9]
        0x72, 0x06,                                     // jb after
        0x4D, 0x3B, 0x41, 0x08,                         // cmp r8, [r9+8]
        0x72, 0x06,                                     // jb thread
        0x49, 0x83, 0xC1, 0x10,                         // after: add r9, 16
        0xEB, 0xE6,                                     // jmp range
        0x64, 0x4C, 0x8B, 0x0C, 0x25, 0x00, 0x00, 0x00, 0x00, // thread: mov r9, fs:[0]  ; the thread's record
        0x4C, 0x89, 0xC8,                               // mov rax, r9
        0x48, 0xC1, 0xE8, 0x06,                         // shr rax, 6
        0x69, 0xC0, 0xB1, 0x79, 0x37, 0x9E,             // imul eax, eax, 0x9E3779B1
        0xC1, 0xE8, 0x14,                               // shr eax, 20
        0x41, 0x89, 0xC3,                               // probe: mov r11d, eax
        0x49, 0xC1, 0xE3, 0x0A,                         // shl r11, 10
        0x4C, 0x03, 0x59, 0x58,                         // add r11, [rcx+88]
        0x4D, 0x39, 0x0B,                               // cmp [r11], r9
        0x74, 0x13,                                     // je found
        0x49, 0x83, 0x3B, 0x00,                         // cmp qword [r11], 0
        0x0F, 0x84, 0xAD, 0x00, 0x00, 0x00,             // je chain
        0xFF, 0xC0,                                     // inc eax
        0x25, 0xFF, 0x0F, 0x00, 0x00,                   // and eax, 4095
        0xEB, 0xDD,                                     // jmp probe
        0x41, 0x83, 0x7B, 0x28, 0x00,                   // found: cmp dword [r11+40], 0  ; inside the guest?
        0x0F, 0x84, 0x99, 0x00, 0x00, 0x00,             // je chain
        0x45, 0x85, 0xD2,                               // test r10d, r10d
        0x74, 0x2F,                                     // jz record
        0x4C, 0x8B, 0x8A, 0xA0, 0x00, 0x00, 0x00,       // mov r9, [rdx+0xA0]  ; a thunk: leave its frame
        0x49, 0x8B, 0x01,                               // mov rax, [r9]
        0x48, 0x3B, 0x41, 0x60,                         // cmp rax, [rcx+96]
        0x72, 0x0D,                                     // jb leaf
        0x48, 0x3B, 0x41, 0x68,                         // cmp rax, [rcx+104]
        0x73, 0x07,                                     // jae leaf
        0x49, 0x83, 0xC1, 0x10,                         // add r9, 16
        0x49, 0x8B, 0x01,                               // mov rax, [r9]
        0x49, 0x83, 0xC1, 0x08,                         // leaf: add r9, 8
        0x4C, 0x89, 0x8A, 0xA0, 0x00, 0x00, 0x00,       // mov [rdx+0xA0], r9
        0x48, 0x89, 0x82, 0xA8, 0x00, 0x00, 0x00,       // mov [rdx+0xA8], rax
        0x4D, 0x89, 0x43, 0x08,                         // record: mov [r11+8], r8  ; address
        0x48, 0x8B, 0x82, 0xC0, 0x00, 0x00, 0x00,       // mov rax, [rdx+0xC0]  ; error code of the fault
        0x49, 0x89, 0x43, 0x10,                         // mov [r11+16], rax
        0x41, 0xC7, 0x43, 0x2C, 0x01, 0x00, 0x00, 0x00, // mov dword [r11+44], 1
        0x4C, 0x8B, 0x8A, 0xE0, 0x00, 0x00, 0x00,       // mov r9, [rdx+0xE0]  ; x87 and MXCSR as they were; the thread goes on with clean ones
        0x4D, 0x85, 0xC9,                               // test r9, r9
        0x74, 0x2F,                                     // jz raise
        0x49, 0x89, 0xF2,                               // mov r10, rsi
        0x4C, 0x89, 0xCE,                               // mov rsi, r9
        0x49, 0x8D, 0x7B, 0x40,                         // lea rdi, [r11+64]
        0x49, 0x89, 0xC8,                               // mov r8, rcx
        0xB9, 0x40, 0x00, 0x00, 0x00,                   // mov ecx, 64
        0xF3, 0x48, 0xA5,                               // rep movsq
        0x4C, 0x89, 0xC1,                               // mov rcx, r8
        0x4C, 0x89, 0xD6,                               // mov rsi, r10
        0x41, 0xC7, 0x01, 0x7F, 0x03, 0x00, 0x00,       // mov dword [r9], 0x37F
        0x41, 0xC6, 0x41, 0x04, 0x00,                   // mov byte [r9+4], 0
        0x41, 0xC7, 0x41, 0x18, 0x80, 0x1F, 0x00, 0x00, // mov dword [r9+24], 0x1F80
        0xBF, 0x0B, 0x00, 0x00, 0x00,                   // raise: mov edi, 11  ; a null reference for the runtime
        0x89, 0x3E,                                     // mov [rsi], edi
        0xC7, 0x46, 0x08, 0x01, 0x00, 0x00, 0x00,       // mov dword [rsi+8], 1
        0x48, 0x83, 0x66, 0x10, 0x00,                   // and qword [rsi+16], 0
        0x83, 0xFF, 0x07,                               // chain: cmp edi, 7
        0x75, 0x04,                                     // jne load
        0x48, 0x83, 0xC1, 0x20,                         // add rcx, 32
        0x48, 0x8B, 0x01,                               // load: mov rax, [rcx]
        0x48, 0x83, 0xF8, 0x01,                         // cmp rax, 1
        0x76, 0x02,                                     // jbe default
        0xFF, 0xE0,                                     // jmp rax
        0x48, 0x89, 0xCE,                               // default: mov rsi, rcx
        0x31, 0xD2,                                     // xor edx, edx
        0x41, 0xBA, 0x08, 0x00, 0x00, 0x00,             // mov r10d, 8
        0xB8, 0x0D, 0x00, 0x00, 0x00,                   // mov eax, 13
        0x0F, 0x05,                                     // syscall
        0xC3,                                           // ret
    ];

    /// <summary>mov eax, SYS_rt_sigreturn; syscall.</summary>
    internal static ReadOnlySpan<byte> Restorer => [0xB8, 0x0F, 0x00, 0x00, 0x00, 0x0F, 0x05];

    /// <summary>run(rdi = first entry, rsi = end): see <see cref="SystemCallList"/>. An entry with a negative number reads a word and masks it.</summary>
    internal static ReadOnlySpan<byte> RunList =>
    [
        0x53,                                           // push rbx
        0x55,                                           // push rbp
        0x48, 0x89, 0xFB,                               // mov rbx, rdi
        0x48, 0x89, 0xF5,                               // mov rbp, rsi
        0x48, 0x39, 0xEB,                               // next: cmp rbx, rbp
        0x73, 0x42,                                     // jae done
        0x48, 0x8B, 0x03,                               // mov rax, [rbx]
        0x48, 0x8B, 0x7B, 0x08,                         // mov rdi, [rbx+8]
        0x48, 0x8B, 0x73, 0x10,                         // mov rsi, [rbx+16]
        0x48, 0x85, 0xC0,                               // test rax, rax
        0x78, 0x14,                                     // js mask
        0x48, 0x8B, 0x53, 0x18,                         // mov rdx, [rbx+24]
        0x4C, 0x8B, 0x53, 0x20,                         // mov r10, [rbx+32]
        0x4C, 0x8B, 0x43, 0x28,                         // mov r8, [rbx+40]
        0x4C, 0x8B, 0x4B, 0x30,                         // mov r9, [rbx+48]
        0x0F, 0x05,                                     // syscall
        0xEB, 0x06,                                     // jmp result
        0x48, 0x8B, 0x07,                               // mask: mov rax, [rdi]
        0x48, 0x21, 0xF0,                               // and rax, rsi
        0x48, 0x89, 0x43, 0x38,                         // result: mov [rbx+56], rax
        0x48, 0x3B, 0x43, 0x40,                         // cmp rax, [rbx+64]
        0x74, 0x08,                                     // je ok
        0x48, 0x6B, 0x43, 0x48, 0x50,                   // imul rax, [rbx+72], 80
        0x48, 0x01, 0xC3,                               // add rbx, rax
        0x48, 0x83, 0xC3, 0x50,                         // ok: add rbx, 80
        0xEB, 0xB9,                                     // jmp next
        0x5D,                                           // done: pop rbp
        0x5B,                                           // pop rbx
        0xC3,                                           // ret
    ];

    /// <summary>The thread pointer: mov rax, fs:[0]; ret.</summary>
    internal static ReadOnlySpan<byte> ThreadPointer => [0x64, 0x48, 0x8B, 0x04, 0x25, 0x00, 0x00, 0x00, 0x00, 0xC3];
}
