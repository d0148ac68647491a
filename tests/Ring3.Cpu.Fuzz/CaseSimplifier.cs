using System.Runtime.CompilerServices;
using Iced.Intel;

namespace Ring3.Differential;

/// <summary>
/// Takes out of a case what its instructions do not use: registers get a pattern, memory away from the operands becomes zero, the patch becomes part of
/// the data. A case that is kept in a file is small then, and its result is the same in all
/// that it changes: the native side runs the simplified case.
/// </summary>
/// <remarks>SAFETY: writes only inside the given case and its data pages.</remarks>
internal sealed unsafe class CaseSimplifier
{
    private readonly InstructionInfoFactory _infoFactory = new();
    private readonly byte[] _kept = new byte[Sandbox.DataSize];
    private uint _gpr, _vectors;
    private bool _x87;

    /// <summary>What registers hold that no instruction of the case uses.</summary>
    internal static ulong GprPattern(int n, uint bits) => bits != 64 && n >= 8 ? 0 : 0xa0 + (ulong)n;

    internal static void VectorPattern(int n, byte* low, byte* high)
    {
        new Span<byte>(low, 16).Fill((byte)(0x40 + n));
        new Span<byte>(high, 16).Fill((byte)(0x50 + n));
    }

    internal static void X87Pattern(int n, byte* st)
    {
        Unsafe.WriteUnaligned(st, 1UL << 63 | (uint)n);
        Unsafe.WriteUnaligned(st + 8, 0x3fffUL + (uint)n);
    }

    /// <summary>No x87 instruction has been executed.</summary>
    internal static void ClearPointers(CaseInput* s)
    {
        Unsafe.WriteUnaligned(s->Xsave + XsaveArea.Fop, (ushort)0);
        Unsafe.WriteUnaligned(s->Xsave + XsaveArea.Fip, 0UL);
        Unsafe.WriteUnaligned(s->Xsave + XsaveArea.Fdp, 0UL);
    }

    /// <summary>Simplifies the case in place; <paramref name="data"/> are the data pages of this case alone.</summary>
    internal void Simplify(in CaseMeta meta, CaseInput* s, ReadOnlySpan<byte> code, byte* data)
    {
        if (s->PatchLength != 0)
            Buffer.MemoryCopy(s->Patch, data + s->PatchOffset, Sandbox.DataSize - s->PatchOffset, s->PatchLength);
        s->PatchOffset = s->PatchLength = 0;
        new Span<byte>(s->Patch, Sandbox.MaxPatch).Clear();
        if (meta.Kind != CaseKind.Compare)
        {
            new Span<byte>(data, Sandbox.DataSize).Clear();
            if (meta.Kind == CaseKind.Invalid)
                return;
        }
        _gpr = _vectors = 0;
        _x87 = false;
        Array.Clear(_kept);
        var decoder = Iced.Intel.Decoder.Create((int)s->Bits, code.ToArray(), s->Rip);
        while (decoder.IP < s->NextRip)
        {
            Instruction i = decoder.Decode();
            if (i.IsInvalid)
            {
                // Runs over the end of the code: the operands are not known.
                _gpr = uint.MaxValue;
                break;
            }
            Use(i, s);
        }
        for (int n = 0; n < 16; n++)
        {
            if ((_gpr & 1u << n) == 0)
                s->Gpr[n] = GprPattern(n, s->Bits);
            if ((_vectors & 1u << n) == 0)
                VectorPattern(n, s->Xsave + XsaveArea.Xmm + 16 * n, s->Xsave + XsaveArea.YmmHigh + 16 * n);
        }
        if (!_x87)
            ClearPointers(s);
        for (int n = 0; n < 8 && !_x87; n++)
            X87Pattern(n, s->Xsave + XsaveArea.St + 16 * n);
        for (int n = 0; n < Sandbox.DataSize; n++)
        {
            if (_kept[n] == 0)
                data[n] = 0;
        }
    }

    private void Use(in Instruction i, CaseInput* s)
    {
        InstructionInfo info = _infoFactory.GetInfo(i);
        foreach (UsedRegister u in info.GetUsedRegisters())
        {
            Register full = u.Register.GetFullRegister();
            if (full.IsGPR64() || full.IsGPR32())
                _gpr |= 1u << full.GetNumber();
            else if (full.IsVectorRegister() && full.GetNumber() < 16)
                _vectors |= 1u << full.GetNumber();
        }
        bool image = i.Mnemonic is Mnemonic.Fxsave or Mnemonic.Fxsave64 or Mnemonic.Fxrstor or Mnemonic.Fxrstor64;
        if (image)
            _vectors = uint.MaxValue;
        _x87 |= image || i.Code.CpuidFeatures().Any(f => f is CpuidFeature.FPU or CpuidFeature.FPU287 or CpuidFeature.FPU387 or CpuidFeature.MMX) || UsesMmx(i);
        if (i.Mnemonic == Mnemonic.Clzero)
        {
            _gpr |= 1;
            Keep(Placement.ClzeroAddress(i, s), 64);
        }
        foreach (UsedMemory m in info.GetUsedMemory())
        {
            ulong at = Linear(m, s);
            int size = Math.Max(m.MemorySize.GetSize(), 16), before = 16;
            if (image || i.Mnemonic is Mnemonic.Fnsave or Mnemonic.Frstor or Mnemonic.Fnstenv or Mnemonic.Fldenv)
                size = 512;
            else if (i.IsStringInstruction || i.IsVsib || i.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc or Mnemonic.Enter)
                (before, size) = (640, 640);
            Keep(at - (ulong)before, before + size + 16);
        }
    }

    private static bool UsesMmx(in Instruction i)
    {
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) == OpKind.Register && i.GetOpRegister(n).IsMM())
                return true;
        }
        return i.Mnemonic is Mnemonic.Maskmovq or Mnemonic.Emms;
    }

    private void Keep(ulong at, int count)
    {
        for (int n = 0; n < count; n++)
        {
            ulong offset = at + (ulong)n - Sandbox.DataAddress;
            if (offset < Sandbox.DataSize)
                _kept[offset] = 1;
        }
    }

    private static ulong Linear(in UsedMemory m, CaseInput* s)
    {
        ulong offset = m.Displacement + Value(m.Base, s) + (m.Index.IsVectorRegister() ? 0 : Value(m.Index, s) * (ulong)m.Scale);
        if (m.AddressSize == CodeSize.Code32)
            offset = (uint)offset;
        else if (m.AddressSize == CodeSize.Code16)
            offset = (ushort)offset;
        return offset + m.Segment switch { Register.FS => s->FsBase, Register.GS => s->GsBase, _ => s->Bits == 16 ? Sandbox.WordDataBase : 0 };
    }

    private static ulong Value(Register register, CaseInput* s)
    {
        if (register is Register.None or Register.RIP or Register.EIP)
            return 0;
        ulong v = s->Gpr[register.GetFullRegister().GetNumber()];
        return register.GetSize() switch { 1 => (byte)v, 2 => (ushort)v, 4 => (uint)v, _ => v };
    }
}
