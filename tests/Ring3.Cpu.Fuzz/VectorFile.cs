using System.IO.Compression;
using System.Runtime.CompilerServices;
using System.Text;
using Iced.Intel;

namespace Ring3.Differential;

/// <summary>Whose results a file of vectors holds.</summary>
/// <param name="Vendor">As CPUID leaf 0 spells it.</param>
/// <param name="Family">Display family.</param>
/// <param name="Model">Display model.</param>
/// <param name="Source">How the results came about, one line.</param>
/// <param name="Pointers">FOP, FIP and FDP are part of the state.</param>
internal sealed record VectorHost(string Vendor, int Family, int Model, string Source, bool Pointers = false);

/// <summary>One case with the result of a processor: everything that a replay needs.</summary>
/// <remarks>SAFETY: <see cref="Place"/> writes inside the given memory; slots are below <see cref="Sandbox.MaxCases"/>.</remarks>
internal sealed unsafe class RecordedCase
{
    internal CaseInput Input;
    internal CaseOutput Native;
    internal CaseMeta Meta;
    internal int Slot;
    internal byte[] Code = [];
    /// <summary>Data pages before the case.</summary>
    internal byte[] Data = new byte[Sandbox.DataSize];

    /// <summary>Puts the case into its code slot, its data pages and the given input. The rest of the slot is filled with INT3.</summary>
    internal static CaseInput* Place(RecordedCase c, CaseMemory memory, int index)
    {
        CaseInput* input = memory.Input(index);
        *input = c.Input;
        c.Data.CopyTo(new Span<byte>(memory.Data, Sandbox.DataSize));
        byte* slot = memory.Code + c.Slot * Sandbox.SlotSize;
        new Span<byte>(slot, Sandbox.SlotSize).Fill(0xcc);
        int start = (int)(input->Rip % Sandbox.SlotSize);
        c.Code.CopyTo(new Span<byte>(slot + start, c.Code.Length));
        if (c.Meta.Kind == CaseKind.Compare)
            CaseBatch.EmitExit(slot + start + c.Meta.Length, input, memory.ExitAddress);
        return input;
    }
}

/// <summary>
/// Files of recorded cases: a header, then five Brotli streams (control, general registers, vectors, memory, code), so that like compresses with like.
/// Registers that hold the simplifier's pattern and results that equal the initial state are
/// not stored.
/// </summary>
/// <remarks>SAFETY: fixed buffers of local structures, at indices below their sizes.</remarks>
internal static unsafe class VectorFile
{
    private const string Magic = "ring3-vectors-1", MagicPointers = "ring3-vectors-2";

    internal static void Write(string path, VectorHost host, IReadOnlyList<RecordedCase> cases)
    {
        using var sections = new Sections();
        foreach (RecordedCase c in cases)
            new Encoder(sections, host.Pointers).Case(c);
        using FileStream file = File.Create(path);
        using var w = new BinaryWriter(file);
        w.Write(host.Pointers ? MagicPointers : Magic);
        w.Write(host.Vendor);
        w.Write(host.Family);
        w.Write(host.Model);
        w.Write(host.Source);
        w.Write(cases.Count);
        sections.Write(w);
    }

    internal static (VectorHost Host, List<RecordedCase> Cases) Read(string path)
    {
        using FileStream file = File.OpenRead(path);
        using var r = new BinaryReader(file);
        string magic = r.ReadString();
        if (magic is not (Magic or MagicPointers))
            throw new InvalidDataException($"{path}: not a file of vectors");
        var host = new VectorHost(r.ReadString(), r.ReadInt32(), r.ReadInt32(), r.ReadString(), magic == MagicPointers);
        int count = r.ReadInt32();
        using var sections = new Sections(r);
        var cases = new List<RecordedCase>();
        for (int n = 0; n < count; n++)
            cases.Add(new Decoder(sections, host.Pointers).Case());
        return (host, cases);
    }

    private sealed class Sections : IDisposable
    {
        private const int Count = 5;
        private readonly MemoryStream[] _streams = new MemoryStream[Count];
        internal readonly BinaryWriter[] To = new BinaryWriter[Count];
        internal readonly BinaryReader[] From = new BinaryReader[Count];

        internal Sections()
        {
            for (int n = 0; n < Count; n++)
                To[n] = new BinaryWriter(_streams[n] = new MemoryStream());
        }

