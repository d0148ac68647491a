using System.Runtime.CompilerServices;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Memory;

/// <summary>
/// Access to guest memory by guest-physical address, for the hypervisor and its devices. Any thread; each call is one RCU section a page run, so a deleted
/// slot's memory is not touched after the deletion has returned. Writes mark pages dirty and drop decoded code. False means that some byte has no usable slot
/// (read-only slots refuse writes); earlier bytes may have been copied.
/// </summary>
public sealed class GuestMemory(MemorySlots slots)
{
    public MemorySlots Slots { get; } = slots;

    public unsafe bool Read(ulong gpa, Span<byte> destination, int asId = 0)
    {
        // SAFETY: the span is pinned for the copy; hva is valid in the RCU section.
        fixed (byte* d = destination)
            return Read(gpa, d, (nuint)destination.Length, asId);
    }

    public unsafe bool Write(ulong gpa, ReadOnlySpan<byte> source, int asId = 0)
    {
        // SAFETY: as in Read.
        fixed (byte* s = source)
            return Write(gpa, s, (nuint)source.Length, asId);
    }

    /// <summary>Reads a value; single host access when it is aligned and of 1, 2, 4 or 8 bytes.</summary>
    public unsafe bool TryRead<T>(ulong gpa, out T value, int asId = 0) where T : unmanaged
    {
        // SAFETY: value is a local of the right size.
        T v = default;
        bool ok = Read(gpa, (byte*)&v, (nuint)sizeof(T), asId);
        value = v;
        return ok;
    }

    /// <summary>Writes a value; single host access when it is aligned and of 1, 2, 4 or 8 bytes.</summary>
    public unsafe bool TryWrite<T>(ulong gpa, T value, int asId = 0) where T : unmanaged => Write(gpa, (byte*)&value, (nuint)sizeof(T), asId);

    /// <summary>Copies guest memory to <paramref name="destination"/>.</summary>
    public unsafe bool Read(ulong gpa, byte* destination, nuint length, int asId = 0)
    {
        while (length != 0)
        {
            using var _ = Rcu.Read();
            if (!Slots.TryGetHvaRange(gpa, out ulong hva, out ulong bytes, write: false, asId))
                return false;
            nuint n = (nuint)Math.Min(bytes, length);
            if (!HostAccess.Read(hva, destination, n))
                return false;
            Slots.Residency?.Touched(hva, n);
            gpa += n;
            destination += n;
            length -= n;
        }
        return true;
    }

    /// <summary>Copies <paramref name="source"/> to guest memory.</summary>
    public unsafe bool Write(ulong gpa, byte* source, nuint length, int asId = 0)
    {
        while (length != 0)
        {
            using var _ = Rcu.Read();
            if (!FindWritable(gpa, asId, out Memslot? slot, out ulong hva))
                return false;
            nuint n = (nuint)Math.Min(slot.HvaEnd - hva, length);
            if (!HostAccess.Write(hva, source, n))
                return false;
            Written(slot, gpa, hva, n);
            gpa += n;
            source += n;
            length -= n;
        }
        return true;
    }

    /// <summary>Fills guest memory with one byte.</summary>
    public bool Fill(ulong gpa, byte value, ulong length, int asId = 0)
    {
        while (length != 0)
        {
            using var _ = Rcu.Read();
            if (!FindWritable(gpa, asId, out Memslot? slot, out ulong hva))
                return false;
            nuint n = (nuint)Math.Min(slot.HvaEnd - hva, length);
            if (!HostAccess.Fill(hva, value, n))
                return false;
            Written(slot, gpa, hva, n);
            gpa += n;
            length -= n;
        }
        return true;
    }

    /// <summary>Atomic compare-exchange of a naturally aligned byte, 32-bit or 64-bit value. <paramref name="observed"/> equals <paramref name="comparand"/> if
    /// the store was done.</summary>
    public unsafe bool CompareExchange<T>(ulong gpa, T value, T comparand, out T observed, int asId = 0) where T : unmanaged
    {
        observed = default;
        if ((gpa & (ulong)(sizeof(T) - 1)) != 0)
            return false;
        using var _ = Rcu.Read();
        if (!FindWritable(gpa, asId, out Memslot? slot, out ulong hva))
            return false;
        bool ok;
        T seen = default;
        // SAFETY: sizeof(T) selects the reinterpretation.
        switch (sizeof(T))
        {
            case 1:
                ok = HostAccess.CompareExchange(hva, *(byte*)&value, *(byte*)&comparand, out *(byte*)&seen);
                break;
            case 4:
                ok = HostAccess.CompareExchange(hva, *(uint*)&value, *(uint*)&comparand, out *(uint*)&seen);
                break;
            case 8:
                ok = HostAccess.CompareExchange(hva, *(ulong*)&value, *(ulong*)&comparand, out *(ulong*)&seen);
                break;
            default:
                return false;
        }
        observed = seen;
        if (ok)
            Written(slot, gpa, hva, (nuint)sizeof(T));
        return ok;
    }

    /// <summary>
    /// Finds the host memory behind a range that a system call is to write, and adds its pieces. The caller is in an RCU read section until it has said
    /// <see cref="WrittenByHost"/>. With a resident limit nothing is lent: pages are evicted under a system call.
    /// </summary>
    public bool TryLend(ulong gpa, ulong length, Span<HostPiece> pieces, ref int count)
    {
        if (Slots.Residency is not null)
            return false;
        while (length != 0)
        {
            if (count == pieces.Length || !FindWritable(gpa, asId: 0, out Memslot? slot, out ulong hva))
                return false;
            ulong n = Math.Min(slot.HvaEnd - hva, length);
            if (count != 0 && pieces[count - 1] is var last && last.Hva + last.Bytes == hva)
                pieces[count - 1] = last with { Bytes = last.Bytes + (nuint)n };
            else
                pieces[count++] = new HostPiece(hva, (nuint)n);
            gpa += n;
            length -= n;
        }
        return true;
    }

    /// <summary>A range that was lent has been written, whole or in part.</summary>
    public void WrittenByHost(ulong gpa, ulong length)
    {
        while (length != 0 && FindWritable(gpa, asId: 0, out Memslot? slot, out ulong hva))
        {
            ulong n = Math.Min(slot.HvaEnd - hva, length);
            Written(slot, gpa, hva, (nuint)n);
            gpa += n;
            length -= n;
        }
    }

    private bool FindWritable(ulong gpa, int asId, [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out Memslot? slot, out ulong hva)
    {
        slot = Slots.Find(gpa >> Page.Shift, asId);
        if (slot is null || slot.IsInvalid || slot.IsReadOnly)
        {
            hva = 0;
            return false;
        }
        hva = slot.HvaOf(gpa >> Page.Shift) | (gpa & Page.OffsetMask);
        return true;
    }

    /// <summary>After a write: dirty bits first, so that whoever sees a clear bit sees the old contents; then the code hook.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Written(Memslot slot, ulong gpa, ulong hva, nuint length)
    {
        Slots.Residency?.Touched(hva, length);
        if (slot.IsDirtyLogged)
            for (ulong gfn = gpa >> Page.Shift; gfn <= (gpa + length - 1) >> Page.Shift; gfn++)
                slot.MarkDirty(gfn);
        Slots.CodeWriteSink?.CodeWritten((nint)hva, length);
    }
}
