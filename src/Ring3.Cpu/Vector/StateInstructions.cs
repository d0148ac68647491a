using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>FXSAVE and XSAVE families, LDMXCSR and STMXCSR. SPEC: SDM volume 1, "Operation of XSAVE" and its siblings.</summary>
/// <remarks>
/// SAFETY: images are on the stack, <see cref="StateImage.Size"/> bytes, and aligned by the guest's own alignment checks only in guest memory.
/// </remarks>
internal static unsafe class StateInstructions
{
    internal static void Register()
    {
        VectorHandlers.SetSpecial(Code.Fxsave_m512byte, &Fxsave);
        VectorHandlers.SetSpecial(Code.Fxsave64_m512byte, &Fxsave);
        VectorHandlers.SetSpecial(Code.Fxrstor_m512byte, &Fxrstor);
        VectorHandlers.SetSpecial(Code.Fxrstor64_m512byte, &Fxrstor);
        VectorHandlers.SetSpecial(Code.Xsave_mem, &Xsave);
        VectorHandlers.SetSpecial(Code.Xsave64_mem, &Xsave);
        VectorHandlers.SetSpecial(Code.Xsaveopt_mem, &Xsaveopt);
        VectorHandlers.SetSpecial(Code.Xsaveopt64_mem, &Xsaveopt);
        VectorHandlers.SetSpecial(Code.Xsavec_mem, &Xsavec);
        VectorHandlers.SetSpecial(Code.Xsavec64_mem, &Xsavec);
        VectorHandlers.SetSpecial(Code.Xsaves_mem, &Xsaves);
        VectorHandlers.SetSpecial(Code.Xsaves64_mem, &Xsaves);
        VectorHandlers.SetSpecial(Code.Xrstor_mem, &Xrstor);
        VectorHandlers.SetSpecial(Code.Xrstor64_mem, &Xrstor);
        VectorHandlers.SetSpecial(Code.Xrstors_mem, &Xrstors);
        VectorHandlers.SetSpecial(Code.Xrstors64_mem, &Xrstors);
        VectorHandlers.SetSpecial(Code.Ldmxcsr_m32, &Ldmxcsr<SseGate>);
        VectorHandlers.SetSpecial(Code.VEX_Vldmxcsr_m32, &Ldmxcsr<AvxGate>);
        VectorHandlers.SetSpecial(Code.Stmxcsr_m32, &Stmxcsr<SseGate>);
        VectorHandlers.SetSpecial(Code.VEX_Vstmxcsr_m32, &Stmxcsr<AvxGate>);
    }

    private static OpResult Ldmxcsr<TGate>(LogicalProcessor p, CpuState* c, Op* op) where TGate : struct, IVectorGate
    {
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        if (!Addressing.LinearAddress(c, op, 4, AccessKind.Read, out ulong linear) || !p.Access.Load32(c, linear, out uint value))
            return OpResult.Fault;
        if ((value & ~MxcsrUnit.Writable(p)) != 0)
            return Outcome.Raise(c, Arch.Vector.GP, 0);
        MxcsrUnit.Park(c);
        c->Mxcsr = value;
        return OpResult.Next;
    }

    private static OpResult Stmxcsr<TGate>(LogicalProcessor p, CpuState* c, Op* op) where TGate : struct, IVectorGate
    {
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        MxcsrUnit.Park(c);
        return Addressing.LinearAddress(c, op, 4, AccessKind.Write, out ulong linear) && p.Access.Store32(c, linear, c->Mxcsr) ? OpResult.Next : OpResult.Fault;
    }

    private static int RegisterCount(CpuState* c) => CpuMode.Is64(c) ? 16 : 8;

    private static bool IsWide(Op* op)
        => (Code)op->Code is Code.Fxsave64_m512byte or Code.Fxrstor64_m512byte or Code.Xsave64_mem or Code.Xsaveopt64_mem or Code.Xsavec64_mem
            or Code.Xsaves64_mem
            or Code.Xrstor64_mem or Code.Xrstors64_mem;

    /// <summary>With EFER.FFXSR the kernel's FXSAVE leaves the vector registers out.</summary>
    private static bool SkipsXmm(CpuState* c) => (c->Efer & Efer.FFXSR) != 0 && c->Cpl == 0 && CpuMode.Is64(c);

