using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Time stamps, random numbers, hints, cache control, flags and interrupt control. SPEC: SDM volume 2, the instructions by name.</summary>
/// <remarks>SAFETY: touches the processor's own state; memory goes through the checked accessors.</remarks>
internal static unsafe class MiscHandlers
{
    internal static void Register()
    {
        HandlerTable.Set(Code.Rdtsc, &Rdtsc);
        HandlerTable.Set(Code.Rdtscp, &Rdtscp);
        Set(&RandomNumber, Code.Rdrand_r16, Code.Rdrand_r32, Code.Rdrand_r64, Code.Rdseed_r16, Code.Rdseed_r32, Code.Rdseed_r64);
        Set(&Rdpid, Code.Rdpid_r32, Code.Rdpid_r64);
        Set(&Nothing, Code.Nopw, Code.Nopd, Code.Nopq, Code.Nop_rm16, Code.Nop_rm32, Code.Nop_rm64, Code.Lfence, Code.Sfence, Code.Endbr64, Code.Endbr32,
            Code.Prefetchnta_m8, Code.Prefetcht0_m8, Code.Prefetcht1_m8, Code.Prefetcht2_m8, Code.Prefetch_m8, Code.Prefetchw_m8, Code.Prefetchwt1_m8,
            Code.Reservednop_rm16_r16_0F0D, Code.Reservednop_rm32_r32_0F0D, Code.Reservednop_rm64_r64_0F0D,
            Code.Reservednop_rm16_r16_0F18, Code.Reservednop_rm32_r32_0F18, Code.Reservednop_rm64_r64_0F18,
            Code.Reservednop_rm16_r16_0F19, Code.Reservednop_rm32_r32_0F19, Code.Reservednop_rm64_r64_0F19,
            Code.Reservednop_rm16_r16_0F1A, Code.Reservednop_rm32_r32_0F1A, Code.Reservednop_rm64_r64_0F1A,
            Code.Reservednop_rm16_r16_0F1B, Code.Reservednop_rm32_r32_0F1B, Code.Reservednop_rm64_r64_0F1B,
            Code.Reservednop_rm16_r16_0F1C, Code.Reservednop_rm32_r32_0F1C, Code.Reservednop_rm64_r64_0F1C,
            Code.Reservednop_rm16_r16_0F1D, Code.Reservednop_rm32_r32_0F1D, Code.Reservednop_rm64_r64_0F1D,
            Code.Reservednop_rm16_r16_0F1E, Code.Reservednop_rm32_r32_0F1E, Code.Reservednop_rm64_r64_0F1E,
            Code.Reservednop_rm16_r16_0F1F, Code.Reservednop_rm32_r32_0F1F, Code.Reservednop_rm64_r64_0F1F,
            Code.Cldemote_m8, Code.Rdsspd_r32, Code.Rdsspq_r64);
        // The low bits of the fences' ModRM are ignored; 0F 0D knows more hints than have names.
        Set(&Nothing, Code.Lfence_E9, Code.Lfence_EA, Code.Lfence_EB, Code.Lfence_EC, Code.Lfence_ED, Code.Lfence_EE, Code.Lfence_EF,
            Code.Sfence_F9, Code.Sfence_FA, Code.Sfence_FB, Code.Sfence_FC, Code.Sfence_FD, Code.Sfence_FE, Code.Sfence_FF,
            Code.Prefetchreserved3_m8, Code.Prefetchreserved4_m8, Code.Prefetchreserved5_m8, Code.Prefetchreserved6_m8, Code.Prefetchreserved7_m8);
        Set(&Mfence, Code.Mfence, Code.Mfence_F1, Code.Mfence_F2, Code.Mfence_F3, Code.Mfence_F4, Code.Mfence_F5, Code.Mfence_F6, Code.Mfence_F7);
        Set(&CacheLine, Code.Clflush_m8, Code.Clflushopt_m8, Code.Clwb_m8);
        Set(&Clzero, Code.Clzerow, Code.Clzerod, Code.Clzeroq);
        HandlerTable.Set(Code.Lahf, &Lahf);
        HandlerTable.Set(Code.Sahf, &Sahf);
        HandlerTable.Set(Code.Clc, &Clc);
        HandlerTable.Set(Code.Stc, &Stc);
        HandlerTable.Set(Code.Cmc, &Cmc);
        HandlerTable.Set(Code.Cld, &Cld);
        HandlerTable.Set(Code.Std, &Std);
        HandlerTable.Set(Code.Salc, &Salc);
        HandlerTable.Set(Code.Xlat_m8, &Xlat);
    }

    private static void Set(delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler, params ReadOnlySpan<Code> codes)
    {
        foreach (Code code in codes)
            HandlerTable.Set(code, handler);
    }

    private static OpResult Nothing(LogicalProcessor p, CpuState* c, Op* op) => OpResult.Next;

    private static OpResult Mfence(LogicalProcessor p, CpuState* c, Op* op)
    {
        // PAIRS-WITH: the guest's own fences.
        Interlocked.MemoryBarrier();
        return OpResult.Next;
    }

    /// <summary>The host keeps its caches coherent; the address is checked as a read of one byte.</summary>
    private static OpResult CacheLine(LogicalProcessor p, CpuState* c, Op* op)
        => Addressing.LinearAddress(c, op, 1, AccessKind.Read, out ulong linear) && p.Access.ReadPtr(c, linear, 1) != null ? OpResult.Next : OpResult.Fault;

