using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Everything that misses level 1: translation, page-crossing accesses, MMIO, alignment checks, data breakpoints.</summary>
/// <remarks>
/// SAFETY: host pointers come from translations; bounce buffers hold <see cref="MmioReplay.MaxSize"/> bytes and the sizes of the two fragments add up to at
/// most that.
/// </remarks>
internal sealed unsafe partial class GuestAccess
{
    internal readonly MmioReplay Replay = new();
    private const int BounceSlots = 4;

    /// <summary>
    /// A page-crossing or MMIO access between ReadPtr/WritePtr and EndWrite. Slots are used in turn, so that an instruction can have several operands in
    /// flight.
    /// </summary>
    [StructLayout(LayoutKind.Sequential, Size = 128)]
    private struct Bounce
    {
        public fixed byte Data[MmioReplay.MaxSize];
        public byte* Host0, Host1;
        public ulong Gpa0, Gpa1;
        public int Size0, Size1;
        public ulong Linear;
        /// <summary>What is written depends on what was read.</summary>
        public bool IsModify;
    }

    private readonly PagingUnit _paging;
    private readonly ProcessorModel _model;

    public GuestAccess(PagingUnit paging, ProcessorModel model)
    {
        _paging = paging;
        _model = model;
    }

    private readonly Bounce* _bounces = (Bounce*)HostMemory.Map(BounceSlots * 128 + AlignedOperandSize);
    private int _nextBounce;

    /// <summary>Room for a copy of a misaligned operand, aligned to its size.</summary>
    internal byte* AlignedOperand => (byte*)(_bounces + BounceSlots);
    internal const int AlignedOperandSize = 64;

    public void Free() => HostMemory.Unmap(_bounces, BounceSlots * 128 + AlignedOperandSize);

