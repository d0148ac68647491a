using System.Buffers.Binary;
using System.Text;
using Ring3.Abi;
using Ring3.Arch;

namespace Ring3.Bench;

/// <summary>
/// A library virtual machine with one processor and 64 MiB that runs a multiboot image to its debug exit. No devices, no interrupt controllers.
/// </summary>
internal sealed class FlatGuest : IDisposable
{
    private const ulong MemorySize = 64 << 20;
    private const uint CommandLine = 0x7100, Information = 0x7000;

    private readonly VirtualMachine _machine = VirtualMachine.Create();
    private readonly VirtualCpu _cpu;

    internal FlatGuest(string image, long iterations)
    {
        _machine.MapMemory(0, MemorySize);
        uint entry = LoadImage(File.ReadAllBytes(image));
        Write(CommandLine, Encoding.ASCII.GetBytes($"bench {iterations}\0"));
        Span<byte> information = stackalloc byte[24];
        BinaryPrimitives.WriteUInt32LittleEndian(information, 4); // there is a command line
        BinaryPrimitives.WriteUInt32LittleEndian(information[16..], CommandLine);
        Write(Information, information);
        _cpu = _machine.CreateCpu();
        Start(entry);
    }

    private void Write(ulong address, ReadOnlySpan<byte> bytes)
    {
        if (!_machine.Memory.Write(address, bytes))
            throw new InvalidOperationException($"cannot write guest memory at 0x{address:x}");
    }

    /// <summary>SPEC: Multiboot 0.6.96, "OS image format" (address fields).</summary>
    private uint LoadImage(byte[] image)
    {
        for (int at = 0; at + 32 <= Math.Min(image.Length, 8192); at += 4)
        {
            uint Field(int n) => BinaryPrimitives.ReadUInt32LittleEndian(image.AsSpan(at + 4 * n));
            if (Field(0) != 0x1badb002)
                continue;
            Write(Field(4), image);
            return Field(7);
        }
        throw new InvalidDataException("no multiboot header");
    }

    /// <summary>SPEC: Multiboot 0.6.96, "Machine state".</summary>
    private void Start(uint entry)
    {
        kvm_segment code = new() { limit = uint.MaxValue, selector = 8, type = 11, present = 1, s = 1, db = 1, g = 1 };
        kvm_segment data = new() { limit = uint.MaxValue, selector = 16, type = 3, present = 1, s = 1, db = 1, g = 1 };
        kvm_sregs s = _cpu.SpecialRegisters;
        (s.cs, s.ds, s.es, s.fs, s.gs, s.ss) = (code, data, data, data, data, data);
        s.cr0 = Cr0.PE | Cr0.ET;
        _cpu.SpecialRegisters = s;
        _cpu.Registers = new kvm_regs { rax = 0x2badb002, rbx = Information, rip = entry, rflags = Rflags.Fixed1 };
    }

    /// <summary>Runs to the debug exit. Returns the number of instructions retired.</summary>
    internal ulong Run()
    {
        for (; ; )
        {
            CpuExit exit = _cpu.Run();
            if (exit.Kind == CpuExitKind.PortWrite && exit.Port == 0xf4)
                return exit.Data[0] == 0x10 ? _cpu.InstructionsRetired
                    : throw new InvalidOperationException($"the guest failed with status 0x{exit.Data[0]:x}");
            if (exit.Kind != CpuExitKind.Interrupted)
                throw new InvalidOperationException($"unexpected exit {exit.Kind} at 0x{_cpu.Registers.rip:x}");
        }
    }

    public void Dispose() => _machine.Dispose();
}
