using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Executable memory of translated code with its writable alias; bump-allocated, reset as a whole.</summary>
/// <remarks>SAFETY: checks its bounds.</remarks>
internal sealed unsafe class TranslatedMemory
{
    private readonly ExecutableMemory _memory;
    private readonly int _size;
    private int _used;
    /// <summary>Bytes from the beginning whose pages have been made present, ahead of use: a fault for each would cost as much as what goes there.</summary>
    private int _present;
    private const int Ahead = 128 << 10;

    public TranslatedMemory(int bytes)
    {
        _memory = new ExecutableMemory((nuint)bytes);
        _size = bytes;
        FaultGuard.AddThunks(_memory.Next, (nuint)bytes, ThunkKind.Run);
    }

    public int Free => _size - _used;

    /// <summary>Where the next code will run. 64-byte aligned.</summary>
    public nint Next => _memory.ExecuteBase + _used;

    /// <summary>Writable address of the next code.</summary>
    public byte* NextWritable => _memory.WriteBase + _used;

    public void Add(ReadOnlySpan<byte> code)
    {
        if (_used + code.Length > _present)
        {
            int bytes = Math.Min(_size - _present, (code.Length + Ahead - 1) & -Ahead);
            HostMemory.Populate(_memory.WriteBase + _present, (nuint)bytes);
            _present += bytes;
        }
        code.CopyTo(new Span<byte>(NextWritable, Free));
        _used += (code.Length + 63) & ~63;
    }

    public void Reset() => _used = 0;
}
