using System.Buffers.Binary;
using Ring3.Abi;
using Ring3.Kvm;
using Ring3.Vmm.Memory;

namespace Ring3.Vmm.Firmware;

/// <summary>
/// The few BIOS services that boot sectors and Linux's 16-bit setup code call. Every interrupt vector points to a stub in ROM that writes to a port and returns; the port write is
/// served here with the processor's registers at hand. SPEC: Ralf Brown's Interrupt List; the e820 interface: ACPI 6.4, "System Address Map Interfaces".
/// </summary>
/// <param name="disk">The boot image: drive 0x80 of INT 13h, read-only.</param>
/// <param name="print">Characters of INT 10h teletype output.</param>
internal sealed class Bios(MachineRam ram, byte[] disk, Action<byte> print)
{
    /// <summary>Port of the stubs.</summary>
    public const ushort Port = 0xb1;
    private const ulong Stubs = 0xf_e000;
    private const ushort Segment = 0xf000, StubOffset = 0xe000;
    private const int StubBytes = 4, SectorBytes = 512, Heads = 16, SectorsPerTrack = 63;
    private const ulong CarryFlag = 1, ZeroFlag = 64;

    /// <summary>Writes the stubs, the vector table and the BIOS data area.</summary>
    public void Install()
    {
        for (int vector = 0; vector < 256; vector++)
        {
            ram.Write(Stubs + (ulong)(vector * StubBytes), [0xe6, (byte)Port, 0xcf, 0x90], "BIOS"); // out 0xb1, al; iret
            Span<byte> entry = ram.Span((ulong)(vector * 4), 4, "interrupt vectors");
            BinaryPrimitives.WriteUInt16LittleEndian(entry, (ushort)(StubOffset + vector * StubBytes));
            BinaryPrimitives.WriteUInt16LittleEndian(entry[2..], Segment);
        }
        BinaryPrimitives.WriteUInt16LittleEndian(ram.Span(0x400, 2, "BIOS data"), 0x3f8);
        BinaryPrimitives.WriteUInt16LittleEndian(ram.Span(0x40e, 2, "BIOS data"), (ushort)(MemoryLayout.Ebda >> 4));
        BinaryPrimitives.WriteUInt16LittleEndian(ram.Span(0x413, 2, "BIOS data"), (ushort)(MemoryLayout.Ebda >> 10));
        ram.Span(0x449, 1, "BIOS data")[0] = 3; // 80x25 text
        BinaryPrimitives.WriteUInt16LittleEndian(ram.Span(0x44a, 2, "BIOS data"), 80);
        ram.Span(0x475, 1, "BIOS data")[0] = 1; // one hard disk
        ram.Write(MemoryLayout.Ebda, [1], "BIOS data");
    }

    /// <summary>Serves the stub that a vCPU has just executed: reads and writes its registers, and the flags that IRET will pop.</summary>
    public void Serve(Vcpu vcpu)
    {
        vcpu.GetRegs(out kvm_regs r);
        vcpu.GetSregs(out kvm_sregs s);
        ulong ip = r.rip & 0xffff;
        if (s.cs.selector != Segment || ip < StubOffset || ip >= StubOffset + 256 * StubBytes)
            return;
        int vector = (int)(ip - StubOffset) / StubBytes;
        ulong flagsAt = s.ss.@base + (r.rsp + 4 & 0xffff);
        if (!ram.Contains(flagsAt, 2))
            return;
        Span<byte> stacked = ram.Span(flagsAt, 2, "BIOS");
        ulong flags = BinaryPrimitives.ReadUInt16LittleEndian(stacked) & ~CarryFlag;
        flags = vector switch
        {
            0x10 => Video(ref r, flags),
            0x11 => Return(ref r, 0x0021, flags),
            0x12 => Return(ref r, MemoryLayout.Ebda >> 10, flags),
            0x13 => Disk(ref r, s, flags),
            0x15 => System(ref r, s, flags),
            0x16 => Keyboard(ref r, flags),
            0x1a => Clock(ref r, flags),
            _ => flags,
        };
        BinaryPrimitives.WriteUInt16LittleEndian(stacked, (ushort)flags);
        vcpu.SetRegs(r);
    }

    private static ulong Return(ref kvm_regs r, ulong ax, ulong flags)
    {
        r.rax = r.rax & ~0xffffUL | ax & 0xffff;
        return flags;
    }

    private static ulong Fail(ref kvm_regs r, byte ah, ulong flags) => Return(ref r, (ulong)ah << 8 | r.rax & 0xff, flags) | CarryFlag;

    private ulong Video(ref kvm_regs r, ulong flags)
    {
        switch ((byte)(r.rax >> 8))
        {
            case 0x0e: print((byte)r.rax); break;
            case 0x03: r.rcx = r.rcx & ~0xffffUL | 0x0607; r.rdx &= ~0xffffUL; break;
            case 0x0f: r.rax = r.rax & ~0xffffUL | 80 << 8 | 3; r.rbx &= ~0xff00UL; break;
        }
        return flags;
    }

