using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Sync;

/// <summary>A 32-bit word in unmanaged memory on a cache line of its own, on which threads can sleep.</summary>
internal sealed unsafe class FutexWord
{
    private readonly int* _word;

    public FutexWord()
    {
        _word = (int*)NativeMemory.AlignedAlloc(128, 128);
        *_word = 0;
    }

    // SAFETY: freed when no object that could wait on it is reachable.
    ~FutexWord() => NativeMemory.AlignedFree(_word);

    public ref int Value => ref *_word;

    public bool Wait(int expected, long timeoutNs = -1)
    {
        bool woken = Futex.Wait(_word, expected, timeoutNs);
        GC.KeepAlive(this);
        return woken;
    }

    public void Wake(int count)
    {
        Futex.Wake(_word, count);
        GC.KeepAlive(this);
    }
}
