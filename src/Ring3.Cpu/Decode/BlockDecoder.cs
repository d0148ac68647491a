using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Turns guest bytes into blocks. One per processor; scratch memory only, the result is published by <see cref="BlockCache.Publish"/>.
/// A block ends after a control transfer or an instruction whose handler is registered as block-ending, at the page end, and at <see
/// cref="Block.MaxInstructions"/>.
/// An instruction that crosses a page is a block of its own.
/// </summary>
/// <remarks>
/// SAFETY: reads at most <c>available</c> bytes of guest memory into a scratch buffer and decodes from there; ops are bounded by MaxInstructions.
/// </remarks>
internal sealed unsafe class BlockDecoder
{
    private const int SnapshotBytes = Block.MaxInstructions * 15 + 16;
    public const int MaxInstructionLength = 15;
    private readonly byte* _snapshot;
    private readonly Op* _ops;
    private readonly SnapshotReader _reader = new();
    private readonly Decoder[] _decoders;
    private Block _header;

    private static nuint Bytes => (nuint)(SnapshotBytes + (Block.MaxInstructions + 2) * sizeof(Op) + 64);

    public void Free() => HostMemory.Unmap(_ops, Bytes);

    /// <summary>AMD's way of decoding (66 on near branches in 64-bit mode, no far pointers of 64 bits, LOCK MOV CR for CR8), or Intel's.</summary>
    public static DecoderOptions Options(ProcessorModel model) => DecoderOptions.NoWbnoinvd | (model.IsAmd ? DecoderOptions.AMD : 0);

    public BlockDecoder(ProcessorModel model)
    {
        DecoderOptions options = Options(model);
        byte* memory = HostMemory.Map(Bytes);
        _ops = (Op*)memory;
        _snapshot = memory + (Block.MaxInstructions + 2) * sizeof(Op);
        _decoders = [Decoder.Create(16, _reader, options), Decoder.Create(32, _reader, options), Decoder.Create(64, _reader, options)];
    }

    /// <summary>Host memory that the last <see cref="Decode"/> could not read, or null.</summary>
    public byte* Unreadable { get; private set; }

    public Op* Ops => _ops;
    public byte* Snapshot => _snapshot;

    private sealed class SnapshotReader : CodeReader
    {
        public byte* Position, End;
        public override int ReadByte() => Position < End ? *Position++ : -1;
    }

    /// <summary>
    /// Decodes at <paramref name="rip"/>, whose bytes are at <paramref name="host"/>. <paramref name="hostNext"/>: the following page, or null when it was not
    /// translated yet.
    /// Returns false when the first instruction needs that page, or when <see cref="Unreadable"/> is set.
    /// </summary>
    public bool Decode(ulong rip, byte* host, byte* hostNext, uint mode, out Block header)
    {
        int available = 4096 - (int)((nuint)host & 0xfff);
        int length = Math.Min(available, SnapshotBytes);
        header = default;
        if (!Fetch(host, _snapshot, length))
            return false;
        if (hostNext != null)
        {
            length = Math.Min(available, MaxInstructionLength);
            if (!Fetch(hostNext, _snapshot + length, MaxInstructionLength))
                return false;
            length += MaxInstructionLength;
        }
        _header = new Block { Host = host, Mode = mode };
        bool complete = Fill(rip, mode, length, hostNext != null ? available : int.MaxValue);
        if (complete && hostNext != null && _header.Bytes > available)
        {
            _header.HostNext = hostNext;
            _header.BytesNext = (ushort)(_header.Bytes - available);
        }
        header = _header;
        return complete;
    }

    private bool Fetch(byte* host, byte* to, int length)
    {
        Unreadable = UserCopy.TryRead((ulong)host, to, (nuint)length) ? null : host;
        return Unreadable == null;
    }

    private bool Fill(ulong rip, uint mode, int length, int crossing)
    {
        Decoder decoder = _decoders[mode & BlockMode.SizeMask];
        _reader.Position = _snapshot;
        _reader.End = _snapshot + length;
        int limit = crossing != int.MaxValue || (mode & BlockMode.Single) != 0 ? 1 : Block.MaxInstructions;
        int count = 0, offset = 0;
        bool ends = false;
        while (count < limit && !ends)
        {
            decoder.IP = rip + (ulong)offset;
            decoder.Decode(out Instruction instruction);
            Op* op = _ops + count;
            if (instruction.Code == Code.INVALID)
            {
                int consumed = (int)(_reader.Position - _snapshot) - offset;
                if (decoder.LastError == DecoderError.NoMoreBytes && consumed < MaxInstructionLength)
                {
                    if (count == 0)
                        return false;
                    break;
                }
                OpEncoder.Invalid(op, tooLong: consumed >= MaxInstructionLength);
                instruction.Length = Math.Max(consumed, 1);
                ends = true;
            }
            else
            {
                ends = OpEncoder.Encode(op, in instruction, rip, mode);
                if (X87Handlers.HasOpcode(instruction.Code))
                    op->Imm2 = X87Handlers.Opcode(_snapshot + offset, instruction.Length);
            }
            op->Offset = (ushort)offset;
            op->Length = (byte)instruction.Length;
            offset += instruction.Length;
            count++;
        }
        _ops[count] = new Op { Handler = &FlowHandlers.FallThrough, Offset = (ushort)offset };
        _header.Instructions = (ushort)count;
        _header.Bytes = (ushort)offset;
        _header.Ops = (ushort)(count + 1);
        return true;
    }
}