        internal Sections(BinaryReader r)
        {
            for (int n = 0; n < Count; n++)
            {
                using var packed = new MemoryStream(r.ReadBytes(r.ReadInt32()));
                using var brotli = new BrotliStream(packed, CompressionMode.Decompress);
                _streams[n] = new MemoryStream();
                brotli.CopyTo(_streams[n]);
                _streams[n].Position = 0;
                From[n] = new BinaryReader(_streams[n]);
            }
        }

        internal void Write(BinaryWriter w)
        {
            foreach (MemoryStream s in _streams)
            {
                using var packed = new MemoryStream();
                using (var brotli = new BrotliStream(packed, CompressionLevel.SmallestSize, leaveOpen: true))
                    s.WriteTo(brotli);
                w.Write((int)packed.Length);
                w.Write(packed.ToArray());
            }
        }

        public void Dispose()
        {
            foreach (MemoryStream s in _streams)
                s.Dispose();
        }
    }

    private const int Control = 0, General = 1, Vector = 2, Memory = 3, Text = 4;
    private static readonly int[] s_words = [XsaveArea.Fcw, XsaveArea.Fsw, XsaveArea.Ftw, XsaveArea.Mxcsr, XsaveArea.Mxcsr + 2];

    private static readonly int[] s_pointers = [XsaveArea.Fip, XsaveArea.Fdp];

    private static bool Equal(byte* a, byte* b, int bytes) => new ReadOnlySpan<byte>(a, bytes).SequenceEqual(new ReadOnlySpan<byte>(b, bytes));

    private static CaseInput Pattern(uint bits)
    {
        CaseInput p = default;
        for (int n = 0; n < 16; n++)
        {
            p.Gpr[n] = CaseSimplifier.GprPattern(n, bits);
            CaseSimplifier.VectorPattern(n, p.Xsave + XsaveArea.Xmm + 16 * n, p.Xsave + XsaveArea.YmmHigh + 16 * n);
        }
        for (int n = 0; n < 8; n++)
            CaseSimplifier.X87Pattern(n, p.Xsave + XsaveArea.St + 16 * n);
        *(uint*)(p.Xsave + XsaveArea.Mxcsr + 4) = 0x2ffff;
        *(ulong*)(p.Xsave + XsaveArea.Header) = 7;
        return p;
    }