    /// <summary>
    /// Zeros the line around the linear address of (E/R)AX. That it bypasses the caches shows nowhere: it is ordered as any store here. What the manual leaves
    /// out is Zen 5's: F2 and F3 make it undefined, and where segments have limits the whole line must be inside. SPEC: APM volume 3, "CLZERO".
    /// </summary>
    private static OpResult Clzero(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.CpuidFeatures.Clzero || (op->Flags & (OpFlags.Rep | OpFlags.Repne)) != 0)
            return Outcome.Raise(c, Vector.UD);
        const int Line = 64;
        ulong mask = Addressing.AddressMask(op->AddressSize), offset = c->Gpr[0] & mask;
        bool hasLimits = c->BlockMode != BlockMode.Code64;
        if (hasLimits)
            offset = offset - (offset + CpuState.SegmentAt(c, op->Seg)->Base & Line - 1) & mask;
        if (!Addressing.SegmentLinear(c, op->Seg, offset, hasLimits ? Line : 1, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        linear &= ~(Line - 1UL);
        byte* line = p.Access.WritePtr(c, linear, Line);
        if (line == null)
            return OpResult.Fault;
        new Span<byte>(line, Line).Clear();
        return p.Access.EndWrite(c, line, linear, Line);
    }

    /// <summary>CR4.TSD restricts the time-stamp counter to ring 0.</summary>
    private static bool TscDenied(CpuState* c) => (c->Cr4 & Cr4.TSD) != 0 && c->Cpl != 0;

    private static OpResult Rdtsc(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (TscDenied(c))
            return Outcome.Raise(c, Vector.GP, 0);
        ulong tsc = p.Observer is null ? GuestTsc.Read(c) : p.Observer.Input(p, GuestTsc.Read(c));
        c->Gpr[0] = (uint)tsc;
        c->Gpr[2] = tsc >> 32;
        return OpResult.Next;
    }

    private static OpResult Rdtscp(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.CpuidFeatures.Rdtscp)
            return Outcome.Raise(c, Vector.UD);
        if (Rdtsc(p, c, op) != OpResult.Next)
            return OpResult.Fault;
        c->Gpr[1] = (uint)c->TscAux;
        return OpResult.Next;
    }

    private static OpResult Rdpid(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.CpuidFeatures.Rdpid)
            return Outcome.Raise(c, Vector.UD);
        *(ulong*)((byte*)c + op->Reg0) = (uint)c->TscAux;
        return OpResult.Next;
    }

    private static OpResult RandomNumber(LogicalProcessor p, CpuState* c, Op* op)
    {
        SlowOperands.Set(c, op->Reg0, op->Size, p.Observer is null ? p.Random.Next() : p.Observer.Input(p, p.Random.Next()));
        Flags.SetStatus(c, Rflags.CF);
        return OpResult.Next;
    }

    private static OpResult Lahf(LogicalProcessor p, CpuState* c, Op* op)
    {
        ((byte*)c->Gpr)[1] = (byte)(Flags.GetStatus(c) | Rflags.Fixed1);
        return OpResult.Next;
    }

    private static OpResult Sahf(LogicalProcessor p, CpuState* c, Op* op)
    {
        const ulong low = Rflags.SF | Rflags.ZF | Rflags.AF | Rflags.PF | Rflags.CF;
        Flags.SetStatus(c, Flags.GetStatus(c) & Rflags.OF | ((byte*)c->Gpr)[1] & low);
        return OpResult.Next;
    }

    private static OpResult Clc(LogicalProcessor p, CpuState* c, Op* op)
    {
        Flags.SetCF(c, false);
        return OpResult.Next;
    }

    private static OpResult Stc(LogicalProcessor p, CpuState* c, Op* op)
    {
        Flags.SetCF(c, true);
        return OpResult.Next;
    }

    private static OpResult Cmc(LogicalProcessor p, CpuState* c, Op* op)
    {
        Flags.SetCF(c, !Flags.CF(c));
        return OpResult.Next;
    }

    private static OpResult Cld(LogicalProcessor p, CpuState* c, Op* op)
    {
        c->Rflags &= ~Rflags.DF;
        return OpResult.Next;
    }

    private static OpResult Std(LogicalProcessor p, CpuState* c, Op* op)
    {
        c->Rflags |= Rflags.DF;
        return OpResult.Next;
    }

    private static OpResult Salc(LogicalProcessor p, CpuState* c, Op* op)
    {
        *(byte*)c->Gpr = Flags.CF(c) ? (byte)0xff : (byte)0;
        return OpResult.Next;
    }

    private static OpResult Xlat(LogicalProcessor p, CpuState* c, Op* op)
    {
        ulong offset = (c->Gpr[3] + (byte)c->Gpr[0]) & Addressing.AddressMask(op->AddressSize);
        if (!Addressing.SegmentLinear(c, op->Seg, offset, 1, AccessKind.Read, out ulong linear) || !p.Access.Load8(c, linear, out byte value))
            return OpResult.Fault;
        *(byte*)c->Gpr = value;
        return OpResult.Next;
    }
}

/// <summary>The guest's time-stamp counter.</summary>
/// <remarks>SAFETY: reads the processor's own state.</remarks>
public static unsafe class GuestTsc
{
    /// <summary>Multiplier of a guest that runs at the host's frequency.</summary>
    public const ulong Unscaled = 1UL << 48;

    /// <summary>Guest TSC of this instant, after the guest's earlier loads.</summary>
    public static ulong Read(CpuState* c) => FromHost(c, HostClock.TscOrdered());

    /// <summary>Guest TSC of the instant of a host TSC value.</summary>
    public static ulong FromHost(CpuState* c, ulong host)
    {
        if (c->TscMultiplier is not (0 or Unscaled))
            host = (ulong)((UInt128)host * c->TscMultiplier >> 48);
        return host + c->TscOffset;
    }
}
