using System.Buffers.Binary;
using System.Text;

namespace Ring3.Vmm;

/// <summary>Encodes the ACPI Machine Language terms that the DSDT needs. SPEC: ACPI 6.4, "ACPI Machine Language (AML) Specification".</summary>
internal static class Aml
{
    public static byte[] Integer(ulong value) => value switch
    {
        0 => [0x00],
        1 => [0x01],
        <= 0xff => [0x0a, (byte)value],
        <= 0xffff => [0x0b, (byte)value, (byte)(value >> 8)],
        <= 0xffff_ffff => [0x0c, .. Little((uint)value)],
        _ => [0x0e, .. Little((uint)value), .. Little((uint)(value >> 32))],
    };

    public static byte[] String(string s) => [0x0d, .. Encoding.ASCII.GetBytes(s), 0];

    /// <summary>Compressed EISA identifier, such as PNP0A03.</summary>
    public static byte[] EisaId(string id)
    {
        int letters = (id[0] - 0x40 & 31) << 10 | (id[1] - 0x40 & 31) << 5 | id[2] - 0x40 & 31;
        ushort product = Convert.ToUInt16(id[3..], 16);
        return [0x0c, (byte)(letters >> 8), (byte)letters, (byte)(product >> 8), (byte)product];
    }

    public static byte[] Name(string name, byte[] value) => [0x08, .. Path(name), .. value];

    public static byte[] Scope(string name, params byte[][] terms) => [0x10, .. Packaged([.. Path(name), .. terms.SelectMany(t => t)])];

    public static byte[] Device(string name, params byte[][] terms) => [0x5b, 0x82, .. Packaged([.. Path(name), .. terms.SelectMany(t => t)])];

    /// <summary>A method without arguments.</summary>
    public static byte[] Method(string name, params byte[][] terms) => Method(name, 0, terms);

    public static byte[] Method(string name, int arguments, params byte[][] terms) =>
        [0x14, .. Packaged([.. Path(name), (byte)arguments, .. terms.SelectMany(t => t)])];

    /// <summary>Tells the operating system something about a device.</summary>
    public static byte[] Notify(string path, byte value) => [0x86, .. Reference(path), .. Integer(value)];

    /// <summary>A name by its path from the root, of segments with dots between.</summary>
    public static byte[] Reference(string path)
    {
        byte[][] segments = [.. path.Trim('\\').Split('.').Select(Path)];
        byte[] prefix = segments.Length switch { 1 => [], 2 => [0x2e], _ => [0x2f, (byte)segments.Length] };
        return [(byte)'\\', .. prefix, .. segments.SelectMany(s => s)];
    }

    /// <summary>A method's variable.</summary>
    public static byte[] Local(int number) => [(byte)(0x60 + number)];

    /// <summary>An operand, put into a name or a variable.</summary>
    public static byte[] Store(byte[] value, byte[] target) => [0x70, .. value, .. target];

    /// <summary>What is done when two operands have a bit in common.</summary>
    public static byte[] IfAny(byte[] left, byte[] right, params byte[][] terms) =>
        [0xa0, .. Packaged([0x7b, .. left, .. right, 0, .. terms.SelectMany(t => t)])];

    /// <summary>A range of ports, and 32-bit fields that follow each other in it.</summary>
    public static byte[] PortFields(string region, ushort first, byte bytes, params ReadOnlySpan<string> fields)
    {
        const byte Ports = 1, DwordAccess = 3, WriteAsZeros = 2 << 5, FieldBits = 32;
        byte[] list = [];
        foreach (string field in fields)
            list = [.. list, .. Path(field), FieldBits];
        return
        [
            0x5b, 0x80, .. Path(region), Ports, .. Integer(first), .. Integer(bytes),
            0x5b, 0x81, .. Packaged([.. Path(region), DwordAccess | WriteAsZeros, .. list]),
        ];
    }

    public static byte[] Package(params byte[][] elements) => elements.Length <= 255
        ? [0x12, .. Packaged([(byte)elements.Length, .. elements.SelectMany(e => e)])]
        : [0x13, .. Packaged([.. Integer((ulong)elements.Length), .. elements.SelectMany(e => e)])];

    /// <summary>Buffer with the resource descriptors and the end tag.</summary>
    public static byte[] Resources(params byte[][] descriptors)
    {
        byte[] body = [.. descriptors.SelectMany(d => d), 0x79, 0];
        return [0x11, .. Packaged([.. Integer((ulong)body.Length), .. body])];
    }

    /// <summary>I/O ports, 16-bit decode.</summary>
    public static byte[] Io(ushort first, byte count) => [0x47, 1, (byte)first, (byte)(first >> 8), (byte)first, (byte)(first >> 8), 1, count];

    /// <summary>ISA interrupt, edge-triggered, active high.</summary>
    public static byte[] Irq(int irq) => [0x22, (byte)(1 << irq), (byte)(1 << irq >> 8)];

    /// <summary>Address space of a bridge. <paramref name="type"/>: 0 memory, 1 I/O, 2 bus numbers.</summary>
    public static byte[] WordSpace(byte type, byte specific, ushort first, ushort last) =>
        [0x88, 13, 0, type, 0x0c, specific, 0, 0, (byte)first, (byte)(first >> 8), (byte)last, (byte)(last >> 8), 0, 0,
        .. Little16((ushort)(last - first + 1))];

    public static byte[] DwordMemory(uint first, uint last) =>
        [0x87, 23, 0, 0, 0x0c, 1, .. Little(0), .. Little(first), .. Little(last), .. Little(0), .. Little(last - first + 1)];

    private static byte[] Path(string name)
    {
        byte[] root = name.StartsWith('\\') ? [(byte)'\\'] : [];
        return [.. root, .. Encoding.ASCII.GetBytes(name.TrimStart('\\').PadRight(4, '_'))];
    }

    /// <summary>Prefixes PkgLength, which counts itself.</summary>
    private static byte[] Packaged(byte[] body)
    {
        int n = body.Length;
        if (n + 1 <= 0x3f)
            return [(byte)(n + 1), .. body];
        int extra = n + 2 <= 0xfff ? 1 : n + 3 <= 0xf_ffff ? 2 : 3;
        int length = n + 1 + extra;
        var head = new byte[1 + extra];
        head[0] = (byte)(extra << 6 | length & 15);
        for (int i = 0; i < extra; i++)
            head[1 + i] = (byte)(length >> (4 + 8 * i));
        return [.. head, .. body];
    }

    private static byte[] Little(uint value)
    {
        var b = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(b, value);
        return b;
    }

    private static byte[] Little16(ushort value) => [(byte)value, (byte)(value >> 8)];
}
