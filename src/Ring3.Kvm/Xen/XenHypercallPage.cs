using Ring3.Abi;
using Ring3.Host;
using Ring3.Xen;

namespace Ring3.Kvm;

/// <summary>The page of stubs through which a Xen guest makes its hypercalls. It asks for it by writing the hypercall MSR.</summary>
internal static class XenHypercallPage
{
    private const int PageBytes = 4096, StubBytes = 32;

    /// <summary>Fills the page with our own stubs, or with the client's. False: #GP.</summary>
    /// <param name="value">What the guest wrote: the page's address, and which of the client's pages in the low bits.</param>
    /// <param name="longMode">The guest is a 64-bit one: its structures are, from now on.</param>
    public static bool TryWrite(Vm vm, ulong value, bool longMode)
    {
        XenVm xen = vm.Xen.Side;
        ulong number = value & (PageBytes - 1), gpa = value & ~(ulong)(PageBytes - 1);
        if (!xen.LatchMode(longMode))
            return false;
        byte[] page = new byte[PageBytes];
        if (!xen.InterceptsHypercalls)
            return TryReadClients(xen.Config, number, longMode, page) && vm.Memory.Write(gpa, page);
        if (number != 0)
            return false;
        FillStubs(page, vm.Processor.IsAmd);
        return vm.Memory.Write(gpa, page);
    }

    /// <summary>mov eax, n; vmcall or vmmcall, by vendor; ret; int3.</summary>
    private static void FillStubs(Span<byte> page, bool isAmd)
    {
        page.Fill(0xcc);
        for (int i = 0; i < PageBytes / StubBytes; i++)
        {
            Span<byte> stub = page[(i * StubBytes)..];
            stub[0] = 0xb8;
            BitConverter.TryWriteBytes(stub[1..], i);
            (stub[5], stub[6], stub[7], stub[8]) = (0x0f, 0x01, isAmd ? (byte)0xd9 : (byte)0xc1, 0xc3);
        }
    }

    /// <remarks>SAFETY: the page has the bytes that are copied; where from, the copy itself checks.</remarks>
    private static unsafe bool TryReadClients(in kvm_xen_hvm_config config, ulong number, bool longMode, byte[] page)
    {
        if (number >= (longMode ? config.blob_size_64 : config.blob_size_32))
            return false;
        fixed (byte* p = page)
            return UserCopy.TryRead((longMode ? config.blob_addr_64 : config.blob_addr_32) + number * PageBytes, p, PageBytes);
    }
}
