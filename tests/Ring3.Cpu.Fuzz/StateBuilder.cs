using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Differential;

/// <summary>Random register state: general registers, flags, segment bases, x87, SSE and AVX registers and their control words.</summary>
/// <remarks>SAFETY: writes only inside the given <see cref="CaseInput"/>, whose fixed buffers have the sizes used here.</remarks>
internal static unsafe class StateBuilder
{
    /// <summary>RFLAGS bits that user code can hold; TF is left out: stepping would end the native case early.</summary>
    private const ulong UserFlags = Rflags.Status | Rflags.DF | Rflags.NT | Rflags.ID;

    internal static void Fill(ref FuzzRandom r, CaseInput* s)
    {
        for (int i = 0; i < 16; i++)
            s->Gpr[i] = Values.Integer(ref r);
        s->Rflags = Rflags.Fixed1 | Rflags.IF | (r.Next() & Rflags.Status);
        if (r.Chance(20))
            s->Rflags |= r.Next() & UserFlags;
        if (r.Chance(3))
            s->Rflags |= Rflags.AC;
        s->FsBase = r.Chance(60) ? Sandbox.DataAddress + (ulong)r.Below(4096) : 0;
        s->GsBase = r.Chance(60) ? Sandbox.DataAddress + (ulong)r.Below(4096) : 0;
        s->PatchLength = 0;
        Vectors(ref r, s->Xsave);
        X87(ref r, s->Xsave);
    }

    private static void Vectors(ref FuzzRandom r, byte* x)
    {
        for (int i = 0; i < 16; i++)
        {
            Values.Lanes(ref r, x + XsaveArea.Xmm + 16 * i, 16);
            Values.Lanes(ref r, x + XsaveArea.YmmHigh + 16 * i, 16);
        }
        // Mostly all exceptions masked; otherwise any mask. Rounding, FTZ and DAZ vary; sticky flags are random.
        uint mxcsr = r.Chance(75) ? 0x1f80 : (uint)r.Next() & 0x1f80;
        if (r.Chance(50))
            mxcsr |= (uint)r.Next() & 0x6000;
        if (r.Chance(15))
            mxcsr |= (uint)r.Next() & 0x8040;
        if (r.Chance(40))
            mxcsr |= (uint)r.Next() & 0x3f;
        Unsafe.WriteUnaligned(x + XsaveArea.Mxcsr, mxcsr);
        Unsafe.WriteUnaligned(x + XsaveArea.Mxcsr + 4, 0x2ffff);
        ulong* header = (ulong*)(x + XsaveArea.Header);
        header[0] = 7;
        for (int i = 1; i < 8; i++)
            header[i] = 0;
    }

    /// <summary>
    /// What a last x87 instruction has left. From a source of its own, so that the cases of a seed are those that they were without pointers. FIP is
    /// canonical: XRSTOR makes it so on some processors.
    /// </summary>
    private static void Pointers(FuzzRandom r, byte* x)
    {
        Unsafe.WriteUnaligned(x + XsaveArea.Fop, (ushort)(r.Next() & 0x7ff));
        Unsafe.WriteUnaligned(x + XsaveArea.Fip, r.Chance(50) ? Sandbox.CodeAddress + r.Next() % Sandbox.CodeSize : (ulong)((long)r.Next() >> r.Below(40)
            + 16));
        Unsafe.WriteUnaligned(x + XsaveArea.Fdp, r.Chance(50) ? Sandbox.DataAddress + r.Next() % Sandbox.DataSize : r.Next() >> r.Below(40));
    }

    private static void X87(ref FuzzRandom r, byte* x)
    {
        uint fcw = r.Chance(80) ? 0x37fu : 0x340 | ((uint)r.Next() & 0x3f);
        if (r.Chance(40))
            fcw = (fcw & 0xff) | ((uint)r.Next() & 0xf00);
        if (((fcw >> 8) & 3) == 1)
            fcw |= 0x200; // precision control 01 is reserved
        uint fsw = (uint)r.Next() & 0x7f00;
        if (r.Chance(30))
            fsw |= (uint)r.Next() & 0x7f;
        if ((fsw & ~fcw & 0x3f) != 0)
        {
            if (r.Chance(80))
                fsw &= ~0x3fu | fcw; // a pending exception ends almost every instruction in #MF: keep it rare
            else
                fsw |= 0x8080;
        }
        byte tags = r.Below(4) switch { 0 => (byte)r.Next(), 1 => 0, _ => 0xff };
        Unsafe.WriteUnaligned(x + XsaveArea.Fcw, (ushort)fcw);
        Unsafe.WriteUnaligned(x + XsaveArea.Fsw, (ushort)fsw);
        x[XsaveArea.Ftw] = tags;
        x[XsaveArea.Ftw + 1] = 0;
        Pointers(new FuzzRandom(Unsafe.ReadUnaligned<ulong>(x + XsaveArea.Xmm) ^ (ulong)fsw << 32 ^ fcw), x);
        for (int i = 0; i < 8; i++)
        {
            byte* st = x + XsaveArea.St + 16 * i;
            if (r.Chance(15))
            {
                // What an MMX register looks like.
                Values.Operand(ref r, st, 8);
                Unsafe.WriteUnaligned(st + 8, (ushort)0xffff);
            }
            else
            {
                Values.Extended(ref r, st);
            }
            *(ushort*)(st + 10) = 0;
            *(uint*)(st + 12) = 0;
        }
    }
}
