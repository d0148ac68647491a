using System.Buffers.Binary;

namespace Ring3.Vmm;

/// <summary>Little-endian values in bus data of any width.</summary>
public static class BusData
{
    /// <summary>Value of up to 8 bytes, zero-extended.</summary>
    public static ulong Get(ReadOnlySpan<byte> data)
    {
        if (data.Length >= 8)
            return BinaryPrimitives.ReadUInt64LittleEndian(data);
        ulong v = 0;
        for (int i = data.Length - 1; i >= 0; i--)
            v = v << 8 | data[i];
        return v;
    }

    /// <summary>Stores the low bytes of a value; bytes beyond 8 are zero.</summary>
    public static void Set(Span<byte> data, ulong value)
    {
        for (int i = 0; i < data.Length; i++)
            data[i] = i < 8 ? (byte)(value >> (8 * i)) : (byte)0;
    }
}
