using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Decodes the bytes of one block at a time, again and again with the same decoder.</summary>
/// <remarks>SAFETY: copies at most the buffer's size.</remarks>
internal sealed unsafe class GuestBytes : CodeReader
{
    private readonly byte[] _bytes = new byte[Block.MaxInstructions * 15 + 16];
    private readonly Decoder _wide, _narrow, _word;
    private Decoder _decoder;
    private int _at, _end;

    public GuestBytes(ProcessorModel model)
    {
        _decoder = _wide = Decoder.Create(64, this, BlockDecoder.Options(model));
        _narrow = Decoder.Create(32, this, BlockDecoder.Options(model));
        _word = Decoder.Create(16, this, BlockDecoder.Options(model));
    }

    /// <summary>Takes a block's bytes; the instructions' addresses are offsets in its page. False: they cannot be read.</summary>
    public bool Take(Block* b)
    {
        int first = b->Bytes - b->BytesNext;
        fixed (byte* bytes = _bytes)
            if (!UserCopy.TryRead((ulong)b->Host, bytes, (nuint)first)
                || b->BytesNext != 0 && !UserCopy.TryRead((ulong)b->HostNext, bytes + first, b->BytesNext))
                return false;
        (_at, _end) = (0, b->Bytes);
        _decoder = (b->Mode & BlockMode.SizeMask) switch { BlockMode.Code64 => _wide, BlockMode.Code32 => _narrow, _ => _word };
        _decoder.IP = (nuint)b->Host & 0xfff;
        return true;
    }

    public void Decode(out Instruction instruction)
    {
        _decoder.Decode(out instruction);
        if (_decoder == _wide)
            return;
        instruction.Code = WideCode(instruction.Code);
        // Relative to the page, and maybe outside of it: cut to 16 bits it would be neither.
        if (_decoder == _word && instruction.Op0Kind == Iced.Intel.OpKind.NearBranch16)
        {
            int next = (int)instruction.NextIP;
            int target = next + (short)(instruction.NearBranch16 - next);
            instruction.Op0Kind = Iced.Intel.OpKind.NearBranch32;
            instruction.NearBranch32 = (uint)target;
        }
    }

    /// <summary>The code of 64-bit mode that does the same, for those that it has no room for.</summary>
    private static Code WideCode(Code code) => code switch
    {
        Code.Inc_r16 => Code.Inc_rm16,
        Code.Inc_r32 => Code.Inc_rm32,
        Code.Dec_r16 => Code.Dec_rm16,
        Code.Dec_r32 => Code.Dec_rm32,
        Code.Mov_AL_moffs8 => Code.Mov_r8_rm8,
        Code.Mov_AX_moffs16 => Code.Mov_r16_rm16,
        Code.Mov_EAX_moffs32 => Code.Mov_r32_rm32,
        Code.Mov_moffs8_AL => Code.Mov_rm8_r8,
        Code.Mov_moffs16_AX => Code.Mov_rm16_r16,
        Code.Mov_moffs32_EAX => Code.Mov_rm32_r32,
        _ => code,
    };

    public override int ReadByte() => _at < _end ? _bytes[_at++] : -1;
}
