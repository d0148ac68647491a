using System.Buffers.Binary;

namespace Ring3.Vmm.Bus;

/// <summary>
/// One address space of devices (ports, or MMIO): disjoint ranges found by binary search. Ranges are added while the machine is built and published as an immutable array, so
/// lookups from vCPU threads take no lock. An access outside every range reads as all ones.
/// </summary>
public sealed class AddressBus
{
    private readonly Lock _lock = new();
    private Range[] _ranges = [];

    private readonly record struct Range(ulong Start, ulong Last, IBusDevice Device);

    /// <summary>Adds a device at [start, start + length). False when the range is empty, wraps, or overlaps another.</summary>
    public bool TryAdd(ulong start, ulong length, IBusDevice device)
    {
        if (length == 0 || start + (length - 1) < start)
            return false;
        ulong last = start + (length - 1);
        lock (_lock)
        {
            Range[] old = _ranges;
            int at = 0;
            while (at < old.Length && old[at].Start <= last)
            {
                if (old[at].Last >= start)
                    return false;
                at++;
            }
            var next = new Range[old.Length + 1];
            Array.Copy(old, next, at);
            next[at] = new Range(start, last, device);
            Array.Copy(old, at, next, at + 1, old.Length - at);
            Volatile.Write(ref _ranges, next); // PAIRS-WITH: Find (array read)
        }
        return true;
    }

    /// <summary>Adds a device whose place is fixed by the machine's layout.</summary>
    public void Add(ulong start, ulong length, IBusDevice device)
    {
        if (!TryAdd(start, length, device))
            throw new InvalidOperationException($"bus range 0x{start:x}+0x{length:x} overlaps another device");
    }

    /// <summary>Device and offset for an address, or null.</summary>
    public IBusDevice? Find(ulong address, out ulong offset)
    {
        Range[] ranges = Volatile.Read(ref _ranges); // PAIRS-WITH: TryAdd (array publication)
        int low = 0, high = ranges.Length - 1;
        while (low <= high)
        {
            int mid = (low + high) >>> 1;
            ref readonly Range r = ref ranges[mid];
            if (address < r.Start)
                high = mid - 1;
            else if (address > r.Last)
                low = mid + 1;
            else
            {
                offset = address - r.Start;
                return r.Device;
            }
        }
        offset = 0;
        return null;
    }

    /// <summary>Reads; false (and all ones) when nobody answers.</summary>
    public bool Read(ulong address, Span<byte> data)
    {
        if (Find(address, out ulong offset) is { } device)
        {
            device.Read(offset, data);
            return true;
        }
        data.Fill(0xff);
        return false;
    }

    /// <summary>Writes; false when nobody answers.</summary>
    public bool Write(ulong address, ReadOnlySpan<byte> data)
    {
        if (Find(address, out ulong offset) is not { } device)
            return false;
        device.Write(offset, data);
        return true;
    }
}

/// <summary>Little-endian values in bus data of any width.</summary>
public static class BusData
{
    /// <summary>Value of up to 8 bytes, zero-extended.</summary>
    public static ulong Get(ReadOnlySpan<byte> data)
    {
        if (data.Length >= 8)
            return BinaryPrimitives.ReadUInt64LittleEndian(data);
        ulong v = 0;
        for (int i = data.Length - 1; i >= 0; i--)
            v = v << 8 | data[i];
        return v;
    }

    /// <summary>Stores the low bytes of a value; bytes beyond 8 are zero.</summary>
    public static void Set(Span<byte> data, ulong value)
    {
        for (int i = 0; i < data.Length; i++)
            data[i] = i < 8 ? (byte)(value >> (8 * i)) : (byte)0;
    }
}
