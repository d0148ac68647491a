namespace Ring3.Host.Tests;

/// <summary>Memory that is written to a file and dropped while others use it.</summary>
public sealed unsafe class PageStoreTests : IDisposable
{
    private const int Page = 4096, Pages = 1024;
    private readonly byte* _memory = HostMemory.MapAligned(Pages * Page, 2 << 20);
    private readonly PageStore _store = PageStore.CreateInDefaultDirectory();

    public void Dispose()
    {
        _store.Dispose();
        HostMemory.Unmap(_memory, Pages * Page);
    }

    private void Fill(int seed)
    {
        for (int i = 0; i < Pages; i++)
            *(long*)(_memory + i * Page + 8 * (i % 512)) = Value(seed, i);
    }

    private static long Value(int seed, int page) => seed * 1_000_003L + page;

    private void Verify(int seed)
    {
        for (int i = 0; i < Pages; i++)
            Assert.Equal(Value(seed, i), *(long*)(_memory + i * Page + 8 * (i % 512)));
    }

    private int Resident()
    {
        ulong[] words = new ulong[Pages];
        Assert.True(_store.Map.Read((ulong)_memory, words));
        return words.Count(w => (w & PageMap.Present) != 0);
    }

    /// <summary>Evicts everything by batches; returns how many pages were written.</summary>
    private int EvictAll(ulong pattern = ulong.MaxValue)
    {
        int written = 0;
        ulong[] pages = new ulong[8], evicted = new ulong[8];
        for (int block = 0; block < Pages; block += PageStore.BlockPages)
        {
            for (int half = 0; half < 8; half += 2)
            {
                pages.AsSpan().Clear();
                pages[half] = pages[half + 1] = pattern;
                written += _store.Evict((ulong)(_memory + block * Page), pages, evicted);
                Assert.Equal(pages, evicted);
            }
        }
        return written;
    }

    [Fact]
    public void Attach_KeepsContents_AndEvictedPagesComeBack()
    {
        Fill(1);
        _store.Attach((ulong)_memory, Pages * Page);
        Verify(1);
        Assert.Equal(0, EvictAll());
        Assert.Equal(0, Resident());
        Verify(1);
        Fill(2);
        Assert.Equal(Pages, EvictAll());
        Assert.Equal(0, Resident());
        Verify(2);
        // Read, not written: dropped without being written again.
        Assert.Equal(0, EvictAll());
        Verify(2);
    }

    [Fact]
    public void Evict_LeavesOtherPages()
    {
        Fill(3);
        _store.Attach((ulong)_memory, Pages * Page);
        Fill(4);
        Assert.Equal(Pages / 2, EvictAll(0xf0f0_f0f0_f0f0_f0f0));
        Assert.Equal(Pages / 2, Resident());
        Verify(4);
    }

    [Fact]
    public void Discard_ReadsAsZero_AlsoAfterEviction()
    {
        _store.Attach((ulong)_memory, Pages * Page);
        Fill(5);
        EvictAll();
        _store.Discard((ulong)_memory, Pages / 2 * Page);
        for (int i = 0; i < Pages; i++)
            Assert.Equal(i < Pages / 2 ? 0 : Value(5, i), *(long*)(_memory + i * Page + 8 * (i % 512)));
    }

    /// <summary>More than any file system of a test machine has: refused when the memory is attached, not when a page is evicted.</summary>
    [Fact]
    public void Attach_WithoutRoom_Throws_AndMemoryStays()
    {
        const ulong Huge = 1UL << 46;
        Fill(6);
        Assert.Throws<IOException>(() => _store.Attach((ulong)_memory, Huge));
        Verify(6);
    }

    [Fact]
    public void Discard_OutsideOfRanges_Throws() => Assert.Throws<ArgumentOutOfRangeException>(() => _store.Discard(0x1000, Page));

    /// <summary>
    /// Threads increment counters with ordinary stores, in managed code and in the accessors, while their pages are evicted again and again; every
    /// increment counts.
    /// </summary>
    [Fact]
    public void Evict_LosesNoWrite() => Assert.Equal(0, LostWrites(safe: true));

    /// <summary>The control: pages that are copied and dropped without the window lose writes.</summary>
    [Fact]
    public void CopyAndDropWithoutWindow_LosesWrites() => Assert.NotEqual(0, LostWrites(safe: false));

    private long LostWrites(bool safe)
    {
        const int Writers = 2, Rounds = 400;
        _store.Attach((ulong)_memory, Pages * Page);
        long[] made = new long[Writers];
        int stop = 0;
        var threads = new Thread[Writers];
        for (int w = 0; w < Writers; w++)
        {
            int writer = w;
            threads[w] = new Thread(() =>
            {
                // Each writer has its own word of each page.
                for (int page = 0; Volatile.Read(ref stop) == 0; page = (page + 1) % 64)
                {
                    long* word = (long*)(_memory + page * Page) + writer;
                    long value = Volatile.Read(ref *word) + 1;
                    if (writer == 0)
                        Volatile.Write(ref *word, value);
                    else
                        Assert.True(UserCopy.TryWrite8((ulong)word, (ulong)value));
                    made[writer]++;
                }
            });
            threads[w].Start();
        }
        ulong[] pages = new ulong[8], evicted = new ulong[8];
        pages[0] = ulong.MaxValue;
        for (int i = 0; i < Rounds; i++)
        {
            if (safe)
                _store.Evict((ulong)_memory, pages, evicted);
            else
                EvictWithoutWindow();
            if (i % 50 == 0)
                GC.Collect();
        }
        Volatile.Write(ref stop, 1);
        foreach (Thread t in threads)
            t.Join();
        long lost = 0;
        for (int w = 0; w < Writers; w++)
        {
            lost += made[w];
            for (int page = 0; page < 64; page++)
                lost -= ((long*)(_memory + page * Page))[w];
        }
        return lost;
    }

    /// <summary>The frozen defect: copy, drop, put the copy back where the page is next read from.</summary>
    private void EvictWithoutWindow()
    {
        byte[] copy = new byte[64 * Page];
        new Span<byte>(_memory, copy.Length).CopyTo(copy);
        _store.Discard((ulong)_memory, (ulong)copy.Length);
        copy.CopyTo(new Span<byte>(_memory, copy.Length));
    }
}