    private ulong Disk(ref kvm_regs r, in kvm_sregs s, ulong flags)
    {
        const byte BadCommand = 1, NotFound = 4;
        int sectors = (disk.Length + SectorBytes - 1) / SectorBytes;
        int cylinders = Math.Clamp(sectors / (Heads * SectorsPerTrack) + 1, 1, 1024);
        if ((byte)r.rdx != 0x80)
            return Fail(ref r, BadCommand, flags);
        switch ((byte)(r.rax >> 8))
        {
            case 0x00: return Return(ref r, r.rax & 0xff, flags);
            case 0x02:
            {
                int count = (byte)r.rax, sector = (int)(r.rcx & 0x3f), cylinder = (int)(r.rcx >> 8 & 0xff | (r.rcx & 0xc0) << 2), head = (int)(r.rdx >> 8 & 0xff);
                if (sector == 0 || head >= Heads)
                    return Fail(ref r, NotFound, flags);
                long lba = ((long)cylinder * Heads + head) * SectorsPerTrack + sector - 1;
                return Transfer(lba, count, s.es.@base + (r.rbx & 0xffff)) ? Return(ref r, (ulong)count, flags) : Fail(ref r, NotFound, flags);
            }
            case 0x08:
                r.rcx = r.rcx & ~0xffffUL | (uint)((cylinders - 1 & 0xff) << 8) | (uint)(cylinders - 1 >> 2 & 0xc0) | SectorsPerTrack;
                r.rdx = r.rdx & ~0xffffUL | (Heads - 1) << 8 | 1;
                return Return(ref r, 0, flags);
            case 0x15:
                r.rcx = r.rcx & ~0xffffUL | (uint)sectors >> 16;
                r.rdx = r.rdx & ~0xffffUL | (uint)sectors & 0xffff;
                return Return(ref r, 0x0300, flags);
            case 0x41 when (ushort)r.rbx == 0x55aa:
                r.rbx = r.rbx & ~0xffffUL | 0xaa55;
                r.rcx = r.rcx & ~0xffffUL | 1;
                return Return(ref r, 0x2100, flags);
            case 0x42:
            {
                ulong packet = s.ds.@base + (r.rsi & 0xffff);
                if (!ram.Contains(packet, 16))
                    return Fail(ref r, BadCommand, flags);
                Span<byte> p = ram.Span(packet, 16, "BIOS");
                ulong to = ((ulong)BinaryPrimitives.ReadUInt16LittleEndian(p[6..]) << 4) + BinaryPrimitives.ReadUInt16LittleEndian(p[4..]);
                ulong lba = BinaryPrimitives.ReadUInt64LittleEndian(p[8..]);
                bool ok = lba < int.MaxValue && Transfer((long)lba, BinaryPrimitives.ReadUInt16LittleEndian(p[2..]), to);
                return ok ? Return(ref r, r.rax & 0xff, flags) : Fail(ref r, NotFound, flags);
            }
            default: return Fail(ref r, BadCommand, flags);
        }
    }

    /// <summary>Copies sectors to guest memory; the image's last sector is padded with zeros.</summary>
    private bool Transfer(long lba, int count, ulong to)
    {
        long start = lba * SectorBytes, end = start + (long)count * SectorBytes;
        long paddedLength = ((long)disk.Length + SectorBytes - 1) / SectorBytes * SectorBytes;
        if (count == 0 || end > paddedLength || !ram.Contains(to, (ulong)(end - start)))
            return false;
        Span<byte> target = ram.Span(to, (int)(end - start), "BIOS");
        target.Clear();
        disk.AsSpan((int)start, (int)Math.Min(end - start, disk.Length - start)).CopyTo(target);
        return true;
    }

    private ulong System(ref kvm_regs r, in kvm_sregs s, ulong flags)
    {
        const byte Unsupported = 0x86;
        const uint Smap = 0x534d_4150;
        ulong extendedKiB = (ram.LowRamEnd - Math.Min(ram.LowRamEnd, MemoryLayout.OneMiB)) >> 10;
        switch ((ushort)r.rax)
        {
            case 0xe820 when (uint)r.rdx == Smap:
            {
                E820Entry[] map = E820.Build(ram);
                ulong at = s.es.@base + (r.rdi & 0xffff);
                uint index = (uint)r.rbx;
                if (index >= map.Length || (uint)r.rcx < 20 || !ram.Contains(at, 20))
                    return Fail(ref r, Unsupported, flags);
                Span<byte> e = ram.Span(at, 20, "BIOS");
                BinaryPrimitives.WriteUInt64LittleEndian(e, map[index].Start);
                BinaryPrimitives.WriteUInt64LittleEndian(e[8..], map[index].Bytes);
                BinaryPrimitives.WriteUInt32LittleEndian(e[16..], (uint)map[index].Kind);
                r.rax = Smap;
                r.rcx = 20;
                r.rbx = index + 1 < map.Length ? index + 1 : 0;
                return flags;
            }
            case 0xe801:
                r.rax = r.rcx = Math.Min(extendedKiB, 15 << 10);
                r.rbx = r.rdx = extendedKiB <= 16 << 10 ? 0 : Math.Min((extendedKiB - (15 << 10)) >> 6, 0xffff);
                return flags;
            case 0x2401 or 0x2400:
                return Return(ref r, 0, flags);
        }
        return (byte)(r.rax >> 8) == 0x88 ? Return(ref r, Math.Min(extendedKiB, 0xffff), flags) : Fail(ref r, Unsupported, flags);
    }

    /// <summary>No key is ever there.</summary>
    private static ulong Keyboard(ref kvm_regs r, ulong flags) => (byte)(r.rax >> 8) switch
    {
        1 or 0x11 => flags | ZeroFlag,
        _ => Return(ref r, 0, flags),
    };

    private static ulong Clock(ref kvm_regs r, ulong flags)
    {
        if ((byte)(r.rax >> 8) != 0)
            return flags | CarryFlag;
        // 18.2 ticks a second since midnight.
        uint ticks = (uint)(DateTime.Now.TimeOfDay.TotalSeconds * 1_193_182 / 65_536);
        r.rcx = r.rcx & ~0xffffUL | ticks >> 16;
        r.rdx = r.rdx & ~0xffffUL | ticks & 0xffff;
        r.rax &= ~0xffUL;
        return flags;
    }
}
