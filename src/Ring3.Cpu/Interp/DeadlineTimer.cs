using System.Runtime.CompilerServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// <see cref="CpuState.TimerDeadline"/>: a processor that looks at the clock by itself, so that no other thread has to run for its owner's timers. Blocks are
/// too short for a look at each of them: the loop compares the count of
/// instructions, which it keeps anyway, with the count at which the next look is due.
/// </summary>
/// <remarks>SAFETY: the deadline and the next look are fields of the state.</remarks>
internal static unsafe class DeadlineTimer
{
    /// <summary>Instructions between two looks: at most some 10 us, and a look costs as much as some twenty blocks.</summary>
    private const ulong FewestInstructions = 256, MostInstructions = 8192;

    /// <summary>Fewer instructions than pass in so many ticks: a look comes before the deadline rather than behind it.</summary>
    private const int TicksShift = 4;

    /// <summary>Whether the deadline has come; if not, decides when to look again. At a boundary.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static bool HasCome(CpuState* c)
    {
        ulong now = HostClock.Tsc();
        if (now >= c->TimerDeadline)
            return true;
        c->TimerLook = c->InstructionsRetired + Math.Clamp(c->TimerDeadline - now >> TicksShift, FewestInstructions, MostInstructions);
        return false;
    }

    /// <summary>Inside a repeated instruction: whether it has to stop for the deadline. The loop looks next.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static bool MustLook(CpuState* c)
    {
        if (HostClock.Tsc() < c->TimerDeadline)
            return false;
        c->TimerLook = 0;
        return true;
    }
}
