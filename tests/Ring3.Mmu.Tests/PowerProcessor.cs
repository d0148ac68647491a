namespace Ring3.Mmu.Tests;

/// <summary>
/// The translation of a Power ISA v3.0 processor, driven by the partition-table entry as the hardware is: walks the radix tree by the sizes that its
/// entries give, or searches the two groups of the hashed table; sets R and C; keeps translations
/// until a flush. <see cref="Flush"/> returns when no processor is inside an access that began before.
/// </summary>
internal sealed unsafe class PowerProcessor(Func<ulong> partitionEntry)
{
    private const ulong Valid = 1UL << 63, Leaf = 1UL << 62;
    private readonly Dictionary<ulong, (ulong Page, bool Changed)> _tlb = [];
    private int _inside, _flush;

    /// <summary>Where R and C of the last hashed translation lie.</summary>
    public byte* LastHashEntry { get; private set; }

    public static Action Flush(params PowerProcessor[] processors) => () =>
    {
        foreach (PowerProcessor p in processors)
            Interlocked.Exchange(ref p._flush, 1);
        foreach (PowerProcessor p in processors)
        {
            int seen = Volatile.Read(ref p._inside);
            var spin = new SpinWait();
            while (seen % 2 == 1 && Volatile.Read(ref p._inside) == seen)
                spin.SpinOnce(-1);
        }
    };

    /// <summary>One access to a guest real (radix) or virtual (hash) address. False: a storage interrupt.</summary>
    public bool Access(ulong address, bool write, Action<ulong>? body = null)
    {
        // A full barrier: who flushes sees this access, or this access sees the flush.
        Interlocked.Increment(ref _inside);
        if (Interlocked.Exchange(ref _flush, 0) != 0)
            _tlb.Clear();
        bool ok = Translate(address, write, out ulong host);
        if (ok)
            body?.Invoke(host);
        Interlocked.Increment(ref _inside);
        return ok;
    }

    private bool Translate(ulong address, bool write, out ulong host)
    {
        ulong page = address >> 16, offset = address & 0xffff;
        host = 0;
        if (_tlb.TryGetValue(page, out var cached) && (!write || cached.Changed))
        {
            host = cached.Page + offset;
            return true;
        }
        ulong entry = partitionEntry();
        bool found = (entry >> 63) != 0 ? Radix(entry, address, write, out ulong at) : Hash(entry, address, write, out at);
        if (!found)
            return false;
        _tlb[page] = (at & ~0xffffUL, write);
        host = at;
        return true;
    }

    private static bool Radix(ulong partition, ulong address, bool write, out ulong host)
    {
        host = 0;
        int left = (int)((partition >> 61 & 3) << 3 | (partition >> 5 & 7)) + 31;
        if (address >> left != 0)
            return false;
        ulong table = partition & 0x0fff_ffff_ffff_ff00;
        int bits = (int)(partition & 31);
        while (true)
        {
            ulong* slot = (ulong*)table + (address >> (left - bits) & ((1UL << bits) - 1));
            left -= bits;
            ulong raw = Volatile.Read(ref *slot), value = Swap(raw);
            if ((value & Valid) == 0)
                return false;
            if ((value & Leaf) == 0)
            {
                table = value & 0x0fff_ffff_ffff_ff00;
                bits = (int)(value & 31);
                continue;
            }
            if ((value & (write ? 2UL : 4UL | 2UL)) == 0)
                return false;
            ulong wanted = value | 0x100 | (write ? 0x80UL : 0);
            if (wanted != value && Interlocked.CompareExchange(ref *slot, Swap(wanted), raw) != raw)
            {
                // The entry has changed under the update: translate again.
                left += bits;
                continue;
            }
            ulong mask = (1UL << left) - 1;
            host = value & 0x01ff_ffff_ffff_f000 & ~mask | address & mask;
            return true;
        }
    }

    private bool Hash(ulong partition, ulong va, bool write, out ulong host)
    {
        host = 0;
        int order = (int)(partition & 31) + 18;
        byte* table = (byte*)(partition & 0x0fff_ffff_fffc_0000);
        for (int secondary = 0; secondary < 2; secondary++)
        {
            ulong hash = va >> 28 ^ (va & 0xfff_ffff) >> 16;
            ulong group = (secondary != 0 ? ~hash : hash) & ((1UL << order - 7) - 1), tag = va >> 23 << 7 | 5 | (ulong)secondary << 1;
            for (ulong i = group * 8; i < group * 8 + 8; i++)
            {
                byte* e = table + i * 16;
                if (Swap(Volatile.Read(ref *(ulong*)e)) != tag)
                    continue;
                ulong value = Swap(Volatile.Read(ref *(ulong*)(e + 8)));
                if (write && (value & 3) == 3)
                    return false;
                // Each bit by a store to its own byte.
                if ((value & 0x100) == 0)
                    Volatile.Write(ref e[14], (byte)(Volatile.Read(ref e[14]) | 1));
                if (write && (value & 0x80) == 0)
                    Volatile.Write(ref e[15], (byte)(Volatile.Read(ref e[15]) | 0x80));
                LastHashEntry = e;
                host = value & 0x01ff_ffff_ffff_0000 | va & 0xffff;
                return true;
            }
        }
        return false;
    }

    private static ulong Swap(ulong value) => System.Buffers.Binary.BinaryPrimitives.ReverseEndianness(value);
}
