using System.Buffers.Binary;
using Ring3.Abi;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>
/// The few BIOS services that boot sectors, Linux's 16-bit setup code, and kernels that go back to real mode call. A stub of <see cref="BiosArea"/> writes to a
/// port and returns; the port write is served here with the processor's registers at hand. SPEC: Ralf Brown's Interrupt List; the e820 interface: ACPI 6.4,
/// "System Address Map Interfaces".
/// </summary>
/// <param name="disk">The boot image: drive 0x80 of INT 13h, read-only. Empty: there is no drive.</param>
/// <param name="screen">INT 10h.</param>
/// <param name="keyboard">INT 16h.</param>
/// <param name="waitForInput">Returns when there may be input, or after some milliseconds.</param>
internal sealed class Bios(MachineRam ram, byte[] disk, BiosScreen screen, BiosKeyboard keyboard, Action waitForInput)
{
    private const int SectorBytes = 512, Heads = 16, SectorsPerTrack = 63;
    private const ulong CarryFlag = 1, ZeroFlag = 64;

    /// <summary>Serves the stub that a vCPU has just executed: reads and writes its registers, and the flags that IRET will pop.</summary>
    public void Serve(Vcpu vcpu)
    {
        vcpu.GetRegs(out kvm_regs r);
        vcpu.GetSregs(out kvm_sregs s);
        ulong ip = r.rip & 0xffff;
        if (s.cs.selector != BiosArea.Segment || ip < BiosArea.StubOffset || ip >= BiosArea.StubOffset + BiosArea.Vectors * BiosArea.StubBytes)
            return;
        int vector = (int)(ip - BiosArea.StubOffset) / BiosArea.StubBytes;
        ulong flagsAt = s.ss.@base + (r.rsp + 4 & 0xffff);
        if (!ram.Contains(flagsAt, 2))
            return;
        Span<byte> stacked = ram.Span(flagsAt, 2, "BIOS");
        ulong flags = BinaryPrimitives.ReadUInt16LittleEndian(stacked) & ~CarryFlag;
        flags = vector switch
        {
            0x10 => Video(ref r, flags),
            0x11 => Return(ref r, BiosArea.Equipment, flags),
            0x12 => Return(ref r, BiosArea.LowMemoryKiB, flags),
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
        const byte ClearBySetMode = 0x80;
        byte al = (byte)r.rax;
        switch ((byte)(r.rax >> 8))
        {
            case 0x00 when (al & ClearBySetMode) == 0: screen.Clear(); break;
            case 0x02: screen.Cursor = ((byte)(r.rdx >> 8), (byte)r.rdx); break;
            case 0x03:
                r.rcx = r.rcx & ~0xffffUL | 0x0607;
                r.rdx = r.rdx & ~0xffffUL | (uint)screen.Cursor.Row << 8 | (uint)screen.Cursor.Column;
                break;
            case 0x06 or 0x07 when al == 0 && (ushort)r.rcx == 0: screen.Clear(); break;
            case 0x09 or 0x0a: screen.WriteInPlace(al, (ushort)r.rcx); break;
            case 0x0e: screen.Teletype(al); break;
            case 0x0f: r.rax = r.rax & ~0xffffUL | BiosScreen.Columns << 8 | 3; r.rbx &= ~0xff00UL; break;
        }
        return flags;
    }

    private ulong Disk(ref kvm_regs r, in kvm_sregs s, ulong flags)
    {
        const byte BadCommand = 1, NotFound = 4;
        int sectors = (disk.Length + SectorBytes - 1) / SectorBytes;
        int cylinders = Math.Clamp(sectors / (Heads * SectorsPerTrack) + 1, 1, 1024);
        if ((byte)r.rdx != 0x80 || disk.Length == 0)
            return Fail(ref r, BadCommand, flags);
        switch ((byte)(r.rax >> 8))
        {
            case 0x00: return Return(ref r, r.rax & 0xff, flags);
            case 0x02:
            {
                int count = (byte)r.rax, sector = (int)(r.rcx & 0x3f), cylinder = (int)(r.rcx >> 8 & 0xff | (r.rcx & 0xc0) << 2),
                    head = (int)(r.rdx >> 8 & 0xff);
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
        return (byte)(r.rax >> 8) switch
        {
            0x87 => MoveBlock(ref r, s, flags),
            0x88 => Return(ref r, Math.Min(extendedKiB, 0xffff), flags),
            _ => Fail(ref r, Unsupported, flags),
        };
    }

    /// <summary>Copies CX words between the segments that the third and fourth descriptor at ES:SI describe: how 16-bit code reaches memory above 1
    /// MiB.</summary>
    private ulong MoveBlock(ref kvm_regs r, in kvm_sregs s, ulong flags)
    {
        const byte ParityError = 1;
        ulong table = s.es.@base + (r.rsi & 0xffff);
        int bytes = (ushort)r.rcx * 2;
        if (!ram.Contains(table, 0x30))
            return Fail(ref r, ParityError, flags);
        ReadOnlySpan<byte> descriptors = ram.Span(table, 0x30, "BIOS");
        ulong from = Base(descriptors[0x10..]), to = Base(descriptors[0x18..]);
        if (!ram.Contains(from, (ulong)bytes) || !ram.Contains(to, (ulong)bytes))
            return Fail(ref r, ParityError, flags);
        ram.Span(from, bytes, "BIOS").CopyTo(ram.Span(to, bytes, "BIOS"));
        return Return(ref r, r.rax & 0xff, flags);
        static ulong Base(ReadOnlySpan<byte> descriptor) => BinaryPrimitives.ReadUInt32LittleEndian(descriptor[2..]) & 0xff_ffff | (ulong)descriptor[7] << 24;
    }

    /// <summary>Reading waits: the stub is entered again, with interrupts on, until a key is there.</summary>
    private ulong Keyboard(ref kvm_regs r, ulong flags)
    {
        const ulong StubRip = BiosArea.StubOffset + 0x16 * BiosArea.StubBytes;
        byte function = (byte)(r.rax >> 8);
        switch (function)
        {
            case 0x00 or 0x10:
            {
                int key = keyboard.Next(remove: true);
                if (key >= 0)
                    return Return(ref r, (ulong)key, flags);
                waitForInput();
                r.rip = StubRip;
                return flags;
            }
            case 0x01 or 0x11:
            {
                int key = keyboard.Next(remove: false);
                return key < 0 ? flags | ZeroFlag : Return(ref r, (ulong)key, flags & ~ZeroFlag);
            }
            default: return Return(ref r, 0, flags);
        }
    }

    private ulong Clock(ref kvm_regs r, ulong flags)
    {
        if ((byte)(r.rax >> 8) != 0)
            return flags | CarryFlag;
        uint ticks = BiosArea.TicksNow();
        BinaryPrimitives.WriteUInt32LittleEndian(ram.Span(BiosArea.TickCount, 4, "BIOS data"), ticks);
        r.rcx = r.rcx & ~0xffffUL | ticks >> 16;
        r.rdx = r.rdx & ~0xffffUL | ticks & 0xffff;
        r.rax &= ~0xffUL;
        return flags;
    }
}
