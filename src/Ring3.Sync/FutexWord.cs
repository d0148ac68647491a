using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Sync;

/// <summary>A 32-bit word on a cache line of its own, on which threads can sleep.</summary>
/// <remarks>
/// SAFETY: _at is an index into the array. The word lies in a pinned array, so its address is fixed; a reference to it keeps the array alive, so a thread that
/// is still inside an operation on it can never meet freed memory.
/// </remarks>
internal sealed class FutexWord
{
    private const int LineInts = 32;
    private readonly int[] _memory = GC.AllocateArray<int>(3 * LineInts, pinned: true);
    private readonly int _at;

    public unsafe FutexWord()
    {
        nuint start = (nuint)Unsafe.AsPointer(ref _memory[0]);
        _at = (int)(((start + 127) & ~(nuint)127) - start) / sizeof(int);
    }

    public ref int Value => ref Unsafe.Add(ref MemoryMarshal.GetArrayDataReference(_memory), _at);

    public unsafe bool Wait(int expected, long timeoutNs = -1)
    {
        bool woken = Futex.Wait((int*)Unsafe.AsPointer(ref _memory[_at]), expected, timeoutNs);
        GC.KeepAlive(_memory);
        return woken;
    }

    public unsafe void Wake(int count)
    {
        Futex.Wake((int*)Unsafe.AsPointer(ref _memory[_at]), count);
        GC.KeepAlive(_memory);
    }
}
