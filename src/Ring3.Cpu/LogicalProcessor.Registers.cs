// SAFETY: the state block lives as long as the processor.
namespace Ring3.Cpu;

// Registers that the state keeps in an internal form.
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>RFLAGS with every bit, outside the guest. After a write the owner calls <see cref="RecomputeMode"/>.</summary>
    public ulong RflagsValue
    {
        get => Flags.Get(State);
        set => Flags.Set(State, value);
    }

    /// <summary>Whether DR6 bits can all come from traps: an instruction breakpoint is a fault.</summary>
    public bool AreTraps(ulong bits) => DebugTraps.AreTraps(State, bits);
}
