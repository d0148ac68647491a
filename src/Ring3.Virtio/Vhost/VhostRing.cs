using Ring3.Host;

namespace Ring3.Virtio;

/// <summary>
/// The driver's side of a split ring that a back end serves, and a buffer for each request that it may have at a time. A request is at most two descriptors,
/// one to read and one to write, in its own place of the buffers.
/// </summary>
/// <remarks>
/// SAFETY: everything lies in [base, base + <see cref="BytesFor"/>), which the caller has mapped and keeps mapped; a slot's index is checked where it comes
/// from the other side, which can change all of it at any time and is believed nothing else.
/// </remarks>
internal sealed class VhostRing
{
    /// <summary>Requests at a time; two descriptors each.</summary>
    public const int Slots = 64, Size = 2 * Slots;
    private const int DescriptorsAt = 0, AvailableAt = 2048, UsedAt = 2560, RingBytes = 4096;
    private const ushort Next = 1, Write = 2, NoNotify = 1;

    private readonly unsafe byte* _ring;
    private readonly ulong _offset;
    private readonly int _slotBytes;
    private readonly bool[] _busy = new bool[Slots];
    private readonly int[] _free = new int[Slots];
    private int _freeCount = Slots;
    private ushort _available, _used;

    /// <param name="memory">The shared memory.</param>
    /// <param name="offset">Where the ring begins in it; a multiple of a page.</param>
    /// <param name="slotBytes">Bytes of a request, both parts; a multiple of a page.</param>
    public unsafe VhostRing(byte* memory, ulong offset, int slotBytes)
    {
        _ring = memory + offset;
        (_offset, _slotBytes) = (offset, slotBytes);
        // The same slots serve as long as they can: memory of others is never touched.
        for (int i = 0; i < Slots; i++)
            _free[i] = Slots - 1 - i;
    }

    public static ulong BytesFor(int slotBytes) => RingBytes + (ulong)Slots * (uint)slotBytes;

    public unsafe (ulong Descriptors, ulong Available, ulong Used) Addresses =>
        ((ulong)_ring + DescriptorsAt, (ulong)_ring + AvailableAt, (ulong)_ring + UsedAt);

    public int SlotBytes => _slotBytes;

    public bool HasRoom => _freeCount != 0;

    /// <summary>Takes a slot, which there must be: its index.</summary>
    public int Take()
    {
        int slot = _free[--_freeCount];
        _busy[slot] = true;
        return slot;
    }

    /// <summary>A slot is free again.</summary>
    public void Free(int slot)
    {
        _busy[slot] = false;
        _free[_freeCount++] = slot;
    }

    public bool IsBusy(int slot) => _busy[slot];

    /// <summary>The bytes of a slot: what is read, and behind it what is written.</summary>
    public unsafe Span<byte> Buffer(int slot) => new(_ring + RingBytes + (nint)slot * _slotBytes, _slotBytes);

    /// <summary>Gives a slot to the other side.</summary>
    public unsafe void Offer(int slot, int readable, int writable)
    {
        ulong at = _offset + RingBytes + (ulong)slot * (uint)_slotBytes;
        int head = 2 * slot;
        bool both = readable != 0 && writable != 0;
        if (readable != 0)
            Describe(head, at, (uint)readable, both ? Next : (ushort)0);
        if (writable != 0)
            Describe(both ? head + 1 : head, at + (uint)readable, (uint)writable, Write);
        *(ushort*)(_ring + AvailableAt + 4 + _available % Size * 2) = (ushort)head;
        Volatile.Write(ref *(ushort*)(_ring + AvailableAt + 2), ++_available);
    }

    private unsafe void Describe(int index, ulong gpa, uint length, ushort flags) =>
        *(Descriptor*)(_ring + DescriptorsAt + index * Descriptor.Bytes) = new Descriptor(gpa, length, flags, (ushort)(index + 1));

    /// <summary>Whether the other side wants to be kicked for what was offered.</summary>
    public unsafe bool ShouldKick()
    {
        // PAIRS-WITH: the back end, which says that it wants to hear, has a fence, and looks at the available index.
        Interlocked.MemoryBarrier();
        return (Volatile.Read(ref *(ushort*)(_ring + UsedAt)) & NoNotify) == 0;
    }

    /// <summary>Takes a request back: its slot, which is still busy, and how many bytes were written. False: there is none, or <paramref name="fault"/> says
    /// what the other side must not do.</summary>
    public unsafe bool TryTake(out int slot, out uint written, out string? fault)
    {
        (slot, written, fault) = (0, 0, null);
        ushort index = Volatile.Read(ref *(ushort*)(_ring + UsedAt + 2));
        if (index == _used)
            return false;
        ulong entry = *(ulong*)(_ring + UsedAt + 4 + _used % Size * 8);
        uint head = (uint)entry;
        slot = (int)(head / 2);
        written = (uint)(entry >> 32);
        if ((ushort)(index - _used) > Slots || head >= Size || head % 2 != 0 || !_busy[slot])
        {
            fault = "it gives back a request that it does not have";
            return false;
        }
        _used++;
        return true;
    }
}