    private readonly struct Encoder(Sections sections, bool pointers)
    {
        private readonly BinaryWriter[] _to = sections.To;

        internal void Case(RecordedCase c)
        {
            BinaryWriter w = _to[Control];
            w.Write((byte)c.Input.Bits);
            w.Write((byte)((int)c.Meta.Kind << 4 | c.Meta.Count));
            w.Write((byte)c.Slot);
            w.Write((ushort)(c.Input.Rip % Sandbox.SlotSize));
            w.Write((byte)c.Meta.Length);
            w.Write((byte)c.Code.Length);
            _to[Text].Write(c.Code);
            w.Write((uint)c.Input.Rflags);
            if (c.Meta.Count > 1)
            {
                w.Write((ushort)c.Meta.UndefinedAtEnd);
                w.Write((ushort)c.Meta.UndefinedAnywhere);
            }
            CaseInput pattern = Pattern(c.Input.Bits);
            fixed (CaseInput* input = &c.Input)
            fixed (CaseOutput* native = &c.Native)
            {
                Registers(pattern.Gpr, input->Gpr, pattern.Xsave, input->Xsave);
                Integer(input->FsBase);
                Integer(input->GsBase);
                Lines(c.Data);
                Integer(native->Vector == CaseOutput.NoVector ? 0 : native->Vector + 1UL);
                if (native->Vector != CaseOutput.NoVector)
                {
                    Integer(native->ErrorCode);
                    Integer(native->Cr2);
                }
                Integer(native->Rip - input->NextRip);
                w.Write((uint)(native->Rflags ^ input->Rflags));
                Integer(native->FsBase - input->FsBase);
                Integer(native->GsBase - input->GsBase);
                Registers(input->Gpr, native->Gpr, input->Xsave, native->Xsave);
                Diffs(c, native);
            }
        }

        private void Integer(ulong v)
        {
            int bytes = 0;
            while (bytes < 8 && (bytes == 0 ? v != 0 : (ulong)((long)(v << (64 - 8 * bytes)) >> (64 - 8 * bytes)) != v))
                bytes++;
            _to[General].Write((byte)bytes);
            for (int n = 0; n < bytes; n++)
                _to[General].Write((byte)(v >> 8 * n));
        }

        private void Registers(ulong* gprBefore, ulong* gpr, byte* before, byte* now)
        {
            uint changed = 0, vectors = 0, x87 = 0;
            for (int n = 0; n < 16; n++)
            {
                changed |= gprBefore[n] != gpr[n] ? 1u << n : 0;
                vectors |= !Equal(before + XsaveArea.Xmm + 16 * n, now + XsaveArea.Xmm + 16 * n, 16) ? 1u << n : 0;
                vectors |= !Equal(before + XsaveArea.YmmHigh + 16 * n, now + XsaveArea.YmmHigh + 16 * n, 16) ? 0x1_0000u << n : 0;
                x87 |= n < 8 && !Equal(before + XsaveArea.St + 16 * n, now + XsaveArea.St + 16 * n, 10) ? 1u << n : 0;
            }
            _to[Control].Write((ushort)changed);
            _to[Control].Write(vectors);
            _to[Control].Write((byte)x87);
            for (int n = 0; n < 16; n++)
            {
                if ((changed & 1u << n) != 0)
                    Integer(gpr[n]);
                if ((vectors & 1u << n) != 0)
                    _to[Vector].Write(new ReadOnlySpan<byte>(now + XsaveArea.Xmm + 16 * n, 16));
                if ((vectors & 0x1_0000u << n) != 0)
                    _to[Vector].Write(new ReadOnlySpan<byte>(now + XsaveArea.YmmHigh + 16 * n, 16));
                if ((x87 & 1u << n) != 0)
                    _to[Vector].Write(new ReadOnlySpan<byte>(now + XsaveArea.St + 16 * n, 10));
            }
            foreach (int at in s_words)
                _to[Control].Write((ushort)(Unsafe.ReadUnaligned<ushort>(now + at) ^ Unsafe.ReadUnaligned<ushort>(before + at)));
            if (!pointers)
                return;
            _to[Control].Write((ushort)(Unsafe.ReadUnaligned<ushort>(now + XsaveArea.Fop) ^ Unsafe.ReadUnaligned<ushort>(before + XsaveArea.Fop)));
            foreach (int at in s_pointers)
                Integer(Unsafe.ReadUnaligned<ulong>(now + at) - Unsafe.ReadUnaligned<ulong>(before + at));
        }

        private void Lines(byte[] data)
        {
            for (int line = 0; line < Sandbox.DataSize / Sandbox.Line; line++)
            {
                ReadOnlySpan<byte> bytes = data.AsSpan(line * Sandbox.Line, Sandbox.Line);
                if (bytes.IndexOfAnyExcept((byte)0) < 0)
                    continue;
                _to[Control].Write((byte)(line + 1));
                _to[Memory].Write(bytes);
            }
            _to[Control].Write((byte)0);
        }

        private void Diffs(RecordedCase c, CaseOutput* o)
        {
            _to[Control].Write((byte)o->Diffs);
            for (int n = 0; n < Math.Min(o->Diffs, Sandbox.MaxDiffs); n++)
            {
                int line = (int)o->DiffLine[n];
                _to[Control].Write((byte)line);
                for (int k = 0; k < Sandbox.Line; k++)
                    _to[Memory].Write((byte)(o->DiffBytes[n * Sandbox.Line + k] ^ c.Data[line * Sandbox.Line + k]));
            }
        }
    }

