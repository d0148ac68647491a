using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>
/// System calls that are made one after the other by machine code, so that neither a garbage collection nor another managed thread can come between them. An entry whose result is not the expected one skips the
/// next entries; each keeps its result.
/// </summary>
/// <remarks>SAFETY: entries are bounds-checked; the calls themselves are the caller's responsibility, who keeps their pointers valid.</remarks>
internal sealed unsafe class SystemCallList : IDisposable
{
    internal const long Mmap = 9, Mprotect = 10, Pread = 17, Pwrite = 18, Madvise = 28;
    /// <summary>Not a call: result = word at A1 and A2.</summary>
    internal const long Mask = -1;

    /// <summary>One call. The layout is in <see cref="FaultCode.RunList"/>.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 80)]
    internal struct Entry
    {
        public long Number, A1, A2, A3, A4, A5, A6, Result, Expected, Skip;
    }

    private static readonly ExecutableMemory s_code = new(4096);
    private static readonly delegate* unmanaged<Entry*, Entry*, void> s_run = (delegate* unmanaged<Entry*, Entry*, void>)s_code.Add(FaultCode.RunList);

    private readonly Entry* _entries;
    private readonly int _capacity;

    internal SystemCallList(int capacity)
    {
        _capacity = capacity;
        _entries = (Entry*)NativeMemory.Alloc((nuint)capacity, (nuint)sizeof(Entry));
    }

    internal int Count { get; private set; }

    internal ref Entry this[int index] => ref _entries[index];

    internal void Clear() => Count = 0;

    /// <summary>Appends a call and returns its index.</summary>
    internal int Add(long number, long a1, long a2, long a3, long a4 = 0, long a5 = 0, long a6 = 0, long expected = 0, long skip = 0)
    {
        if (Count == _capacity)
            throw new InvalidOperationException("list of system calls is full");
        _entries[Count] = new Entry { Number = number, A1 = a1, A2 = a2, A3 = a3, A4 = a4, A5 = a5, A6 = a6, Result = long.MinValue, Expected = expected, Skip = skip };
        return Count++;
    }

    /// <summary>Makes the calls. Results of skipped entries stay <see cref="long.MinValue"/>.</summary>
    internal void Run() => s_run(_entries, _entries + Count);

    internal bool Succeeded(int index) => _entries[index].Result == _entries[index].Expected;

    public void Dispose() => NativeMemory.Free(_entries);
}
