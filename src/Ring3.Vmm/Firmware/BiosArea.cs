using System.Buffers.Binary;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>
/// What a PC's firmware leaves in low memory and in its ROM: interrupt vectors, BIOS data area, extended BIOS data area, service stubs and the reset entry.
/// Every boot protocol gets it: kernels that are entered in protected mode size low memory by it (Xen places its real-mode code below the EBDA) or go back to
/// real mode and call the services. SPEC: Ralf Brown's Interrupt List, MEMORY.LST.
/// </summary>
internal static class BiosArea
{
    /// <summary>Port that the stubs write to; the VMM serves it (<see cref="Bios"/>).</summary>
    public const ushort ServicePort = 0xb1;
    public const ushort Segment = 0xf000, StubOffset = 0xe000;
    public const int StubBytes = 4, Vectors = 256;
    /// <summary>Conventional memory in KiB, up to the EBDA.</summary>
    public const ushort LowMemoryKiB = (ushort)(MemoryLayout.Ebda >> 10);
    /// <summary>Equipment word of INT 11h: a coprocessor, 80x25 text, one serial port.</summary>
    public const ushort Equipment = 0x0222;
    /// <summary>End of what lies in low memory: the data area, and 256 bytes that firmware uses as it likes.</summary>
    public const ulong DataEnd = 0x600;

    /// <summary>Vectors of IRQ 0 and IRQ 8 as the PICs are programmed by firmware.</summary>
    public const int MasterBase = 8, SlaveBase = 0x70;
    /// <summary>Timer ticks since midnight (32 bits).</summary>
    public const ulong TickCount = 0x46c;

    private const ushort Handlers = StubOffset + Vectors * StubBytes;
    private const ulong Rom = (ulong)Segment << 4, Data = 0x400;
    private const ushort KeyboardBuffer = 0x1e, KeyboardBufferEnd = 0x3e, Columns = 80;

    /// <summary>Writes all of it, with no hard disk.</summary>
    public static void Write(MachineRam ram)
    {
        for (int vector = 0; vector < Vectors; vector++)
        {
            // out 0xb1, al; iret. INT 16h waits for keys with interrupts on: sti before it.
            ReadOnlySpan<byte> stub = vector == 0x16 ? [0xfb, 0xe6, (byte)ServicePort, 0xcf] : [0xe6, (byte)ServicePort, 0xcf, 0x90];
            ram.Write(Rom + StubOffset + (ulong)(vector * StubBytes), stub, "BIOS");
            SetVector(ram, vector, (ushort)(StubOffset + vector * StubBytes));
        }
        WriteInterruptHandlers(ram);
        WriteReset(ram);
        ram.Clear(Data, 0x100, "BIOS data");
        Put(ram, Data, 0x3f8); // COM1
        Put(ram, Data + 0x0e, (ushort)(MemoryLayout.Ebda >> 4));
        Put(ram, Data + 0x10, Equipment);
        Put(ram, Data + 0x13, LowMemoryKiB);
        Put(ram, Data + 0x1a, KeyboardBuffer);
        Put(ram, Data + 0x1c, KeyboardBuffer);
        ram.Write(Data + 0x49, [3], "BIOS data"); // video mode: 80x25 text
        Put(ram, Data + 0x4a, Columns);
        Put(ram, Data + 0x63, 0x3d4); // display controller's port
        BinaryPrimitives.WriteUInt32LittleEndian(ram.Span(TickCount, 4, "BIOS data"), TicksNow());
        Put(ram, Data + 0x80, KeyboardBuffer);
        Put(ram, Data + 0x82, KeyboardBufferEnd);
        ram.Write(Data + 0x84, [24], "BIOS data"); // rows less one
        ram.Clear(MemoryLayout.Ebda, MemoryLayout.LowEnd - MemoryLayout.Ebda, "BIOS data");
        ram.Write(MemoryLayout.Ebda, [(byte)((MemoryLayout.LowEnd - MemoryLayout.Ebda) >> 10)], "BIOS data");
    }

    /// <summary>Number of drives that INT 13h knows, from 0x80 on.</summary>
    public static void SetHardDisks(MachineRam ram, byte drives) => ram.Write(Data + 0x75, [drives], "BIOS data");

    /// <summary>The time of day, UTC as the RTC has it, in the BIOS's unit: the PIT's input over 65536, some 18.2 a second.</summary>
    public static uint TicksNow()
    {
        const long DayNs = 86_400_000_000_000, PitHz = 1_193_182, PitReload = 65_536;
        return (uint)(HostClock.RealtimeNs() % DayNs / 1_000_000 * PitHz / PitReload / 1000);
    }

    /// <summary>IRQ 0 counts ticks and calls INT 1Ch; the others are acknowledged.</summary>
    private static void WriteInterruptHandlers(MachineRam ram)
    {
        ReadOnlySpan<byte> tick =
        [
            0x1e, 0x50, 0x31, 0xc0, 0x8e, 0xd8, // push ds; push ax; xor ax, ax; mov ds, ax
            0x66, 0xff, 0x06, 0x6c, 0x04, // inc dword [0x46c]
            0x66, 0x81, 0x3e, 0x6c, 0x04, 0xb0, 0x00, 0x18, 0x00, // cmp dword [0x46c], 0x1800b0: a day
            0x72, 0x0a, // jb to int 0x1c
            0xa3, 0x6c, 0x04, 0xa3, 0x6e, 0x04, // mov [0x46c], ax; mov [0x46e], ax
            0xfe, 0x06, 0x70, 0x04, // inc byte [0x470]: midnight
            0xcd, 0x1c, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0x1f, 0xcf, // int 0x1c; mov al, 0x20; out 0x20, al; pop ax; pop ds; iret
        ];
        ReadOnlySpan<byte> master = [0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf]; // push ax; mov al, 0x20; out 0x20, al; pop ax; iret
        ReadOnlySpan<byte> slave = [0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf];
        const ushort Tick = Handlers, Master = Handlers + 0x40, Slave = Handlers + 0x50;
        ram.Write(Rom + Tick, tick, "BIOS");
        ram.Write(Rom + Master, master, "BIOS");
        ram.Write(Rom + Slave, slave, "BIOS");
        SetVector(ram, MasterBase, Tick);
        for (int irq = 1; irq < 16; irq++)
            SetVector(ram, irq < 8 ? MasterBase + irq : SlaveBase + irq - 8, irq < 8 ? Master : Slave);
    }

    private static void SetVector(MachineRam ram, int vector, ushort offset)
    {
        Put(ram, (ulong)(vector * 4), offset);
        Put(ram, (ulong)(vector * 4 + 2), Segment);
    }

    /// <summary>A jump to F000:FFF0 restarts the machine; behind it the date and the model byte.</summary>
    private static void WriteReset(MachineRam ram)
    {
        const ushort Code = Handlers + 0x60;
        ram.Write(Rom + Code, [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd], "BIOS"); // mov al, 0xfe; out 0x64, al; hlt; jmp to hlt
        ram.Write(Rom + 0xfff0, [0xea, unchecked((byte)Code), Code >> 8, unchecked((byte)Segment), Segment >> 8], "BIOS");
        ram.Write(Rom + 0xfff5, "01/01/26"u8, "BIOS");
        ram.Write(Rom + 0xfffe, [0xfc], "BIOS");
    }

    private static void Put(MachineRam ram, ulong gpa, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(ram.Span(gpa, 2, "BIOS data"), value);
}
