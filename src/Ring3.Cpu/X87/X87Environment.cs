using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>The FSTENV image in its four formats. SPEC: SDM volume 1, "Protected Mode x87 FPU State Image in Memory, 32-Bit Format" and its siblings.</summary>
/// <remarks>SAFETY: buffers hold 28 bytes (wide) or 14.</remarks>
internal static unsafe class X87Environment
{
    private static bool IsProtected(CpuState* c) => (c->Cr0 & Cr0.PE) != 0 && (c->Rflags & Rflags.VM) == 0;

    /// <summary>Writes the image and returns its size.</summary>
    public static int Write(CpuState* c, byte* to, bool wide)
    {
        uint tag = X87Status.FullTag(c), fip = (uint)c->Fip, fdp = (uint)c->Fdp, fop = c->Fop & 0x7ffu;
        if (wide)
        {
            uint* w = (uint*)to;
            w[0] = 0xffff0000u | c->Fcw;
            w[1] = 0xffff0000u | c->Fsw;
            w[2] = 0xffff0000u | tag;
            if (IsProtected(c))
            {
                w[3] = fip;
                w[4] = c->FipSelector | fop << 16;
                w[5] = fdp;
                w[6] = 0xffff0000u | c->FdpSelector;
            }
            else
            {
                fip += (uint)c->FipSelector << 4;
                fdp += (uint)c->FdpSelector << 4;
                w[3] = 0xffff0000u | fip & 0xffff;
                w[4] = fip >> 16 << 12 | fop;
                w[5] = 0xffff0000u | fdp & 0xffff;
                w[6] = fdp >> 16 << 12;
            }
            return 28;
        }
        ushort* h = (ushort*)to;
        h[0] = c->Fcw;
        h[1] = c->Fsw;
        h[2] = (ushort)tag;
        if (IsProtected(c))
        {
            h[3] = (ushort)fip;
            h[4] = c->FipSelector;
            h[5] = (ushort)fdp;
            h[6] = c->FdpSelector;
        }
        else
        {
            fip += (uint)c->FipSelector << 4;
            fdp += (uint)c->FdpSelector << 4;
            h[3] = (ushort)fip;
            h[4] = (ushort)(fip >> 16 << 12 | fop);
            h[5] = (ushort)fdp;
            h[6] = (ushort)(fdp >> 16 << 12);
        }
        return 14;
    }

    public static void Read(CpuState* c, byte* from, bool wide)
    {
        int step = wide ? 2 : 1;
        ushort* h = (ushort*)from;
        c->Fcw = (ushort)(h[0] & 0x1f3f | 0x40);
        c->Fsw = X87Status.WithSummary(h[step], c->Fcw);
        c->Ftw = X87Status.AbridgedTag(h[2 * step]);
        uint w3 = wide ? ((uint*)from)[3] : h[3], w4 = wide ? ((uint*)from)[4] : h[4], w5 = wide ? ((uint*)from)[5] : h[5], w6 = wide ? ((uint*)from)[6] : h[6];
        if (IsProtected(c))
        {
            c->Fip = w3;
            c->FipSelector = (ushort)w4;
            // The short format has no opcode.
            c->Fop = (ushort)(wide ? w4 >> 16 & 0x7ff : 0);
            c->Fdp = w5;
            c->FdpSelector = (ushort)w6;
            return;
        }
        c->Fip = w3 & 0xffff | w4 >> 12 << 16;
        c->Fop = (ushort)(w4 & 0x7ff);
        c->Fdp = w5 & 0xffff | w6 >> 12 << 16;
        c->FipSelector = c->FdpSelector = 0;
    }
}
