using Ring3.Host;

namespace Ring3.Lockstep;

/// <summary>What pages of host memory held before somebody could write to them, and what the first of two runs has made of them.</summary>
/// <remarks>SAFETY: copies whole pages of guest memory that is mapped while the machine runs; slots lie in the journal's own block.</remarks>
internal sealed unsafe class PageJournal : IDisposable
{
    private const int MaxPages = 16384;
    private const nuint Page = 4096;

    private readonly byte* _copies = HostMemory.Map(2 * MaxPages * Page);
    private readonly Dictionary<nint, int> _slots = [];
    private readonly List<nint> _pages = [];
    private bool _second;

    public int Count => _pages.Count;

    public byte* this[int i] => (byte*)_pages[i];

    public byte* Before(int i) => _copies + (nuint)(2 * i) * Page;

    public byte* AfterFirst(int i) => _copies + (nuint)(2 * i + 1) * Page;

    public void Clear()
    {
        _slots.Clear();
        _pages.Clear();
        _second = false;
    }

    public void Note(byte* page)
    {
        page = (byte*)((nuint)page & ~(Page - 1));
        int i = _pages.Count;
        if (!_slots.TryAdd((nint)page, i))
            return;
        if (i == MaxPages)
            throw new InvalidOperationException("the journal is full");
        _pages.Add((nint)page);
        Copy(page, Before(i));
        if (_second)
            Copy(page, AfterFirst(i));
    }

    /// <summary>The first run is done: puts back what was there before it.</summary>
    public void BeginSecond()
    {
        for (int i = 0; i < Count; i++)
        {
            Copy(this[i], AfterFirst(i));
            Copy(Before(i), this[i]);
        }
        _second = true;
    }

    /// <summary>Puts back what was there before both.</summary>
    public void Rewind()
    {
        for (int i = 0; i < Count; i++)
            Copy(Before(i), this[i]);
    }

    /// <summary>Gives the pages what the first run has made of them.</summary>
    public void KeepFirst()
    {
        for (int i = 0; i < Count; i++)
            Copy(AfterFirst(i), this[i]);
    }

    private static void Copy(byte* from, byte* to) => Buffer.MemoryCopy(from, to, Page, Page);

    public void Dispose() => HostMemory.Unmap(_copies, 2 * MaxPages * Page);
}
