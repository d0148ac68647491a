using Iced.Intel;

namespace Ring3.Host;

/// <summary>Host code that is written instruction by instruction.</summary>
internal static class MachineCode
{
    private sealed class Bytes : CodeWriter
    {
        public readonly List<byte> All = [];

        public override void WriteByte(byte value) => All.Add(value);
    }

    /// <summary>Position-independent 64-bit code of what <paramref name="write"/> emits.</summary>
    public static byte[] Assemble(Action<Assembler> write)
    {
        var assembler = new Assembler(64);
        write(assembler);
        var bytes = new Bytes();
        assembler.Assemble(bytes, 0);
        return [.. bytes.All];
    }
}
