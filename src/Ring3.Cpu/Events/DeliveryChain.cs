using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Exceptions that follow each other inside event delivery without end: a handler at user privilege on a misaligned stack gives #AC for the delivery of #AC. No
/// instruction boundary comes up meanwhile, so neither interrupts
/// nor NMIs can be taken. SPEC: SDM volume 3, "Notify VM exit".
/// </summary>
/// <remarks>SAFETY: two counters of the state are compared with fields of this object.</remarks>
internal sealed unsafe partial class EventUnit
{
    /// <summary>Deliveries after which a chain cannot be one that ends (an event, its exception, #DF, triple fault).</summary>
    private const int LongestChain = 8;

    /// <summary>Ticks that are added to the window, as processors do, so that a window of 0 is safe.</summary>
    private const ulong NotifyThreshold = 1 << 16;

    /// <summary>Host TSC when the chain was first looked at, and instructions retired then; 0: no chain.</summary>
    private ulong _chainSince, _chainRetired;

    /// <summary>Before another exception of a chain is delivered: whether the owner has to come first. The exit is filled.</summary>
    private bool LeavesChain(CpuState* c)
    {
        if (Volatile.Read(ref c->ExitRequest) != 0)
        {
            Outcome.Leave(c, ExitReason.Request);
            return true;
        }
        if (c->NotifyExits == 0)
            return false;
        ulong now = HostClock.Tsc();
        if (_chainSince == 0 || _chainRetired != c->InstructionsRetired)
        {
            (_chainSince, _chainRetired) = (now, c->InstructionsRetired);
            return false;
        }
        if (now - _chainSince < c->NotifyWindow + NotifyThreshold)
            return false;
        _chainSince = 0;
        Outcome.Leave(c, ExitReason.Notify);
        return true;
    }
}
