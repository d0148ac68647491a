using System.Numerics;
using Ring3.Host;

namespace Ring3.Memory;

/// <summary>One bit a page of a slot, set by any thread, taken by the client's dirty-log calls. Lazily backed: a bitmap of an idle guest costs
/// nothing.</summary>
public sealed class DirtyBitmap
{
    private readonly unsafe ulong* _words;
    private unsafe ulong* _scratch;
    private readonly nuint _bytes;

    /// <summary>Number of pages covered.</summary>
    public ulong NPages { get; }
    /// <summary>Number of 64-bit words.</summary>
    public ulong WordCount => (NPages + 63) / 64;

    public unsafe DirtyBitmap(ulong npages, bool initiallySet)
    {
        NPages = npages;
        _bytes = (nuint)(WordCount * 8);
        _words = (ulong*)HostMemory.Map(_bytes);
        if (!initiallySet)
            return;
        // SAFETY: all words lie inside the mapping.
        new Span<byte>(_words, checked((int)_bytes)).Fill(0xff);
        if (npages % 64 != 0)
            _words[WordCount - 1] = (1UL << (int)(npages % 64)) - 1;
    }

    // SAFETY: the object is unreachable: no published slot and no reader holds it, so no grace period is needed.
    unsafe ~DirtyBitmap()
    {
        HostMemory.Unmap(_words, _bytes);
        if (_scratch != null)
            HostMemory.Unmap(_scratch, _bytes);
    }

    /// <summary>Room for a copy of all words, for calls that exchange a bitmap with the client. Under the slots lock; the caller holds the bitmap.</summary>
    public unsafe ulong* Scratch
    {
        get
        {
            if (_scratch == null)
                _scratch = (ulong*)HostMemory.Map(_bytes);
            return _scratch;
        }
    }

    /// <summary>Copies all words to client memory. False: EFAULT.</summary>
    public unsafe bool CopyOut(ulong address)
    {
        bool ok = UserCopy.TryWrite(address, _words, _bytes);
        GC.KeepAlive(this);
        return ok;
    }

    /// <summary>Sets a page's bit. Cheap when it is already set.</summary>
    public unsafe void Set(ulong page)
    {
        if (page >= NPages)
            return;
        // SAFETY: page < NPages; words are aligned.
        ref ulong word = ref _words[page / 64];
        ulong bit = 1UL << (int)(page % 64);
        if ((Volatile.Read(ref word) & bit) == 0)
            Interlocked.Or(ref word, bit);
        GC.KeepAlive(this);
    }

    /// <summary>Sets the bits of up to 64 pages: bit n of <paramref name="bits"/> stands for page <paramref name="first"/> + n. Bits beyond the end are
    /// ignored. Any alignment.</summary>
    public void SetMany(ulong first, ulong bits)
    {
        int shift = (int)(first % 64);
        OrWord(first / 64, bits << shift);
        if (shift != 0)
            OrWord(first / 64 + 1, bits >> 64 - shift);
        GC.KeepAlive(this);
    }

    private unsafe void OrWord(ulong index, ulong bits)
    {
        if (bits == 0 || index >= WordCount)
            return;
        if (index == WordCount - 1 && NPages % 64 != 0)
            bits &= (1UL << (int)(NPages % 64)) - 1;
        // SAFETY: index < WordCount; words are aligned.
        ref ulong word = ref _words[index];
        if ((Volatile.Read(ref word) & bits) != bits)
            Interlocked.Or(ref word, bits);
    }

    public bool IsSet(ulong page) => page < NPages && (Word(page / 64) >> (int)(page % 64) & 1) != 0;

    /// <summary>64 pages' bits.</summary>
    public unsafe ulong Word(ulong index)
    {
        ulong value = index < WordCount ? Volatile.Read(ref _words[index]) : 0;
        GC.KeepAlive(this);
        return value;
    }

    /// <summary>Takes 64 pages' bits: returns them and leaves zeros.</summary>
    public unsafe ulong Take(ulong index)
    {
        if (index >= WordCount || Volatile.Read(ref _words[index]) == 0)
            return 0;
        ulong value = Interlocked.Exchange(ref _words[index], 0);
        GC.KeepAlive(this);
        return value;
    }

    /// <summary>Clears the bits of <paramref name="mask"/> in a word and returns those that were set.</summary>
    public unsafe ulong Clear(ulong index, ulong mask)
    {
        if (index >= WordCount || mask == 0)
            return 0;
        ulong was = Interlocked.And(ref _words[index], ~mask) & mask;
        GC.KeepAlive(this);
        return was;
    }

    /// <summary>Number of dirty pages. Not atomic.</summary>
    public ulong Count()
    {
        ulong n = 0;
        for (ulong i = 0; i < WordCount; i++)
            n += (ulong)BitOperations.PopCount(Word(i));
        return n;
    }
}
