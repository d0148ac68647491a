using Ring3.Cpu;

namespace Ring3.Lockstep;

/// <summary>Something in which the engines differ.</summary>
/// <param name="Bits">The bits of a word that differ; all where it is no word.</param>
internal readonly record struct Difference(string Text, ulong Bits);

/// <summary>What two processors differ in, as far as a guest or its owner can see.</summary>
/// <remarks>SAFETY: reads the states of two processors that are outside the guest.</remarks>
internal static unsafe class StateComparer
{
    private static readonly string[] s_registers = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
        "r15"];
    private static readonly string[] s_segments = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];

    public static string Name(int register) => s_registers[register];

    /// <summary>Adds a line for each difference: what it is, then the first state's value, then the second's.</summary>
    public static void Compare(CpuState* a, CpuState* b, List<Difference> differences)
    {
        void Check(string name, ulong x, ulong y)
        {
            if (x != y)
                differences.Add(new Difference($"{name}: translated {x:x}, interpreted {y:x}", x ^ y));
        }
        Check("instructions", a->InstructionsRetired, b->InstructionsRetired);
        Check("rip", a->Rip, b->Rip);
        Check("rflags", Flags.Get(a), Flags.Get(b));
        for (int i = 0; i < 16; i++)
            Check(s_registers[i], a->Gpr[i], b->Gpr[i]);
        for (int i = 0; i < 64; i++)
            Check($"ymm{i / 4}[{i % 4}]", ((ulong*)a->Ymm)[i], ((ulong*)b->Ymm)[i]);
        for (int i = 0; i < 16; i++)
            Check($"x87 r{i / 2}[{i % 2}]", ((ulong*)a->X87)[i], ((ulong*)b->X87)[i]);
        Check("mxcsr", a->Mxcsr, b->Mxcsr);
        Check("fcw", a->Fcw, b->Fcw);
        Check("fsw", a->Fsw, b->Fsw);
        Check("ftw", a->Ftw, b->Ftw);
        Check("fop", a->Fop, b->Fop);
        Check("fip", a->Fip, b->Fip);
        Check("fdp", a->Fdp, b->Fdp);
        for (int i = 0; i < 8; i++)
        {
            Segment* s = CpuState.SegmentAt(a, i), t = CpuState.SegmentAt(b, i);
            Check(s_segments[i], s->Selector, t->Selector);
            Check(s_segments[i] + " base", s->Base, t->Base);
            Check(s_segments[i] + " limit", s->Limit, t->Limit);
            Check(s_segments[i] + " access", s->Access, t->Access);
        }
        Check("gdtr", a->Gdtr.Base ^ a->Gdtr.Limit, b->Gdtr.Base ^ b->Gdtr.Limit);
        Check("idtr", a->Idtr.Base ^ a->Idtr.Limit, b->Idtr.Base ^ b->Idtr.Limit);
        Check("cpl", a->Cpl, b->Cpl);
        Check("block mode", a->BlockMode, b->BlockMode);
        CompareControls(a, b, Check);
    }

    private static void CompareControls(CpuState* a, CpuState* b, Action<string, ulong, ulong> check)
    {
        check("cr0", a->Cr0, b->Cr0);
        check("cr2", a->Cr2, b->Cr2);
        check("cr3", a->Cr3, b->Cr3);
        check("cr4", a->Cr4, b->Cr4);
        check("cr8", a->Cr8, b->Cr8);
        check("efer", a->Efer, b->Efer);
        check("xcr0", a->Xcr0, b->Xcr0);
        check("pkru", a->Pkru, b->Pkru);
        check("dr6", a->Dr6, b->Dr6);
        check("dr7", a->Dr7, b->Dr7);
        check("kernel gs base", a->KernelGsBase, b->KernelGsBase);
        check("lstar", a->Lstar, b->Lstar);
        check("star", a->Star, b->Star);
        check("sfmask", a->Sfmask, b->Sfmask);
        check("tsc aux", a->TscAux, b->TscAux);
        check("pat", a->Pat, b->Pat);
        check("shadow", a->InterruptShadow, b->InterruptShadow);
        check("pending debug", a->PendingDebug, b->PendingDebug);
        check("nmi blocked", a->NmiBlocked, b->NmiBlocked);
        check("halted", a->Halted, b->Halted);
        check("between iterations", a->BetweenIterations, b->BetweenIterations);
        check("injection", a->Inject.Valid, b->Inject.Valid);
    }

    /// <summary>Exits that happen at the same instruction however it is executed, with what the owner is told.</summary>
    public static void CompareExits(ExitInfo* a, ExitInfo* b, List<Difference> differences)
    {
        void Check(string name, ulong x, ulong y)
        {
            if (x != y)
                differences.Add(new Difference($"exit's {name}: translated {x:x}, interpreted {y:x}", ulong.MaxValue));
        }
        if (a->Reason != b->Reason)
            differences.Add(new Difference($"exit: translated {a->Reason}, interpreted {b->Reason}", ulong.MaxValue));
        switch (a->Reason)
        {
            case ExitReason.Io:
                Check("port", a->Port, b->Port);
                Check("size", a->Size, b->Size);
                Check("direction", a->IsWrite, b->IsWrite);
                Check("count", a->Count, b->Count);
                break;
            case ExitReason.Mmio or ExitReason.NestedFault:
                Check("address", a->Gpa, b->Gpa);
                Check("linear address", a->Gva, b->Gva);
                if (a->Reason == ExitReason.NestedFault)
                    Check("access", (ulong)a->Access, (ulong)b->Access);
                else
                    Check("size", a->Size, b->Size);
                break;
            case ExitReason.Exception:
                Check("vector", a->Vector, b->Vector);
                Check("error code", a->ErrorCode, b->ErrorCode);
                Check("payload", a->Payload, b->Payload);
                break;
        }
        if (a->Reason is ExitReason.Io or ExitReason.Mmio && a->IsWrite != 0)
        {
            int bytes = a->Size * (a->Reason == ExitReason.Io ? (int)Math.Max(a->Count, 1) : 1);
            if (!new Span<byte>(a->Data, bytes).SequenceEqual(new Span<byte>(b->Data, bytes)))
                differences.Add(new Difference("exit's data", ulong.MaxValue));
        }
        Check("length", a->InstructionLength, b->InstructionLength);
    }
}
