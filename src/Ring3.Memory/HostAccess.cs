using Ring3.Host;

namespace Ring3.Memory;

/// <summary>
/// Every raw access of the hypervisor to host memory that backs a guest. The client may take it away without notice: then the access fails, and the process
/// lives.
/// </summary>
/// <remarks>
/// SAFETY: (whole file) guest memory is touched through <see cref="UserCopy"/> only; the other side is the caller's. Accesses of 1, 2, 4 or 8 aligned bytes are
/// single host accesses, as the guest's other processors expect.
/// </remarks>
public static class HostAccess
{
    /// <summary>Copies guest memory out. Aligned 1, 2, 4 and 8 byte copies are atomic.</summary>
    /// <returns>False if the memory could not be read.</returns>
    public static unsafe bool Read(ulong hva, void* destination, nuint length)
    {
        if ((hva & (length - 1)) != 0)
            return UserCopy.TryRead(hva, destination, length);
        switch (length)
        {
            case 1: return UserCopy.TryRead1(hva, out *(byte*)destination);
            case 2:
                bool ok2 = UserCopy.TryRead2(hva, out ushort v2);
                *(ushort*)destination = v2;
                return ok2;
            case 4:
                bool ok4 = UserCopy.TryRead4(hva, out uint v4);
                *(uint*)destination = v4;
                return ok4;
            case 8:
                bool ok8 = UserCopy.TryRead8(hva, out ulong v8);
                *(ulong*)destination = v8;
                return ok8;
            default: return UserCopy.TryRead(hva, destination, length);
        }
    }

    /// <summary>Copies into guest memory. Aligned 1, 2, 4 and 8 byte copies are atomic.</summary>
    /// <returns>False if the memory could not be written.</returns>
    public static unsafe bool Write(ulong hva, void* source, nuint length)
    {
        if ((hva & (length - 1)) != 0)
            return UserCopy.TryWrite(hva, source, length);
        return length switch
        {
            1 => UserCopy.TryWrite1(hva, *(byte*)source),
            2 => UserCopy.TryWrite2(hva, *(ushort*)source),
            4 => UserCopy.TryWrite4(hva, *(uint*)source),
            8 => UserCopy.TryWrite8(hva, *(ulong*)source),
            _ => UserCopy.TryWrite(hva, source, length),
        };
    }

    public static bool Fill(ulong hva, byte value, nuint length) => UserCopy.Fill(hva, value, length);

    /// <summary>Compare-exchange of a naturally aligned value.</summary>
    /// <returns>False if the memory could not be written.</returns>
    public static bool CompareExchange(ulong hva, ulong value, ulong comparand, out ulong observed) =>
        UserCopy.CompareExchange(hva, value, comparand, out observed);

    /// <inheritdoc cref="CompareExchange(ulong, ulong, ulong, out ulong)"/>
    public static bool CompareExchange(ulong hva, uint value, uint comparand, out uint observed) =>
        UserCopy.CompareExchange(hva, value, comparand, out observed);

    /// <inheritdoc cref="CompareExchange(ulong, ulong, ulong, out ulong)"/>
    public static bool CompareExchange(ulong hva, byte value, byte comparand, out byte observed) =>
        UserCopy.CompareExchange(hva, value, comparand, out observed);
}
