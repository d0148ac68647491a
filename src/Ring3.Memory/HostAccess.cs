using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Ring3.Memory;

/// <summary>
/// Every raw access of the hypervisor to host memory that backs a guest. The one place where memory that disappears without notice has to be caught.
/// </summary>
/// <remarks>
/// SAFETY: (whole file) callers pass addresses inside a slot that is published to them (RCU section) or inside a valid GfnToPfnCache, so the pages are mapped. Accesses of 1, 2, 4 or 8 aligned bytes
/// are single host accesses, as the guest's other processors expect. No exception escapes on plain memory.
/// </remarks>
public static unsafe class HostAccess
{
    /// <summary>Copies guest memory out. Aligned 1, 2, 4 and 8 byte copies are atomic.</summary>
    /// <returns>False if the memory could not be read.</returns>
    public static bool Read(ulong hva, void* destination, nuint length)
    {
        byte* p = (byte*)hva;
        if ((hva & (length - 1)) == 0)
        {
            switch (length)
            {
                case 1: *(byte*)destination = Volatile.Read(ref *p); return true;
                case 2: Unsafe.WriteUnaligned(destination, Volatile.Read(ref *(ushort*)p)); return true;
                case 4: Unsafe.WriteUnaligned(destination, Volatile.Read(ref *(uint*)p)); return true;
                case 8: Unsafe.WriteUnaligned(destination, Volatile.Read(ref *(ulong*)p)); return true;
            }
        }
        NativeMemory.Copy(p, destination, length);
        return true;
    }

    /// <summary>Copies into guest memory. Aligned 1, 2, 4 and 8 byte copies are atomic.</summary>
    /// <returns>False if the memory could not be written.</returns>
    public static bool Write(ulong hva, void* source, nuint length)
    {
        byte* p = (byte*)hva;
        if ((hva & (length - 1)) == 0)
        {
            switch (length)
            {
                case 1: Volatile.Write(ref *p, *(byte*)source); return true;
                case 2: Volatile.Write(ref *(ushort*)p, Unsafe.ReadUnaligned<ushort>(source)); return true;
                case 4: Volatile.Write(ref *(uint*)p, Unsafe.ReadUnaligned<uint>(source)); return true;
                case 8: Volatile.Write(ref *(ulong*)p, Unsafe.ReadUnaligned<ulong>(source)); return true;
            }
        }
        NativeMemory.Copy(source, p, length);
        return true;
    }

    public static bool Fill(ulong hva, byte value, nuint length)
    {
        NativeMemory.Fill((void*)hva, length, value);
        return true;
    }

    /// <summary>Compare-exchange of a naturally aligned value.</summary>
    public static bool CompareExchange(ulong hva, ulong value, ulong comparand, out ulong observed)
    {
        observed = Interlocked.CompareExchange(ref *(ulong*)hva, value, comparand);
        return true;
    }

    /// <inheritdoc cref="CompareExchange(ulong, ulong, ulong, out ulong)"/>
    public static bool CompareExchange(ulong hva, uint value, uint comparand, out uint observed)
    {
        observed = Interlocked.CompareExchange(ref *(uint*)hva, value, comparand);
        return true;
    }

    /// <inheritdoc cref="CompareExchange(ulong, ulong, ulong, out ulong)"/>
    public static bool CompareExchange(ulong hva, byte value, byte comparand, out byte observed)
    {
        observed = Interlocked.CompareExchange(ref *(byte*)hva, value, comparand);
        return true;
    }
}
