namespace Ring3.Vmm;

/// <summary>Where the parts of a kernel lie in memory, for images that may lie anywhere:
/// checks that they leave the firmware's memory alone, and finds room for what the loader adds.</summary>
/// <param name="name">File name for messages.</param>
internal sealed class LoadedImage(string name, MachineRam ram)
{
    private readonly List<(ulong Start, ulong End)> _taken = [];

    /// <summary>End of the highest part, page-aligned, at least 1 MiB.</summary>
    public ulong End { get; private set; } = MemoryLayout.OneMiB;

    /// <summary>A part of the image at [<paramref name="start"/>, + <paramref name="bytes"/>).</summary>
    /// <exception cref="BootException">It is not RAM, or the firmware's.</exception>
    public void Add(ulong start, ulong bytes)
    {
        if (bytes == 0)
            return;
        ulong end = start + Math.Min(bytes, ulong.MaxValue - start);
        if (start < BiosArea.DataEnd || start < MemoryLayout.OneMiB && end > MemoryLayout.Ebda)
            throw BootException.BadImage(
                $"{name}: loads at 0x{start:x} to 0x{end:x}, where the firmware's memory is"
                + $" (free below 1 MiB: 0x{BiosArea.DataEnd:x} to 0x{MemoryLayout.Ebda:x})");
        if (!ram.Contains(start, bytes))
            throw new BootException(ExitStatus.Resources, $"too little memory: {name} loads at 0x{start:x} to 0x{end:x}, and RAM is {ram.Bytes >> 20} MiB");
        _taken.Add((start, end));
        End = Math.Max(End, end + 0xfff & ~0xfffUL);
    }

    /// <summary>Takes the lowest free pages that hold <paramref name="bytes"/>: below 640 KiB, else behind the image.</summary>
    public ulong Reserve(ulong bytes)
    {
        ulong at = 0x1000;
        while (at + bytes <= MemoryLayout.Ebda)
        {
            ulong next = 0;
            foreach ((ulong start, ulong end) in _taken)
            {
                if (start < at + bytes && at < end)
                    next = Math.Max(next, end + 0xfff & ~0xfffUL);
            }
            if (next == 0)
            {
                _taken.Add((at, at + bytes));
                return at;
            }
            at = next;
        }
        at = End;
        Add(at, bytes);
        return at;
    }
}
