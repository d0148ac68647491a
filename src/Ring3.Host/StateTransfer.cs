using System.Buffers;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.InteropServices;
using System.Text;

namespace Ring3.Host;

/// <summary>
/// State of a machine's parts on its way into a snapshot, or out of one. One method of a part does both, by the same calls in the same order: neither way can
/// forget what the other has.
/// </summary>
/// <remarks>Who reads beyond the end, or finds another section than the one it names, gets an <see cref="InvalidDataException"/>.</remarks>
public sealed class StateTransfer
{
    private readonly ArrayBufferWriter<byte>? _output;
    private readonly ReadOnlyMemory<byte> _input;
    private int _at;

    /// <summary>Collects state.</summary>
    public StateTransfer() => _output = new ArrayBufferWriter<byte>();

    /// <summary>Gives state back.</summary>
    public StateTransfer(ReadOnlyMemory<byte> input) => _input = input;

    /// <summary>State comes out: values are set, not read.</summary>
    public bool IsLoading => _output is null;

    /// <summary>What was collected.</summary>
    public ReadOnlySpan<byte> Written => _output is null ? default : _output.WrittenSpan;

    /// <summary>Everything has come out.</summary>
    public bool IsAtEnd => _at == _input.Length;

    /// <summary>A part begins.</summary>
    public void Section(string name)
    {
        string found = Text(name);
        if (found != name)
            throw new InvalidDataException($"'{found}' where '{name}' should be");
    }

    /// <summary>The bytes of a value without references.</summary>
    public void Value<T>(ref T value) where T : unmanaged => Bytes(MemoryMarshal.AsBytes(new Span<T>(ref value)));

    /// <summary>As <see cref="Value"/>, for properties: the value that was given, or the one that comes out.</summary>
    public T Keep<T>(T value) where T : unmanaged
    {
        Value(ref value);
        return value;
    }

    /// <summary>Bytes whose number both ways know.</summary>
    public void Bytes(Span<byte> bytes)
    {
        if (_output is not null)
            _output.Write(bytes);
        else
            Take(bytes.Length).CopyTo(bytes);
    }

    /// <summary>Bytes with their number.</summary>
    public byte[] Block(ReadOnlySpan<byte> bytes)
    {
        int n = Keep(bytes.Length);
        if (_output is null)
            return Take(n).ToArray();
        _output.Write(bytes);
        return [];
    }

    /// <summary>A text; null stays null.</summary>
    [return: NotNullIfNotNull(nameof(text))]
    public string? Text(string? text)
    {
        bool has = Keep(text is not null);
        if (!has)
            return IsLoading && text is not null ? "" : null!;
        byte[] bytes = Block(IsLoading ? default : Encoding.UTF8.GetBytes(text!));
        return IsLoading ? Encoding.UTF8.GetString(bytes) : text!;
    }

    private ReadOnlySpan<byte> Take(int n)
    {
        if (n < 0 || n > _input.Length - _at)
            throw new InvalidDataException("the state ends too soon");
        _at += n;
        return _input.Span.Slice(_at - n, n);
    }
}

/// <summary>CRC-32C: every change of up to 32 neighbouring bits is seen.</summary>
public static class Crc32C
{
    /// <summary>Of bytes that follow others, whose sum is <paramref name="seed"/>.</summary>
    public static uint Of(ReadOnlySpan<byte> bytes, uint seed = 0)
    {
        uint crc = ~seed;
        ReadOnlySpan<ulong> words = MemoryMarshal.Cast<byte, ulong>(bytes);
        foreach (ulong word in words)
            crc = System.Numerics.BitOperations.Crc32C(crc, word);
        foreach (byte b in bytes[(words.Length * sizeof(ulong))..])
            crc = System.Numerics.BitOperations.Crc32C(crc, b);
        return ~crc;
    }
}