    /// <summary>Finishes the access of the last <see cref="ExitReason.Mmio"/> exit: the data read, or anything for a write.</summary>
    public void CompleteMmio(ReadOnlySpan<byte> data) => Replay.Complete(data);

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal byte* ReadPtrSlow(CpuState* c, ulong linear, int size, AccessKind privilege)
    {
        AccessKind access = AccessKind.Read | privilege;
        int first = FirstFragment(linear, size);
        if (!_paging.CheckLinear(c, linear, size) || !CheckAligned(c, linear, size, privilege) || !_paging.Translate(c, linear, access, out Translation t))
            return null;
        if (first == size && t.Host != null)
            return Breakpoints.Observed(c, linear, size, false, t.Host + (linear & 0xfff));
        Translation second = default;
        if (first != size && !_paging.Translate(c, NextPage(c, linear), access, out second))
            return null;
        Bounce* b = Prepare(linear, size, first, t, second);
        return FillBounce(c, b) ? Breakpoints.Observed(c, linear, size, false, b->Data) : null;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal byte* WritePtrSlow(CpuState* c, ulong linear, int size, AccessKind privilege, bool modify)
    {
        AccessKind access = AccessKind.Write | privilege;
        int first = FirstFragment(linear, size);
        if (!_paging.CheckLinear(c, linear, size) || !CheckAligned(c, linear, size, privilege) || !_paging.Translate(c, linear, access, out Translation t))
            return null;
        if (first == size && t.Host != null)
            return Breakpoints.Observed(c, linear, size, true, t.Host + (linear & 0xfff));
        Translation second = default;
        if (first != size && !_paging.Translate(c, NextPage(c, linear), access, out second))
            return null;
        Bounce* b = Prepare(linear, size, first, t, second);
        b->IsModify = modify;
        if (modify && !FillBounce(c, b))
            return null;
        return Breakpoints.Observed(c, linear, size, true, b->Data);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal OpResult EndWriteSlow(CpuState* c, byte* ptr, ulong linear, int size)
    {
        long offset = ptr - (byte*)_bounces;
        if ((ulong)offset >= BounceSlots * 128)
        {
            _paging.CodeMayHaveChanged(ptr, size);
            return OpResult.Next;
        }
        Bounce* b = _bounces + offset / 128;
        // A device takes its half by an exit and the instruction starts again: memory keeps what was read until then.
        bool done = b->IsModify && b->Host0 != null && b->Host1 == null
            ? CommitSecond(c, b) && CommitFirst(c, b)
            : CommitFirst(c, b) && CommitSecond(c, b);
        return done ? OpResult.Next : OpResult.Fault;
    }

    private bool CommitFirst(CpuState* c, Bounce* b) => CommitFragment(c, b->Data, b->Host0, b->Gpa0, b->Size0, b->Linear);
    private bool CommitSecond(CpuState* c, Bounce* b) => CommitFragment(c, b->Data + b->Size0, b->Host1, b->Gpa1, b->Size1, b->Linear + (ulong)b->Size0);

    private bool CommitFragment(CpuState* c, byte* data, byte* host, ulong gpa, int size, ulong linear)
    {
        if (size == 0)
            return true;
        if (host == null)
            return Replay.Write(c, gpa, linear, data, size);
        Buffer.MemoryCopy(data, host, size, size);
        _paging.CodeMayHaveChanged(host, size);
        return true;
    }

    /// <summary>Where byte <paramref name="index"/> of the access at <paramref name="ptr"/> lies in host memory; null: it is a device's.</summary>
    internal byte* HostByte(byte* ptr, int index)
    {
        long offset = ptr - (byte*)_bounces;
        if ((ulong)offset >= BounceSlots * 128)
            return ptr + index;
        Bounce* b = _bounces + offset / 128;
        if (index < b->Size0)
            return b->Host0 == null ? null : b->Host0 + index;
        return b->Host1 == null ? null : b->Host1 + (index - b->Size0);
    }

    private bool FillBounce(CpuState* c, Bounce* b) =>
        FillFragment(c, b->Data, b->Host0, b->Gpa0, b->Size0, b->Linear)
            && FillFragment(c, b->Data + b->Size0, b->Host1, b->Gpa1, b->Size1, b->Linear + (ulong)b->Size0);

    private bool FillFragment(CpuState* c, byte* data, byte* host, ulong gpa, int size, ulong linear)
    {
        if (size == 0)
            return true;
        if (host == null)
            return Replay.Read(c, gpa, linear, data, size);
        Buffer.MemoryCopy(host, data, size, size);
        return true;
    }

    private Bounce* Prepare(ulong linear, int size, int first, in Translation t, in Translation second)
    {
        Bounce* b = _bounces + (_nextBounce++ & (BounceSlots - 1));
        ulong offset = linear & 0xfff;
        b->Linear = linear;
        b->Size0 = first;
        b->Size1 = size - first;
        b->Gpa0 = t.Gpa + offset;
        b->Gpa1 = second.Gpa;
        b->Host0 = t.Host != null ? t.Host + offset : null;
        b->Host1 = second.Host;
        return b;
    }

    private static int FirstFragment(ulong linear, int size) => Math.Min(size, 0x1000 - (int)(linear & 0xfff));

    private static ulong NextPage(CpuState* c, ulong linear)
    {
        ulong next = (linear & ~0xfffUL) + 0x1000;
        return CpuMode.Is64(c) ? next : next & 0xffff_ffff;
    }

    /// <summary>
    /// #AC has priority over page faults of the same access, as processors do it. Vectors need 16-byte alignment whatever their size, or none by the model;
    /// 80-bit numbers 8 (measured).
    /// </summary>
    private bool CheckAligned(CpuState* c, ulong linear, int size, AccessKind privilege)
    {
        if (size >= 16 && _model.SparesVectorAlignment)
            return true;
        int alignment = size == 10 ? 8 : !int.IsPow2(size) ? 1 : Math.Min(size, 16);
        if ((linear & (ulong)(alignment - 1)) == 0 || !CpuMode.AlignmentChecked(c) || (privilege & AccessKind.User) == 0)
            return true;
        Outcome.Raise(c, Vector.AC, 0);
        return false;
    }
}
