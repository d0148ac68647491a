using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Power-on and INIT state. SPEC: SDM volume 3, "Processor State After Power-up, Reset, or INIT".</summary>
/// <remarks>SAFETY: loops are over the 16 general and vector registers, which are arrays of the state.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>
    /// Sets the state after power-up, or with <paramref name="init"/> after INIT: CR0.CD and CR0.NW, the vector and x87 registers and the MSRs survive INIT.
    /// Virtualisation controls (nested root, ASID, intercepts, TSC) are not touched. Translations are dropped.
    /// </summary>
    public void Reset(bool init)
    {
        CpuState* c = State;
        for (int i = 0; i < 16; i++)
            c->Gpr[i] = 0;
        c->Gpr[2] = CpuidFeatures.Signature;
        c->Rip = 0xfff0;
        Flags.Set(c, Rflags.Fixed1);
        ResetSegments(c);
        c->Cr0 = Cr0.ET | (init ? c->Cr0 & (Cr0.CD | Cr0.NW) : Cr0.CD | Cr0.NW);
        c->Cr2 = c->Cr3 = c->Cr4 = c->Cr8 = c->Efer = 0;
        c->Dr0 = c->Dr1 = c->Dr2 = c->Dr3 = 0;
        c->Dr6 = Dr.Dr6Fixed1;
        c->Dr7 = Dr.Dr7Fixed1;
        c->PendingDebug = 0;
        c->BetweenIterations = 0;
        c->InterruptShadow = c->NmiBlocked = c->InSmm = c->Halted = 0;
        c->Inject.Valid = 0;
        c->Cpl = 0;
        if (!init)
            ResetMsrsAndVectors(c);
        Events.ForgetTask();
        Access.Replay.Retire();
        Paging.Sanitizer?.FlushedAsid(GuestFlush.Reset, c->Asid);
        Paging.Tlb.FlushAsid(c->Asid);
        Events.RecomputeMode();
    }

    private static void ResetSegments(CpuState* c)
    {
        const uint data = 0x93, ldt = 0x82, tss = 0x8b;
        for (int i = 0; i < 6; i++)
            *CpuState.SegmentAt(c, i) = new Segment { Limit = 0xffff, Access = data };
        c->Cs.Selector = 0xf000;
        c->Cs.Base = 0xffff_0000;
        c->Cs.Access = 0x9b;
        c->Ldtr = new Segment { Limit = 0xffff, Access = ldt };
        c->Tr = new Segment { Limit = 0xffff, Access = tss };
        c->Gdtr = c->Idtr = new TableRegister { Limit = 0xffff };
    }

    private static void ResetMsrsAndVectors(CpuState* c)
    {
        c->KernelGsBase = c->Star = c->Lstar = c->Cstar = c->Sfmask = c->SysenterCs = c->SysenterEsp = c->SysenterEip = c->TscAux = c->DebugCtl = c->Xss = 0;
        c->Pat = 0x0007_0406_0007_0406;
        c->Smbase = 0x3_0000;
        c->Xcr0 = Xcr0.X87;
        c->Pkru = 0;
        new Span<byte>(c->Ymm, 16 * 32).Clear();
        new Span<byte>(c->X87, 8 * 16).Clear();
        c->Mxcsr = 0x1f80;
        c->Fcw = 0x37f;
        c->Fsw = c->Fop = c->FipSelector = c->FdpSelector = 0;
        c->Ftw = 0;
        c->Fip = c->Fdp = 0;
    }
}