    private static OpResult CheckFxsr(LogicalProcessor p, CpuState* c)
    {
        if ((c->Cr0 & Cr0.EM) != 0)
            return Outcome.Raise(c, Arch.Vector.UD);
        return (c->Cr0 & Cr0.TS) != 0 ? Outcome.Raise(c, Arch.Vector.NM) : OpResult.Next;
    }

    private static OpResult Fxsave(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (CheckFxsr(p, c) != OpResult.Next)
            return OpResult.Fault;
        VectorUnit.Park(c);
        byte* image = stackalloc byte[StateImage.LegacySize];
        StateImage.StoreX87(c, image, IsWide(op));
        StateImage.StoreMxcsr(c, image, MxcsrUnit.Writable(p));
        int count = SkipsXmm(c) ? 0 : RegisterCount(c);
        StateImage.StoreXmm(c, image, count);
        if (!GuestArea.Open(p, c, op, StateImage.LegacySize, 15, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        // The whole area must be writable, and processors look at its end first; but bytes after the last register are not written.
        if (p.Access.WritePtr(c, linear + StateImage.LegacySize - 1, 1) == null)
            return OpResult.Fault;
        return GuestArea.Write(p, c, linear, image, StateImage.XmmOffset + 16 * count) ? OpResult.Next : OpResult.Fault;
    }

    private static OpResult Fxrstor(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (CheckFxsr(p, c) != OpResult.Next)
            return OpResult.Fault;
        byte* image = stackalloc byte[StateImage.LegacySize];
        if (!GuestArea.Open(p, c, op, StateImage.LegacySize, 15, AccessKind.Read, out ulong linear)
            || p.Access.ReadPtr(c, linear + StateImage.LegacySize - 1, 1) == null || !GuestArea.Read(p, c, linear, image, StateImage.LegacySize))
            return OpResult.Fault;
        uint mxcsr = *(uint*)(image + StateImage.MxcsrOffset);
        if ((mxcsr & ~MxcsrUnit.Writable(p)) != 0)
            return Outcome.Raise(c, Arch.Vector.GP, 0);
        VectorUnit.Park(c);
        c->Mxcsr = mxcsr;
        StateImage.LoadX87(c, image, IsWide(op));
        X87Unit.TrimPointers(p, c);
        StateImage.LoadXmm(c, image, SkipsXmm(c) ? 0 : RegisterCount(c));
        return OpResult.Next;
    }

    private static OpResult CheckXsave(LogicalProcessor p, CpuState* c)
    {
        if ((c->Cr4 & Cr4.OSXSAVE) == 0)
            return Outcome.Raise(c, Arch.Vector.UD);
        return (c->Cr0 & Cr0.TS) != 0 ? Outcome.Raise(c, Arch.Vector.NM) : OpResult.Next;
    }

    /// <summary>EDX:EAX.</summary>
    private static ulong Requested(CpuState* c) => (uint)c->Gpr[0] | c->Gpr[2] << 32;

    private static OpResult Xsave(LogicalProcessor p, CpuState* c, Op* op) => SaveStandard(p, c, op, false);
    private static OpResult Xsaveopt(LogicalProcessor p, CpuState* c, Op* op) => SaveStandard(p, c, op, true);

    private static OpResult SaveStandard(LogicalProcessor p, CpuState* c, Op* op, bool skipUnused)
    {
        if (CheckXsave(p, c) != OpResult.Next)
            return OpResult.Fault;
        ulong components = Requested(c) & c->Xcr0;
        if (!GuestArea.Open(p, c, op, StateImage.AvxOffset, 63, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        VectorUnit.Park(c);
        ulong inUse = StateImage.InUse(c);
        if (!p.Access.Load64(c, linear + StateImage.StateBvOffset, out ulong stateBv))
            return OpResult.Fault;
        byte* image = stackalloc byte[StateImage.Size];
        ulong stored = skipUnused ? components & inUse : components;
        *(ulong*)(image + StateImage.StateBvOffset) = stateBv & ~components | inUse & components;
        bool mxcsr = (components & (Xcr0.Sse | Xcr0.Avx)) != 0;
        return StoreComponents(p, c, op, linear, image, stored, mxcsr, 8, p.Model.PkruOffset) ? OpResult.Next : OpResult.Fault;
    }

    private static OpResult Xsavec(LogicalProcessor p, CpuState* c, Op* op)
        => CheckXsave(p, c) != OpResult.Next ? OpResult.Fault : SaveCompacted(p, c, op, c->Xcr0);

    private static OpResult Xsaves(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (CheckXsave(p, c) != OpResult.Next)
            return OpResult.Fault;
        return c->Cpl != 0 ? Outcome.Raise(c, Arch.Vector.GP, 0) : SaveCompacted(p, c, op, c->Xcr0 | c->Xss);
    }

    private static OpResult SaveCompacted(LogicalProcessor p, CpuState* c, Op* op, ulong enabled)
    {
        ulong components = Requested(c) & enabled;
        if (!GuestArea.Open(p, c, op, StateImage.AvxOffset, 63, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        VectorUnit.Park(c);
        byte* image = stackalloc byte[StateImage.Size];
        ulong stored = components & StateImage.InUse(c);
        *(ulong*)(image + StateImage.StateBvOffset) = stored;
        *(ulong*)(image + StateImage.CompBvOffset) = components | StateImage.Compacted;
        return StoreComponents(p, c, op, linear, image, stored, (stored & Xcr0.Sse) != 0, 16, StateImage.CompactedPkru(components)) ? OpResult.Next
            : OpResult.Fault;
    }

    /// <summary>Writes the components and <paramref name="headerBytes"/> of the header; all or nothing.</summary>
    private static bool StoreComponents(LogicalProcessor p, CpuState* c, Op* op, ulong linear, byte* image, ulong components, bool mxcsr, int headerBytes,
        int pkruOffset)
    {
        int count = RegisterCount(c), end = (components & Xcr0.Avx) != 0 ? StateImage.AvxOffset + 16 * count : StateImage.AvxOffset;
        if (!GuestArea.Probe(p, c, linear, end))
            return false;
        bool keys = (components & Xcr0.Pkru) != 0;
        if (keys && !GuestArea.Probe(p, c, linear + (ulong)pkruOffset, StateImage.PkruSize))
            return false;
        bool ok = true;
        if ((components & Xcr0.X87) != 0)
        {
            StateImage.StoreX87(c, image, IsWide(op));
            ok = GuestArea.Commit(p, c, linear, image, StateImage.MxcsrOffset)
                && GuestArea.Commit(p, c, linear + StateImage.RegistersOffset, image + StateImage.RegistersOffset,
                    StateImage.XmmOffset - StateImage.RegistersOffset);
        }
        if (ok && mxcsr)
        {
            StateImage.StoreMxcsr(c, image, MxcsrUnit.Writable(p));
            ok = GuestArea.Commit(p, c, linear + StateImage.MxcsrOffset, image + StateImage.MxcsrOffset, 8);
        }
        if (ok && (components & Xcr0.Sse) != 0)
        {
            StateImage.StoreXmm(c, image, count);
            ok = GuestArea.Commit(p, c, linear + StateImage.XmmOffset, image + StateImage.XmmOffset, 16 * count);
        }
        if (ok && (components & Xcr0.Avx) != 0)
        {
            StateImage.StoreAvx(c, image, count);
            ok = GuestArea.Commit(p, c, linear + StateImage.AvxOffset, image + StateImage.AvxOffset, 16 * count);
        }
        ulong pkru = c->Pkru;
        if (ok && keys)
            ok = GuestArea.Commit(p, c, linear + (ulong)pkruOffset, (byte*)&pkru, StateImage.PkruSize);
        return ok && GuestArea.Commit(p, c, linear + StateImage.LegacySize, image + StateImage.LegacySize, headerBytes);
    }

    private static OpResult Xrstor(LogicalProcessor p, CpuState* c, Op* op)
        => CheckXsave(p, c) != OpResult.Next ? OpResult.Fault : Restore(p, c, op, c->Xcr0, false);

    private static OpResult Xrstors(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (CheckXsave(p, c) != OpResult.Next)
            return OpResult.Fault;
        return c->Cpl != 0 ? Outcome.Raise(c, Arch.Vector.GP, 0) : Restore(p, c, op, c->Xcr0 | c->Xss, true);
    }

    private static OpResult Restore(LogicalProcessor p, CpuState* c, Op* op, ulong enabled, bool compactedOnly)
    {
        if (!GuestArea.Open(p, c, op, StateImage.AvxOffset, 63, AccessKind.Read, out ulong linear))
            return OpResult.Fault;
        byte* image = stackalloc byte[StateImage.Size];
        if (!GuestArea.Read(p, c, linear + StateImage.LegacySize, image + StateImage.LegacySize, StateImage.HeaderSize))
            return OpResult.Fault;
        ulong stateBv = *(ulong*)(image + StateImage.StateBvOffset), compBv = *(ulong*)(image + StateImage.CompBvOffset);
        bool compacted = (compBv & StateImage.Compacted) != 0;
        if (!HeaderIsValid(image, stateBv, compBv, enabled, compactedOnly))
            return Outcome.Raise(c, Arch.Vector.GP, 0);
        ulong requested = Requested(c) & enabled;
        // A component that the compacted image does not hold is initialised.
        ulong load = requested & stateBv;
        int count = RegisterCount(c);
        if (!GuestArea.Read(p, c, linear, image, StateImage.LegacySize))
            return OpResult.Fault;
        if ((load & Xcr0.Avx) != 0 && !GuestArea.Read(p, c, linear + StateImage.AvxOffset, image + StateImage.AvxOffset, 16 * count))
            return OpResult.Fault;
        ulong pkru = 0;
        int pkruOffset = compacted ? StateImage.CompactedPkru(compBv) : p.Model.PkruOffset;
        if ((load & Xcr0.Pkru) != 0 && !GuestArea.Read(p, c, linear + (ulong)pkruOffset, (byte*)&pkru, StateImage.PkruSize))
            return OpResult.Fault;
        bool mxcsr = compacted ? (load & Xcr0.Sse) != 0 : (requested & (Xcr0.Sse | Xcr0.Avx)) != 0;
        uint value = *(uint*)(image + StateImage.MxcsrOffset);
        if (mxcsr && (value & ~MxcsrUnit.Writable(p)) != 0)
            return Outcome.Raise(c, Arch.Vector.GP, 0);
        VectorUnit.Park(c);
        if (mxcsr)
            c->Mxcsr = value;
        else if (compacted && (requested & Xcr0.Sse) != 0)
            c->Mxcsr = MxcsrUnit.Default;
        Apply(c, image, requested, load, count, IsWide(op));
        if ((requested & Xcr0.Pkru) != 0)
            p.Paging.SetPkru(c, (uint)pkru);
        if ((load & Xcr0.X87) != 0)
            X87Unit.TrimPointers(p, c);
        return OpResult.Next;
    }

    private static bool HeaderIsValid(byte* image, ulong stateBv, ulong compBv, ulong enabled, bool compactedOnly)
    {
        if ((compBv & StateImage.Compacted) == 0)
            return !compactedOnly && (stateBv & ~enabled) == 0 && compBv == 0 && *(ulong*)(image + StateImage.CompBvOffset + 8) == 0;
        if ((compBv & ~StateImage.Compacted & ~enabled) != 0 || (stateBv & ~compBv) != 0 || (stateBv & StateImage.Compacted) != 0)
            return false;
        ulong reserved = 0;
        for (int i = 16; i < StateImage.HeaderSize; i += 8)
            reserved |= *(ulong*)(image + StateImage.LegacySize + i);
        return reserved == 0;
    }

    private static void Apply(CpuState* c, byte* image, ulong requested, ulong load, int count, bool wide)
    {
        if ((load & Xcr0.X87) != 0)
            StateImage.LoadX87(c, image, wide);
        else if ((requested & Xcr0.X87) != 0)
            StateImage.InitializeX87(c);
        if ((load & Xcr0.Sse) != 0)
            StateImage.LoadXmm(c, image, count);
        else if ((requested & Xcr0.Sse) != 0)
            StateImage.InitializeXmm(c, count);
        if ((load & Xcr0.Avx) != 0)
            StateImage.LoadAvx(c, image, count);
        else if ((requested & Xcr0.Avx) != 0)
            StateImage.InitializeAvx(c, count);
    }
}
