using System.Runtime.InteropServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// Log of the MMIO accesses that the running instruction has completed. An MMIO access leaves the guest; after the owner completed it the instruction is
/// executed again
/// from its start, and accesses that are in the log are answered from it (reads) or skipped (writes), so that a device sees each access once.
/// The log ends when the instruction retires; for REP, when an iteration retires.
/// </summary>
/// <remarks>SAFETY: fixed-capacity pinned array, indices checked; copies are bounded by the entry's size.</remarks>
internal sealed unsafe class MmioReplay
{
    private const int Capacity = 64;
    internal const int MaxSize = 64;

    [StructLayout(LayoutKind.Sequential)]
    private struct Entry
    {
        public ulong Gpa;
        public byte Size, IsWrite;
        public fixed byte Data[MaxSize];
    }

    private readonly Entry[] _log = new Entry[Capacity];
    private int _count, _next;
    private bool _waiting;

    /// <summary>An instruction has completed an MMIO access but has not retired: it must run before any event is delivered.</summary>
    public bool InProgress => _count != 0;

    /// <summary>The processor starts the instruction again.</summary>
    public void Begin()
    {
        _next = 0;
        _waiting = false;
    }

    /// <summary>The instruction (or one REP iteration) retired, or ended in an exception.</summary>
    public void Retire()
    {
        _count = 0;
        _next = 0;
        _waiting = false;
    }

    /// <summary>Reads <paramref name="size"/> bytes. False: an exit is pending.</summary>
    public bool Read(CpuState* c, ulong gpa, ulong gva, byte* destination, int size)
    {
        if (!Completed(gpa, size, 0))
            return Leave(c, gpa, gva, null, size);
        fixed (byte* data = _log[_next++].Data)
            Buffer.MemoryCopy(data, destination, size, size);
        return true;
    }

    /// <summary>Writes <paramref name="size"/> bytes. False: an exit is pending.</summary>
    public bool Write(CpuState* c, ulong gpa, ulong gva, byte* source, int size)
    {
        if (!Completed(gpa, size, 1))
            return Leave(c, gpa, gva, source, size);
        _next++;
        return true;
    }

    /// <summary>The owner performed the access of the last Mmio exit.</summary>
    public void Complete(ReadOnlySpan<byte> data)
    {
        if (!_waiting)
            return;
        _waiting = false;
        Entry e = _log[_count];
        data[..Math.Min(data.Length, e.Size)].CopyTo(new Span<byte>(e.Data, MaxSize));
        _log[_count++] = e;
    }

    private bool Completed(ulong gpa, int size, int isWrite)
    {
        if (_next >= _count)
            return false;
        ref Entry e = ref _log[_next];
        if (e.Gpa == gpa && e.Size == size && e.IsWrite == isWrite)
            return true;
        // The instruction took another way this time (its operands changed in memory): what follows in the log never happened.
        _count = _next;
        return false;
    }

    /// <summary>The access that the owner is asked for is the first of its instruction.</summary>
    public bool IsFirst => _waiting && _count == 0;

    private bool Leave(CpuState* c, ulong gpa, ulong gva, byte* source, int size)
    {
        if (_count == Capacity)
        {
            Outcome.Leave(c, ExitReason.EmulationFailure);
            return false;
        }
        _log[_count] = new Entry { Gpa = gpa, Size = (byte)size, IsWrite = source != null ? (byte)1 : (byte)0 };
        _waiting = true;
        ExitInfo* exit = c->Exit;
        exit->Gpa = gpa;
        exit->Gva = gva;
        exit->Size = (byte)size;
        exit->InstructionLength = 0;
        exit->IsWrite = source != null ? (byte)1 : (byte)0;
        exit->Access = source != null ? AccessKind.Write : AccessKind.Read;
        if (source != null)
            Buffer.MemoryCopy(source, exit->Data, size, size);
        Outcome.Leave(c, ExitReason.Mmio);
        return false;
    }
}
