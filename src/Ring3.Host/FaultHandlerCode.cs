using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;
using static Ring3.Host.MachineCode;

namespace Ring3.Host;

/// <summary>Machine code of the process's handler of SIGSEGV and SIGBUS: <see cref="FaultGuard"/>.</summary>
/// <remarks>
/// The handler calls nothing and has no stack frame. RCX has the control block throughout; R9 goes through its tables, R11 has the thread's record. What it
/// does not know goes to the previous action with the registers and the stack as they came, so that a previous handler cannot tell the difference: RDI, RSI and
/// RDX change only where the signal is this handler's, or was made one of the runtime's.
/// SAFETY: addresses of members are taken, as offsets, of the tables that the handler will read; nothing is read through them here.
/// </remarks>
internal sealed unsafe class FaultHandlerCode(FaultControl* control)
{
    private const int SIGBUS = 7, SIGSEGV = 11, SYS_rt_sigaction = 13, SYS_rt_sigreturn = 15, SYS_nanosleep = 35, SigsetBytes = 8, SIG_IGN = 1;
    /// <summary>SPEC: struct siginfo and struct ucontext of the Linux x86-64 ABI.</summary>
    private const int SiSigno = 0, SiCode = 8, SiAddr = 16, RegRsp = 0xa0, RegRip = 0xa8, RegError = 0xc0, FpState = 0xe0;
    /// <summary>SPEC: FXSAVE image: control word, abridged tag word, MXCSR; their values after FNINIT and at reset.</summary>
    private const int FxBytes = 512, FxControl = 0, FxTags = 4, FxMxcsr = 24, InitialControl = 0x37f, InitialMxcsr = 0x1f80;
    /// <summary>The instructions in front of a run's access: JNE rel32 (0F 85), then ADD RAX, [RSI+RCX+disp8], five bytes.</summary>
    private const int AddBytes = 5, JumpBytes = 6, JumpOpcode = 0x850f;
    /// <summary>Or a NOP, 0F 1F 84 00 disp32, whose displacement leads to the exit.</summary>
    private const int NopBytes = 8, NopOpcode = 0x00841f0f;

    private readonly unsafe FaultControl* _control = control;
    private readonly unsafe FaultRoutine* _routine = control->Routines;
    private readonly unsafe GuestRange* _range = control->Ranges;
    private readonly unsafe FaultRecord* _record = control->Records;
    private Label _known, _managed, _guest, _found, _chain;

    private static unsafe int Offset(void* member, void* of) => (int)((byte*)member - (byte*)of);

    private unsafe AssemblerMemoryOperand Control(void* member) => __qword_ptr[rcx + Offset(member, _control)];
    private unsafe AssemblerMemoryOperand Routine(void* member) => __qword_ptr[r9 + Offset(member, _routine)];
    private unsafe AssemblerMemoryOperand Range(void* member) => __qword_ptr[r9 + Offset(member, _range)];
    private unsafe AssemblerMemoryOperand Record(void* member) => __qword_ptr[r11 + Offset(member, _record)];
    private unsafe AssemblerMemoryOperand RecordInt(int* member) => __dword_ptr[r11 + Offset(member, _record)];

    /// <summary>handler(edi = signal, rsi = siginfo, rdx = ucontext).</summary>
    internal unsafe byte[] Handler() => Assemble(a =>
    {
        (_known, _managed, _guest, _found, _chain) = (a.CreateLabel(), a.CreateLabel(), a.CreateLabel(), a.CreateLabel(), a.CreateLabel());
        a.mov(rcx, (ulong)_control);
        // Only faults that the kernel raised.
        a.cmp(__dword_ptr[rsi + SiCode], 0);
        a.jle(_chain);
        a.cmp(edi, SIGSEGV);
        a.jne(_known);
        WaitForPagedMemory(a);
        a.Label(ref _known);
        FixUpRoutine(a);
        a.Label(ref _managed);
        a.xor(r10d, r10d);
        a.cmp(rax, Control(&_control->CodeBegin));
        a.jb(_chain);
        a.cmp(rax, Control(&_control->CodeEnd));
        a.jae(_chain);
        a.Label(ref _guest);
        FindGuestMemory(a);
        FindRecord(a);
        a.Label(ref _found);
        a.cmp(RecordInt(&_record->Inside), 0);
        a.je(_chain);
        LeaveThunk(a);
        RecordFault(a);
        RaiseNullReference(a);
        a.Label(ref _chain);
        Chain(a);
    });

