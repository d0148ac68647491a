using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Decodes the bytes of one block at a time, again and again with the same decoder.</summary>
/// <remarks>SAFETY: copies at most the buffer's size.</remarks>
internal sealed unsafe class GuestBytes : CodeReader
{
    private readonly byte[] _bytes = new byte[Block.MaxInstructions * 15 + 16];
    private readonly Decoder _decoder;
    private int _at, _end;

    public GuestBytes(ProcessorModel model) => _decoder = Decoder.Create(64, this, BlockDecoder.Options(model));

    /// <summary>Takes a block's bytes; the instructions' addresses are offsets in its page. False: they cannot be read.</summary>
    public bool Take(Block* b)
    {
        fixed (byte* bytes = _bytes)
            if (!UserCopy.TryRead((ulong)b->Host, bytes, b->Bytes))
                return false;
        (_at, _end) = (0, b->Bytes);
        _decoder.IP = (nuint)b->Host & 0xfff;
        return true;
    }

    public void Decode(out Instruction instruction) => _decoder.Decode(out instruction);

    public override int ReadByte() => _at < _end ? _bytes[_at++] : -1;
}
