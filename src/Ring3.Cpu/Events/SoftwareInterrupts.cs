using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>INT n, INT3, INTO, INT1. In virtual-8086 mode INT n has rules of its own (VirtualInterrupts.cs).</summary>
/// <remarks>SAFETY: fills the three fields of the state that describe a pending event.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    internal bool HasCodeBreakpoints => _codeBreakpoints != 0;

    /// <summary>Makes a software event pending. RIP is moved over the instruction when it is delivered.</summary>
    internal OpResult RaiseSoftware(CpuState* c, byte vector, EventType type, int length)
    {
        Raise(c, vector);
        c->PendingType = (byte)type;
        c->PendingLength = (byte)length;
        return OpResult.Fault;
    }
}
