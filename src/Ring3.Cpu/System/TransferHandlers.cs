using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Far transfers, software interrupts, and the instructions that leave to the owner or do nothing here.</summary>
/// <remarks>SAFETY: far pointers are read by checked loads; what is jumped to is a value.</remarks>
internal static unsafe class TransferHandlers
{
    private static OpResult FarDirect(LogicalProcessor p, CpuState* c, Op* op, int size, bool call) =>
        p.Events.FarTransfer(c, op->Imm2, op->Imm, size, call, Addressing.NextRip(c, op));

    public static OpResult CallPtr16(LogicalProcessor p, CpuState* c, Op* op) => FarDirect(p, c, op, 2, true);
    public static OpResult CallPtr32(LogicalProcessor p, CpuState* c, Op* op) => FarDirect(p, c, op, 4, true);
    public static OpResult JmpPtr16(LogicalProcessor p, CpuState* c, Op* op) => FarDirect(p, c, op, 2, false);
    public static OpResult JmpPtr32(LogicalProcessor p, CpuState* c, Op* op) => FarDirect(p, c, op, 4, false);

    private static OpResult FarIndirect(LogicalProcessor p, CpuState* c, Op* op, int size, bool call) =>
        SegmentHandlers.LoadFarPointer(p, c, op, size, out ulong offset, out ushort selector)
            ? p.Events.FarTransfer(c, selector, offset, size, call, Addressing.NextRip(c, op)) : OpResult.Fault;

    public static OpResult CallM16(LogicalProcessor p, CpuState* c, Op* op) => FarIndirect(p, c, op, 2, true);
    public static OpResult CallM32(LogicalProcessor p, CpuState* c, Op* op) => FarIndirect(p, c, op, 4, true);
    public static OpResult CallM64(LogicalProcessor p, CpuState* c, Op* op) => FarIndirect(p, c, op, 8, true);
    public static OpResult JmpM16(LogicalProcessor p, CpuState* c, Op* op) => FarIndirect(p, c, op, 2, false);
    public static OpResult JmpM32(LogicalProcessor p, CpuState* c, Op* op) => FarIndirect(p, c, op, 4, false);
    public static OpResult JmpM64(LogicalProcessor p, CpuState* c, Op* op) => FarIndirect(p, c, op, 8, false);

    public static OpResult Retf16(LogicalProcessor p, CpuState* c, Op* op) => p.Events.FarReturn(c, 2, (ushort)op->Imm);
    public static OpResult Retf32(LogicalProcessor p, CpuState* c, Op* op) => p.Events.FarReturn(c, 4, (ushort)op->Imm);
    public static OpResult Retf64(LogicalProcessor p, CpuState* c, Op* op) => p.Events.FarReturn(c, 8, (ushort)op->Imm);

    public static OpResult Iret16(LogicalProcessor p, CpuState* c, Op* op) => p.Events.InterruptReturn(c, 2, Addressing.NextRip(c, op));
    public static OpResult Iret32(LogicalProcessor p, CpuState* c, Op* op) => p.Events.InterruptReturn(c, 4, Addressing.NextRip(c, op));
    public static OpResult Iret64(LogicalProcessor p, CpuState* c, Op* op) => p.Events.InterruptReturn(c, 8, Addressing.NextRip(c, op));

    public static OpResult Int(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (CpuMode.Virtual8086(c))
            return p.Events.SoftwareInterrupt8086(c, (byte)op->Imm, op->Length, Addressing.NextRip(c, op));
        return Outcome.RaiseSoftware(c, (byte)op->Imm, EventType.SoftwareInterrupt, op->Length);
    }

    public static OpResult Int3(LogicalProcessor p, CpuState* c, Op* op) => Outcome.RaiseSoftware(c, Vector.BP, EventType.SoftwareException, op->Length);
    public static OpResult Int1(LogicalProcessor p, CpuState* c, Op* op) =>
        Outcome.RaiseSoftware(c, Vector.DB, EventType.PrivilegedSoftwareException, op->Length);
    public static OpResult Into(LogicalProcessor p, CpuState* c, Op* op) =>
        Flags.OF(c) ? Outcome.RaiseSoftware(c, Vector.OF, EventType.SoftwareException, op->Length) : Operands.EndBlock(c, op);

    public static OpResult Cpuid(LogicalProcessor p, CpuState* c, Op* op) => Operands.Leave(p, c, op, ExitReason.Cpuid);
    public static OpResult Vmcall(LogicalProcessor p, CpuState* c, Op* op) => Hypercall(p, c, op, 0);
    public static OpResult Vmmcall(LogicalProcessor p, CpuState* c, Op* op) => Hypercall(p, c, op, 1);

    private static OpResult Hypercall(LogicalProcessor p, CpuState* c, Op* op, ulong vendor)
    {
        p.Exit->Payload = vendor;
        return Operands.Leave(p, c, op, ExitReason.Hypercall);
    }

    public static OpResult Rsm(LogicalProcessor p, CpuState* c, Op* op) =>
        c->InSmm != 0 ? Operands.Leave(p, c, op, ExitReason.Rsm) : Outcome.Raise(c, Vector.UD);

    /// <summary>WBINVD, INVD, WBNOINVD: caches are coherent, so privilege is all there is.</summary>
    public static OpResult CacheFlush(LogicalProcessor p, CpuState* c, Op* op) => Operands.Privileged(p, c) ? OpResult.Next : OpResult.Fault;

    /// <summary>No performance counters exist.</summary>
    public static OpResult Rdpmc(LogicalProcessor p, CpuState* c, Op* op) => Outcome.Raise(c, Vector.GP, 0);

    public static OpResult Monitor(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.CpuidFeatures.Monitor || c->Cpl != 0)
            return Outcome.Raise(c, Vector.UD);
        return (uint)c->Gpr[1] != 0 ? Outcome.Raise(c, Vector.GP, 0) : OpResult.Next;
    }

    /// <summary>Without a monitored line that could tell, MWAIT wakes at once.</summary>
    public static OpResult Mwait(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.CpuidFeatures.Monitor || c->Cpl != 0)
            return Outcome.Raise(c, Vector.UD);
        return (uint)c->Gpr[1] > 1 ? Outcome.Raise(c, Vector.GP, 0) : Operands.EndBlock(c, op);
    }
}
