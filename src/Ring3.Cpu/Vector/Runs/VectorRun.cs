using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// A run: consecutive vector instructions of a block, emitted as one piece of host code that keeps the guest's vector registers in the host's registers of the
/// same number.
/// The first op of the run points to it (<see cref="Op.Imm"/>); the others keep their own handlers, on which the loop falls back for anything unusual.
/// </summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
internal unsafe struct VectorRun
{
    /// <summary>Longest run, in ops.</summary>
    public const int MaxOps = 32;

    /// <summary>
    /// Executes ops from the first on and returns how many: fewer than all when a memory operand needs the slow path, which then is done by the op's own
    /// handler.
    /// A run that is a whole loop counts from the first op as well, so the number is negative when it leaves at an op before it.
    /// </summary>
    public delegate* unmanaged[SuppressGCTransition]<CpuState*, TlbEntry*, int> Entry;
    /// <summary>Handler of the first op alone.</summary>
    public delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Single;
}

/// <summary>
/// Descriptors of the process's runs and their budget. Neither descriptors nor code are freed: beyond the budget instructions are executed one by one.
/// </summary>
/// <remarks>SAFETY: the table is mapped for its largest size and backed as it fills.</remarks>
internal static unsafe class VectorRuns
{
    private const int Capacity = 1 << 17;
    private const long MaxCodeBytes = 48 << 20;

    private static readonly VectorRun* s_runs = (VectorRun*)HostMemory.Map((nuint)Capacity * (nuint)sizeof(VectorRun));
    private static int s_count;
    private static long s_bytes;

    public static bool HasRoom => Volatile.Read(ref s_count) < Capacity - 64 && Volatile.Read(ref s_bytes) < MaxCodeBytes;

    /// <summary>Adds a run. Null when the table is full.</summary>
    public static VectorRun* Add(in VectorRun run, int codeBytes)
    {
        int index = Interlocked.Increment(ref s_count) - 1;
        if (index >= Capacity)
            return null;
        Interlocked.Add(ref s_bytes, codeBytes);
        s_runs[index] = run;
        return s_runs + index;
    }
}
