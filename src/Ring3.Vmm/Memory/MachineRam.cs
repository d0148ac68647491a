using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Vmm;

/// <summary>One piece of RAM: [Gpa, Gpa + Bytes), backed at Hva.</summary>
public readonly unsafe struct RamRegion(ulong gpa, ulong bytes, byte* hva)
{
    public readonly ulong Gpa = gpa, Bytes = bytes;
    public readonly unsafe byte* Hva = hva;
    public ulong End => Gpa + Bytes;
}

/// <summary>
/// The guest's RAM as host memory, laid out by <see cref="MemoryLayout"/>. Loaders and tables write through bounds-checked accessors; a range that is not RAM
/// is refused.
/// SAFETY: every pointer handed to a span comes from <see cref="TryGet"/>, which has checked the range against one region; the mapping lives until Dispose.
/// </summary>
public sealed class MachineRam : IDisposable
{
    private readonly unsafe byte* _base;
    private readonly nuint _mapped;

    /// <summary>RAM pieces by ascending address.</summary>
    public IReadOnlyList<RamRegion> Regions { get; }

    /// <summary>Total RAM in bytes, as asked for (the video hole's 128 KiB are taken out of it).</summary>
    public ulong Bytes { get; }

    /// <summary>The host memory of all regions, and of the video hole between the first two.</summary>
    public unsafe HvaRange HostRange => new((ulong)Regions[0].Hva, (ulong)Regions[0].Hva + Bytes);

    /// <summary>End of RAM below the PCI hole.</summary>
    public ulong LowRamEnd { get; }
    /// <summary>End of RAM above 4 GiB; 4 GiB when there is none.</summary>
    public ulong HighRamEnd { get; }

    /// <param name="bytes">Between <see cref="MemoryLayout.MinRam"/> and <see cref="MemoryLayout.MaxRam"/>; rounded down to pages.</param>
    public unsafe MachineRam(ulong bytes)
    {
        if (bytes is < MemoryLayout.MinRam or > MemoryLayout.MaxRam)
            throw new BootException(ExitStatus.Usage, $"memory size must be between 1M and 1T, not {bytes} bytes");
        Bytes = bytes & ~0xfffUL;
        LowRamEnd = Math.Min(Bytes, MemoryLayout.PciHole);
        ulong high = Bytes - LowRamEnd;
        HighRamEnd = MemoryLayout.FourGiB + high;

        // One host mapping, 2 MiB aligned on both sides of the hole: hva and gpa agree modulo 2 MiB, so large pages are possible.
        const nuint Align = 1 << 21;
        _mapped = (nuint)Bytes + 2 * Align;
        try { _base = HostMemory.Map(_mapped); }
        catch (OutOfMemoryException e) { throw new BootException(ExitStatus.Resources, $"cannot allocate {Bytes >> 20} MiB of guest memory: {e.Message}"); }
        byte* start = (byte*)(((nuint)_base + Align - 1) & ~(Align - 1));
        var regions = new List<RamRegion>
        {
            new(0, MemoryLayout.LowEnd, start),
            new(MemoryLayout.HighStart, LowRamEnd - MemoryLayout.HighStart, start + MemoryLayout.HighStart),
        };
        if (high != 0)
            regions.Add(new RamRegion(MemoryLayout.FourGiB, high, start + LowRamEnd));
        Regions = regions;
    }

    /// <summary>The host's memory from the first byte on, in pieces: the regions, and the video hole between the first two, which is zero.</summary>
    public unsafe Span<byte> Flat(ulong offset, int bytes)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(offset, Bytes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan((ulong)bytes, Bytes - offset);
        return new Span<byte>(Regions[0].Hva + offset, bytes);
    }

    /// <summary>Some of it is a file's: what has never been touched need not be zero.</summary>
    public bool IsCopy { get; private set; }

    /// <summary>Puts a file's bytes there, page by page as they are used; what the guest writes stays its own. 0 or -errno.</summary>
    public unsafe int MapCopy(ulong offset, ulong bytes, Microsoft.Win32.SafeHandles.SafeFileHandle file, long at)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(offset, Bytes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(bytes, Bytes - offset);
        IsCopy = true;
        return HostMemory.MapCopyOver(Regions[0].Hva + offset, (nuint)bytes, (int)file.DangerousGetHandle(), at);
    }

    /// <summary>Host address of [gpa, gpa + bytes) when it lies within one RAM region.</summary>
    public unsafe bool TryGet(ulong gpa, ulong bytes, out byte* hva)
    {
        foreach (RamRegion r in Regions)
        {
            if (gpa < r.Gpa || gpa >= r.End || bytes > r.End - gpa)
                continue;
            hva = r.Hva + (gpa - r.Gpa);
            return true;
        }
        hva = null;
        return false;
    }

    /// <summary>True when the whole range is RAM.</summary>
    public unsafe bool Contains(ulong gpa, ulong bytes) => TryGet(gpa, bytes, out _);

    /// <summary>Copies bytes into RAM; a range outside RAM is a <see cref="BootException"/> naming <paramref name="what"/>.</summary>
    public void Write(ulong gpa, ReadOnlySpan<byte> data, string what)
    {
        if (data.IsEmpty)
            return;
        data.CopyTo(Span(gpa, data.Length, what));
    }

    /// <summary>Zeroes RAM.</summary>
    public void Clear(ulong gpa, ulong bytes, string what)
    {
        for (ulong done = 0; done < bytes;)
        {
            int n = (int)Math.Min(bytes - done, 1 << 30);
            Span(gpa + done, n, what).Clear();
            done += (ulong)n;
        }
    }

    /// <summary>RAM as a span; a range outside RAM is a <see cref="BootException"/> naming <paramref name="what"/>.</summary>
    public unsafe Span<byte> Span(ulong gpa, int bytes, string what)
    {
        if (bytes < 0 || !TryGet(gpa, (ulong)bytes, out byte* hva))
            throw new BootException(ExitStatus.Resources, $"{what} does not fit in guest memory: 0x{gpa:x}, {bytes} bytes, with {Bytes >> 20} MiB of RAM");
        return new Span<byte>(hva, bytes);
    }

    public unsafe void Dispose() => HostMemory.Unmap(_base, _mapped);
}