    /// <summary>A write to paged memory sleeps, and the instruction runs again.</summary>
    private unsafe void WaitForPagedMemory(Assembler a)
    {
        Label next = a.CreateLabel(), other = a.CreateLabel(), wait = a.CreateLabel();
        a.mov(r8, __[rsi + SiAddr]);
        a.mov(r9, Control(&_control->Paged));
        a.Label(ref next);
        a.cmp(r9, Control(&_control->PagedEnd));
        a.jae(_known);
        a.cmp(r8, Range(&_range->Begin));
        a.jb(other);
        a.cmp(r8, Range(&_range->End));
        a.jb(wait);
        a.Label(ref other);
        a.add(r9, sizeof(GuestRange));
        a.jmp(next);
        a.Label(ref wait);
        a.lea(rdi, Control(&_control->WaitSeconds));
        a.xor(esi, esi);
        a.mov(eax, SYS_nanosleep);
        a.syscall();
        a.ret();
    }

    /// <summary>RAX = RIP of the fault. In a registered routine it goes on at the fix-up; in emitted code R10 becomes 1 for a leaf.
    /// No routine ends the table with a begin of 0.</summary>
    private unsafe void FixUpRoutine(Assembler a)
    {
        Label next = a.CreateLabel(), skip = a.CreateLabel(), resume = a.CreateLabel(), jump = a.CreateLabel();
        a.mov(rax, __[rdx + RegRip]);
        a.mov(r9, Control(&_control->Routines));
        a.Label(ref next);
        a.mov(r8, Routine(&_routine->Begin));
        a.test(r8, r8);
        a.jz(_managed);
        a.cmp(rax, r8);
        a.jb(skip);
        a.cmp(rax, Routine(&_routine->End));
        a.jae(skip);
        a.mov(r8, Routine(&_routine->Fixup));
        a.cmp(r8, (int)ThunkKind.Run);
        a.ja(resume);
        a.mov(r10d, 1);
        a.jb(_guest);
        // A run: the jump to this instruction's exit is in front of it, or a NOP that names it.
        // The ADD of the former cannot be taken for the end of the latter's opcode.
        a.cmp(__dword_ptr[rax - NopBytes], NopOpcode);
        a.jne(jump);
        a.movsxd(r8, __dword_ptr[rax - 4]);
        a.add(r8, rax);
        a.jmp(resume);
        a.Label(ref jump);
        a.cmp(__word_ptr[rax - AddBytes - JumpBytes], JumpOpcode);
        a.jne(_chain);
        a.movsxd(r8, __dword_ptr[rax - AddBytes - 4]);
        a.lea(r8, __[rax + r8 - AddBytes]);
        a.Label(ref resume);
        a.mov(__[rdx + RegRip], r8);
        a.ret();
        a.Label(ref skip);
        a.add(r9, sizeof(FaultRoutine));
        a.jmp(next);
    }

    /// <summary>R8 = address of the fault, which must be in registered guest memory.</summary>
    private unsafe void FindGuestMemory(Assembler a)
    {
        Label next = a.CreateLabel(), after = a.CreateLabel(), thread = a.CreateLabel();
        a.mov(r8, __[rsi + SiAddr]);
        a.mov(r9, Control(&_control->Ranges));
        a.mov(r11, Control(&_control->RangesEnd));
        a.Label(ref next);
        a.cmp(r9, r11);
        a.jae(_chain);
        a.cmp(r8, Range(&_range->Begin));
        a.jb(after);
        a.cmp(r8, Range(&_range->End));
        a.jb(thread);
        a.Label(ref after);
        a.add(r9, sizeof(GuestRange));
        a.jmp(next);
        a.Label(ref thread);
    }

