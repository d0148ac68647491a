namespace Ring3.Host;

/// <summary>The kernel's own conversion from TSC ticks to nanoseconds, as perf_event_open(2) shows it to every process that may watch itself.</summary>
/// <remarks>SAFETY: the attribute is a zeroed local of the size it names; one page of the event is mapped and read inside its first 64 bytes.</remarks>
public static class HostTimeScale
{
    private const int AttrSize = 64, TypeSoftware = 1, ConfigDummy = 9, ExcludeKernelAndHypervisor = 1 << 5 | 1 << 6;
    private const ulong CapUserTime = 1 << 3, CloseOnExec = 8;

    /// <summary>TSC frequency in kHz; 0 when the kernel does not say (no perf events, no stable TSC).</summary>
    public static unsafe uint TscKhz()
    {
        byte* attr = stackalloc byte[AttrSize];
        new Span<byte>(attr, AttrSize).Clear();
        *(uint*)attr = TypeSoftware;
        *(uint*)(attr + 4) = AttrSize;
        *(ulong*)(attr + 8) = ConfigDummy;
        *(ulong*)(attr + 40) = ExcludeKernelAndHypervisor;
        int fd = (int)Libc.syscall(298 /* perf_event_open */, (nint)attr, 0, -1, -1, (nint)CloseOnExec, 0);
        if (fd < 0)
            return 0;
        void* page = Libc.mmap(null, 4096, Libc.PROT_READ, Libc.MAP_SHARED, fd, 0);
        _ = Libc.close(fd);
        if (page == (void*)-1)
            return 0;
        ulong capabilities = *(ulong*)((byte*)page + 40);
        int shift = *(ushort*)((byte*)page + 50);
        uint mult = *(uint*)((byte*)page + 52);
        _ = Libc.munmap(page, 4096);
        if ((capabilities & CapUserTime) == 0 || mult == 0 || shift > 63)
            return 0;
        // ns = ticks * mult >> shift.
        UInt128 khz = (((UInt128)1_000_000 << shift) + mult / 2) / mult;
        return khz <= uint.MaxValue ? (uint)khz : 0;
    }
}
