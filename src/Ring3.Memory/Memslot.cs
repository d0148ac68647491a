using Ring3.Abi;
using Ring3.Arch;

namespace Ring3.Memory;

/// <summary>
/// One guest-physical range backed by host memory. Immutable once published; a change publishes another object. The dirty bitmap is shared by the versions of a
/// slot.
/// </summary>
public sealed class Memslot
{
    /// <summary>Slot number without the address-space part.</summary>
    public required ushort Id { get; init; }
    /// <summary>Address space: 0 normal, 1 SMM.</summary>
    public required byte AsId { get; init; }
    public required ulong BaseGfn { get; init; }
    /// <summary>Size in pages, never 0.</summary>
    public required ulong NPages { get; init; }
    /// <summary>Host virtual address of the first byte.</summary>
    public required ulong UserspaceAddr { get; init; }
    /// <summary>KVM_MEM_* flags.</summary>
    public required uint Flags { get; init; }
    /// <summary>Present while KVM_MEM_LOG_DIRTY_PAGES is set, unless the VM logs into dirty rings.</summary>
    public DirtyBitmap? DirtyBitmap { get; init; }
    /// <summary>While the slot is logged: how written pages are found. Never <see cref="DirtyTracking.Automatic"/>.</summary>
    public DirtyTracking Tracking { get; init; }
    /// <summary>Memory of the slot's private pages (KVM_MEM_GUEST_MEMFD), or null.</summary>
    public GuestMemfd? PrivateMemory { get; init; }
    /// <summary>Page of <see cref="PrivateMemory"/> that backs <see cref="BaseGfn"/>.</summary>
    public ulong PrivatePage { get; init; }
    /// <summary>The slot is being deleted or moved: nothing may be mapped from it any more, and accesses wait or fail.</summary>
    public bool IsInvalid { get; init; }

    /// <summary>Registration of the memory with FaultGuard: shared by the versions of a slot, taken back with the last.</summary>
    internal nint GuardTicket { get; set; }

    public ulong EndGfn => BaseGfn + NPages;
    public ulong HvaEnd => UserspaceAddr + (NPages << Page.Shift);
    public bool IsReadOnly => (Flags & KvmApi.KVM_MEM_READONLY) != 0;
    public bool IsDirtyLogged => (Flags & KvmApi.KVM_MEM_LOG_DIRTY_PAGES) != 0;

    /// <summary>The Dirty bits of leaves that map this slot are state that nothing else has.</summary>
    public bool TracksDirtyBits => Tracking == DirtyTracking.DirtyScan && DirtyBitmap is not null;

    public bool Contains(ulong gfn) => gfn - BaseGfn < NPages;

    /// <summary>Host virtual address of a page of this slot.</summary>
    public ulong HvaOf(ulong gfn) => UserspaceAddr + ((gfn - BaseGfn) << Page.Shift);

    /// <summary>Host virtual address of the private version of a page. Only with <see cref="PrivateMemory"/>.</summary>
    public ulong PrivateHvaOf(ulong gfn) => PrivateMemory!.Hva + ((PrivatePage + gfn - BaseGfn) << Page.Shift);

    /// <summary>Records that the guest (or the host for it) has written the page: in the bitmap, or in the ring of the vCPU that runs on this thread. No-op
    /// without dirty logging. Any thread.</summary>
    public void MarkDirty(ulong gfn)
    {
        if (DirtyBitmap is { } bitmap)
            bitmap.Set(gfn - BaseGfn);
        else if (IsDirtyLogged)
            DirtyRing.Current?.Push((uint)AsId << 16 | Id, gfn - BaseGfn);
    }

    internal Memslot AsInvalid() => new()
    {
        Id = Id, AsId = AsId, BaseGfn = BaseGfn, NPages = NPages, UserspaceAddr = UserspaceAddr, Flags = Flags, DirtyBitmap = DirtyBitmap, Tracking = Tracking,
        PrivateMemory = PrivateMemory, PrivatePage = PrivatePage, IsInvalid = true, GuardTicket = GuardTicket,
    };

    public override string ToString() =>
        $"slot {AsId}:{Id} gpa 0x{BaseGfn << Page.Shift:x}+0x{NPages << Page.Shift:x} hva 0x{UserspaceAddr:x} flags {Flags}{(IsInvalid ? " invalid" : "")}";
}