    /// <summary>R11 = the thread's record, by the hash of FaultGuard.Claim.</summary>
    private unsafe void FindRecord(Assembler a)
    {
        Label probe = a.CreateLabel();
        a.mov(r9, __qword_ptr.fs[0]);
        a.mov(rax, r9);
        a.shr(rax, FaultRecord.HashDrop);
        a.imul(eax, eax, unchecked((int)FaultRecord.HashFactor));
        a.shr(eax, FaultRecord.HashShift);
        a.Label(ref probe);
        a.mov(r11d, eax);
        a.shl(r11, FaultRecord.SizeShift);
        a.add(r11, Control(&_control->Records));
        a.cmp(Record(&_record->Thread), r9);
        a.je(_found);
        a.cmp(Record(&_record->Thread), 0);
        a.je(_chain);
        a.inc(eax);
        a.and(eax, FaultRecord.Count - 1);
        a.jmp(probe);
    }

    /// <summary>In emitted code (R10): RSP and RIP become those of the managed caller, with or without the trampoline's saved register in between.</summary>
    private unsafe void LeaveThunk(Assembler a)
    {
        Label record = a.CreateLabel(), leaf = a.CreateLabel();
        a.test(r10d, r10d);
        a.jz(record);
        a.mov(r9, __[rdx + RegRsp]);
        a.mov(rax, __[r9]);
        a.cmp(rax, Control(&_control->TrampolineBegin));
        a.jb(leaf);
        a.cmp(rax, Control(&_control->TrampolineEnd));
        a.jae(leaf);
        a.add(r9, 16);
        a.mov(rax, __[r9]);
        a.Label(ref leaf);
        a.add(r9, 8);
        a.mov(__[rdx + RegRsp], r9);
        a.mov(__[rdx + RegRip], rax);
        a.Label(ref record);
    }

    /// <summary>What the thread finds in its record. x87 and MXCSR are kept as they were; the thread goes on with clean ones.</summary>
    private unsafe void RecordFault(Assembler a)
    {
        Label raise = a.CreateLabel();
        a.mov(Record(&_record->Address), r8);
        a.mov(rax, __[rdx + RegError]);
        a.mov(Record(&_record->Error), rax);
        a.mov(RecordInt(&_record->Pending), 1);
        a.mov(r9, __[rdx + FpState]);
        a.test(r9, r9);
        a.jz(raise);
        a.mov(r10, rsi);
        a.mov(rsi, r9);
        a.lea(rdi, Record(_record->Units));
        a.mov(r8, rcx);
        a.mov(ecx, FxBytes / 8);
        a.rep.movsq();
        a.mov(rcx, r8);
        a.mov(rsi, r10);
        a.mov(__dword_ptr[r9 + FxControl], InitialControl);
        a.mov(__byte_ptr[r9 + FxTags], 0);
        a.mov(__dword_ptr[r9 + FxMxcsr], InitialMxcsr);
        a.Label(ref raise);
    }

    /// <summary>The signal becomes the runtime's: a SIGSEGV at address 0.</summary>
    private static void RaiseNullReference(Assembler a)
    {
        a.mov(edi, SIGSEGV);
        a.mov(__[rsi + SiSigno], edi);
        a.mov(__dword_ptr[rsi + SiCode], 1);
        a.and(__qword_ptr[rsi + SiAddr], 0);
    }

    /// <summary>The previous handler, as if it had been called. A previous default action, or none, is put back and the instruction runs again.</summary>
    private static unsafe void Chain(Assembler a)
    {
        Label load = a.CreateLabel(), @default = a.CreateLabel();
        a.cmp(edi, SIGBUS);
        a.jne(load);
        a.add(rcx, sizeof(KernelAction));
        a.Label(ref load);
        a.mov(rax, __[rcx]);
        a.cmp(rax, SIG_IGN);
        a.jbe(@default);
        a.jmp(rax);
        a.Label(ref @default);
        a.mov(rsi, rcx);
        a.xor(edx, edx);
        a.mov(r10d, SigsetBytes);
        a.mov(eax, SYS_rt_sigaction);
        a.syscall();
        a.ret();
    }

    /// <summary>Where the handler returns to.</summary>
    internal static byte[] Restorer() => Assemble(a =>
    {
        a.mov(eax, SYS_rt_sigreturn);
        a.syscall();
    });

    /// <summary>The thread pointer, in RAX.</summary>
    internal static byte[] ThreadPointer() => Assemble(a =>
    {
        a.mov(rax, __qword_ptr.fs[0]);
        a.ret();
    });
}
