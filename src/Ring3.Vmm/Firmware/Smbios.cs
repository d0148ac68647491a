using System.Buffers.Binary;
using System.Text;

namespace Ring3.Vmm;

/// <summary>SMBIOS structures with a 2.1 and a 3.0 entry point. SPEC: DMTF DSP0134, System Management BIOS Reference Specification 3.4.</summary>
public static class Smbios
{
    private const int Entry2Bytes = 31, Entry3Bytes = 24, EntryRoom = 64;

    /// <summary>Both entry points and the structures, to be placed at <paramref name="address"/> (16-byte aligned, below 1 MiB).</summary>
    public static byte[] Build(int cpus, ulong ramBytes, ulong address)
    {
        byte[][] structures = Structures(cpus, ramBytes);
        byte[] table = [.. structures.SelectMany(s => s)];
        ulong tableAddress = address + EntryRoom;

        var e2 = new byte[32];
        "_SM_"u8.CopyTo(e2);
        e2[5] = Entry2Bytes;
        e2[6] = 2;
        e2[7] = 8;
        BinaryPrimitives.WriteUInt16LittleEndian(e2.AsSpan(8), (ushort)structures.Max(s => s.Length));
        "_DMI_"u8.CopyTo(e2.AsSpan(16));
        BinaryPrimitives.WriteUInt16LittleEndian(e2.AsSpan(22), (ushort)table.Length);
        BinaryPrimitives.WriteUInt32LittleEndian(e2.AsSpan(24), (uint)tableAddress);
        BinaryPrimitives.WriteUInt16LittleEndian(e2.AsSpan(28), (ushort)structures.Length);
        e2[30] = 0x28;
        e2[21] = AcpiTables.Checksum(e2.AsSpan(16, 15));
        e2[4] = AcpiTables.Checksum(e2.AsSpan(0, Entry2Bytes));

        var e3 = new byte[EntryRoom - 32];
        "_SM3_"u8.CopyTo(e3);
        e3[6] = Entry3Bytes;
        e3[7] = 3;
        e3[8] = 4;
        e3[10] = 1;
        BinaryPrimitives.WriteUInt32LittleEndian(e3.AsSpan(12), (uint)table.Length);
        BinaryPrimitives.WriteUInt64LittleEndian(e3.AsSpan(16), tableAddress);
        e3[5] = AcpiTables.Checksum(e3.AsSpan(0, Entry3Bytes));
        return [.. e2, .. e3, .. table];
    }

    private static byte[][] Structures(int cpus, ulong ramBytes)
    {
        ushort handle = 0;
        uint ramMiB = (uint)(ramBytes >> 20);
        byte[] Structure(byte type, byte[] body, params string[] strings)
        {
            byte[] text = strings.Length == 0 ? [0, 0] : [.. strings.SelectMany(s => Encoding.ASCII.GetBytes(s + "\0")), 0];
            byte[] s = [type, (byte)(body.Length + 4), (byte)handle, (byte)(handle >> 8), .. body, .. text];
            handle++;
            return s;
        }
        byte[] U16(uint v) => [(byte)v, (byte)(v >> 8)];
        byte[] U32(uint v) => [.. U16(v), .. U16(v >> 16)];
        const ushort ArrayHandle = 4; // the memory array is the fifth structure

        return
        [
            // BIOS: vendor, version, start segment, date, ROM size, characteristics (none stated), extension (virtual machine), release
            Structure(0, [1, 2, .. U16(0xf000), 3, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x1c, 0, 1, 0xff, 0xff], "Ring3", "0.1", "01/01/2026"),
            Structure(1, [1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 4], "Ring3", "Software PC", "1", "Virtual Machine"),
            Structure(3, [1, 1, 0, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0], "Ring3"),
            Structure(4, [1, 3, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, .. U16(2000), .. U16(2000), 0x41, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0,
                Clamp(cpus), Clamp(cpus), Clamp(cpus), 0, 0, .. U16(2), .. U16((uint)cpus), .. U16((uint)cpus), .. U16((uint)cpus)], "CPU 0", "Ring3"),
            Structure(16, [1, 3, 6, .. U32(Math.Min(ramMiB << 10, 0x8000_0000)), 0xfe, 0xff, .. U16(1), .. new byte[8]]),
            Structure(17, [.. U16(ArrayHandle), 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, .. U16(ramMiB < 0x7fff ? ramMiB : 0x7fff), 9, 0, 1, 0, 7, 0, 0, 0, 0, 2, 0,
                0, 0, 0, .. U32(ramMiB), 0, 0], "DIMM 0", "Ring3"),
            Structure(19, [.. U32(0), .. U32((uint)Math.Min((ramBytes >> 10) - 1, uint.MaxValue)), .. U16(ArrayHandle), 1, .. new byte[16]]),
            Structure(32, [.. new byte[6], 0]),
            Structure(127, []),
        ];
    }

    private static byte Clamp(int n) => (byte)Math.Min(n, 255);
}
