using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Why the loop runs one instruction at a time.</summary>
[Flags]
internal enum StepReason : byte { None = 0, TrapFlag = 1, HostStep = 2, Breakpoints = 4, ResumeFlag = 8, VirtualInterrupt = 16 }

/// <summary>Breakpoints of DR0-DR3. SPEC: SDM volume 3, "Debug Registers".</summary>
/// <remarks>SAFETY: n counts the four address registers, which are fields in a row; <c>Observed</c> returns the pointer that it was given.</remarks>
internal static unsafe class Breakpoints
{
    internal const int TypeExecute = 0, TypeWrite = 1, TypeIo = 2;

    /// <summary>DR7 in force: the guest's, or the one that the owner put over it.</summary>
    internal static ulong EffectiveDr7(CpuState* c) => c->HostBreakpoints != 0 ? c->HostDr7 : c->Dr7;

    private static ulong DebugAddress(CpuState* c, int n) => c->HostBreakpoints != 0 ? (&c->HostDr0)[n] : (&c->Dr0)[n];
    internal static int BreakpointType(CpuState* c, int n) => (int)(EffectiveDr7(c) >> (16 + 4 * n)) & 3;
    private static ulong BreakpointLength(CpuState* c, int n) => ((EffectiveDr7(c) >> (18 + 4 * n)) & 3) switch { 0 => 1UL, 1 => 2UL, 2 => 8UL, _ => 4UL };

    /// <summary>Call after DR0-DR7, RFLAGS.TF, RF, VIF or VIP, CR4.VME or PVI, or HostSingleStep changed.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void UpdateStep(CpuState* c)
    {
        if (((uint)c->Rflags & (uint)(Rflags.TF | VirtualInterrupts.Pending) | c->HostSingleStep | (uint)(c->DataBreakpoints | c->CodeBreakpoints)) == 0)
            c->StepMode = 0;
        else
            ComputeStep(c);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ComputeStep(CpuState* c)
    {
        StepReason reason = 0;
        if ((c->Rflags & Rflags.TF) != 0)
            reason |= StepReason.TrapFlag;
        if (c->HostSingleStep != 0)
            reason |= StepReason.HostStep;
        if ((c->DataBreakpoints | c->CodeBreakpoints) != 0)
            reason |= StepReason.Breakpoints | ((c->Rflags & Rflags.RF) != 0 ? StepReason.ResumeFlag : 0);
        if (VirtualInterrupts.AreWatched(c))
            reason |= StepReason.VirtualInterrupt;
        c->StepMode = (byte)reason;
    }

    /// <summary>Finds the breakpoints in force after DR0-DR3 or DR7, the guest's or the owner's, changed. Whether there are or were some on data.</summary>
    internal static bool Recompute(CpuState* c)
    {
        int data = 0, code = 0, port = 0;
        for (int n = 0; n < 4; n++)
        {
            if ((EffectiveDr7(c) >> (2 * n) & 3) == 0)
                continue;
            int type = BreakpointType(c, n);
            if (type == TypeExecute)
                code |= 1 << n;
            else if (type == TypeIo)
                port |= 1 << n;
            else
                data |= 1 << n;
        }
        bool watched = (data | c->DataBreakpoints) != 0;
        (c->DataBreakpoints, c->CodeBreakpoints, c->PortBreakpoints) = ((byte)data, (byte)code, (byte)port);
        return watched;
    }

    internal static bool HasData(CpuState* c, ulong page)
    {
        for (int n = 0; c->DataBreakpoints >> n != 0; n++)
            if ((c->DataBreakpoints >> n & 1) != 0 && (DebugAddress(c, n) & ~0xfffUL) == page)
                return true;
        return false;
    }

    /// <summary>Notes the data breakpoints that an access hits and passes its pointer on.</summary>
    internal static byte* Observed(CpuState* c, ulong linear, int size, bool write, byte* result)
    {
        for (int n = 0; c->DataBreakpoints >> n != 0; n++)
        {
            if ((c->DataBreakpoints >> n & 1) == 0 || (BreakpointType(c, n) == TypeWrite && !write))
                continue;
            ulong length = BreakpointLength(c, n);
            ulong start = DebugAddress(c, n) & ~(length - 1);
            if (linear < start + length && start < linear + (ulong)size)
                c->PendingDebug |= (ushort)(1 << n);
        }
        return result;
    }

    /// <summary>Whether the guest's own breakpoints can name ports: CR4.DE. Those that the owner puts over them cannot.</summary>
    internal static bool WatchesPorts(CpuState* c) => c->PortBreakpoints != 0 && c->HostBreakpoints == 0 && (c->Cr4 & Cr4.DE) != 0;

    /// <summary>
    /// Notes the I/O breakpoints that an access to a port hits: traps behind the instruction, or behind its iteration. SPEC: SDM volume 3, "Debug Address
    /// Registers", "General-Detect, I/O Breakpoint".
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void NotePort(CpuState* c, ushort port, int size)
    {
        if (c->PortBreakpoints != 0 && WatchesPorts(c))
            NoteWatchedPort(c, port, size);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void NoteWatchedPort(CpuState* c, ushort port, int size)
    {
        for (int n = 0; c->PortBreakpoints >> n != 0; n++)
        {
            ulong length = BreakpointLength(c, n), start = DebugAddress(c, n) & ~(length - 1);
            if ((c->PortBreakpoints >> n & 1) != 0 && port < start + length && start < port + (ulong)size)
                c->PendingDebug |= (ushort)(1 << n);
        }
    }

    /// <summary>DR6 bits B0-B3 of the enabled instruction breakpoints at <paramref name="linear"/>.</summary>
    internal static int CodeAt(CpuState* c, ulong linear)
    {
        int hits = 0;
        for (int n = 0; c->CodeBreakpoints >> n != 0; n++)
            if ((c->CodeBreakpoints >> n & 1) != 0 && DebugAddress(c, n) == linear)
                hits |= 1 << n;
        return hits;
    }
}