    private readonly struct Decoder(Sections sections, bool pointers)
    {
        private readonly BinaryReader[] _from = sections.From;

        internal RecordedCase Case()
        {
            BinaryReader r = _from[Control];
            uint bits = r.ReadByte();
            var c = new RecordedCase { Input = Pattern(bits) };
            int kind = r.ReadByte();
            c.Meta.Kind = (CaseKind)(kind >> 4);
            c.Meta.Count = kind & 15;
            c.Slot = r.ReadByte();
            int start = r.ReadUInt16();
            c.Meta.Length = r.ReadByte();
            c.Code = _from[Text].ReadBytes(r.ReadByte());
            fixed (CaseInput* input = &c.Input)
            fixed (CaseOutput* native = &c.Native)
            {
                input->Bits = bits;
                input->CodeSelector = CaseBatch.CodeSelector((int)bits, c.Slot);
                input->Rip = CaseBatch.SlotAddress((int)bits, c.Slot) + (ulong)start;
                input->NextRip = input->Rip + (ulong)c.Meta.Length;
                input->Rflags = r.ReadUInt32();
                if (c.Meta.Count > 1)
                {
                    c.Meta.UndefinedAtEnd = r.ReadUInt16();
                    c.Meta.UndefinedAnywhere = r.ReadUInt16();
                }
                Registers(input->Gpr, input->Xsave);
                input->FsBase = Integer();
                input->GsBase = Integer();
                for (int line = r.ReadByte(); line != 0; line = r.ReadByte())
                    _from[Memory].BaseStream.ReadExactly(c.Data.AsSpan((line - 1) * Sandbox.Line, Sandbox.Line));
                for (int n = 0; n < 16; n++)
                    native->Gpr[n] = input->Gpr[n];
                Buffer.MemoryCopy(input->Xsave, native->Xsave, XsaveArea.Size, XsaveArea.Size);
                native->Vector = (uint)Integer() - 1;
                if (native->Vector != CaseOutput.NoVector)
                {
                    native->ErrorCode = (uint)Integer();
                    native->Cr2 = Integer();
                }
                native->Rip = input->NextRip + Integer();
                native->Rflags = input->Rflags ^ r.ReadUInt32();
                native->FsBase = input->FsBase + Integer();
                native->GsBase = input->GsBase + Integer();
                Registers(native->Gpr, native->Xsave);
                Diffs(c, native);
            }
            var decoder = Iced.Intel.Decoder.Create((int)bits, [.. c.Code, .. new byte[16]], c.Input.Rip);
            c.Meta.Instruction = decoder.Decode();
            return c;
        }

        private ulong Integer()
        {
            int bytes = _from[General].ReadByte();
            ulong v = 0;
            for (int n = 0; n < bytes; n++)
                v |= (ulong)_from[General].ReadByte() << 8 * n;
            return bytes is 0 or 8 ? v : (ulong)((long)(v << (64 - 8 * bytes)) >> (64 - 8 * bytes));
        }

        private void Registers(ulong* gpr, byte* now)
        {
            uint changed = _from[Control].ReadUInt16(), vectors = _from[Control].ReadUInt32(), x87 = _from[Control].ReadByte();
            for (int n = 0; n < 16; n++)
            {
                if ((changed & 1u << n) != 0)
                    gpr[n] = Integer();
                if ((vectors & 1u << n) != 0)
                    _from[Vector].BaseStream.ReadExactly(new Span<byte>(now + XsaveArea.Xmm + 16 * n, 16));
                if ((vectors & 0x1_0000u << n) != 0)
                    _from[Vector].BaseStream.ReadExactly(new Span<byte>(now + XsaveArea.YmmHigh + 16 * n, 16));
                if ((x87 & 1u << n) != 0)
                    _from[Vector].BaseStream.ReadExactly(new Span<byte>(now + XsaveArea.St + 16 * n, 10));
            }
            foreach (int at in s_words)
                Unsafe.WriteUnaligned(now + at, (ushort)(Unsafe.ReadUnaligned<ushort>(now + at) ^ _from[Control].ReadUInt16()));
            if (!pointers)
                return;
            Unsafe.WriteUnaligned(now + XsaveArea.Fop, (ushort)(Unsafe.ReadUnaligned<ushort>(now + XsaveArea.Fop) ^ _from[Control].ReadUInt16()));
            foreach (int at in s_pointers)
                Unsafe.WriteUnaligned(now + at, Unsafe.ReadUnaligned<ulong>(now + at) + Integer());
        }

        private void Diffs(RecordedCase c, CaseOutput* o)
        {
            o->Diffs = _from[Control].ReadByte();
            for (int n = 0; n < Math.Min(o->Diffs, Sandbox.MaxDiffs); n++)
            {
                int line = _from[Control].ReadByte();
                o->DiffLine[n] = (uint)line;
                for (int k = 0; k < Sandbox.Line; k++)
                    o->DiffBytes[n * Sandbox.Line + k] = (byte)(_from[Memory].ReadByte() ^ c.Data[line * Sandbox.Line + k]);
            }
        }
    }
}
