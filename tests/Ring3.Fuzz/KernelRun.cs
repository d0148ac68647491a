using System.Buffers.Binary;
using Ring3.Kvm;
using Ring3.Vmm;

namespace Ring3.Fuzz;

/// <summary>
/// Random and damaged kernel images: the loader refuses them with one message, or loads them inside the guest's memory and the guest boots them.
/// </summary>
/// <remarks>SAFETY: the guest's memory is disposed after the virtual machine that uses it.</remarks>
internal sealed unsafe class KernelRun : IHostileRun
{
    private const int RamBytes = 16 << 20;
    private readonly MachineRam _ram = new(RamBytes);

    /// <summary>Held while the vCPU is created, destroyed or kicked.</summary>
    private readonly Lock _alive = new();
    private Vcpu? _vcpu;

    public void Kick()
    {
        lock (_alive)
            _vcpu?.Kick();
    }

    public void Recycle() { }
    public void Dispose() => _ram.Dispose();

    public string Once(Random random)
    {
        byte[] image = new byte[random.Next(4) == 0 ? random.Next(600) : random.Next(512, 40_000)];
        if (random.Next(2) == 0)
            random.NextBytes(image);
        Shape(random, image);
        for (int i = random.Next(12); i > 0 && image.Length > 0; i--)
            image[random.Next(Math.Min(image.Length, 0x300))] = (byte)random.Next(256);
        BootRequest request = new()
        {
            CommandLine = new string('x', random.Next(3) == 0 ? random.Next(5000) : 10),
            Modules = random.Next(2) == 0 ? [] : [new BootModule("m", new byte[random.Next(1 << 16)])],
            Protocol = (BootProtocol)random.Next(7),
        };
        try
        {
            EntryState entry = KernelLoader.Load(image, "image", _ram, request);
            return $"{entry.Mode} {Boot(entry, random)}";
        }
        catch (BootException e)
        {
            if (e.Message.Contains('\n') || e.Message.Length == 0)
                throw new InvalidOperationException($"not one clear line: '{e.Message}'");
            return $"refused {e.Status}";
        }
    }

    private string Boot(EntryState entry, Random random)
    {
        using Vm vm = Vm.Create();
        if (vm.CreateIrqchip() != 0 || vm.CreatePit2() != 0)
            throw new InvalidOperationException("no interrupt controllers");
        uint slot = 0;
        foreach (RamRegion r in _ram.Regions)
            if (r.Bytes != 0 && vm.SetUserMemoryRegion(slot++, 0, r.Gpa, r.Bytes, (ulong)r.Hva) != 0)
                throw new InvalidOperationException("no memory slot");
        lock (_alive)
            _vcpu = vm.CreateVcpu(0);
        try
        {
            ProcessorSetup.Enter(_vcpu, entry);
            string ending = Client.Run(_vcpu, random);
            return vm.IsDead ? throw new InvalidOperationException($"the guest broke a host invariant: {vm.BugMessage}") : ending;
        }
        finally
        {
            lock (_alive)
                _vcpu = null;
            foreach (RamRegion r in _ram.Regions)
                _ram.Clear(r.Gpa, r.Bytes, "memory");
        }
    }

    /// <summary>Makes the image look like one of the formats, so that the damage hits what is behind the magic numbers.</summary>
    private static void Shape(Random random, Span<byte> image)
    {
        if (image.Length < 0x300)
            return;
        switch (random.Next(5))
        {
            case 0:
                image[510] = 0x55;
                image[511] = 0xaa;
                break;
            case 1:
                image[510] = 0x55;
                image[511] = 0xaa;
                "HdrS"u8.CopyTo(image[0x202..]);
                BinaryPrimitives.WriteUInt16LittleEndian(image[0x206..], 0x20f);
                image[0x1f1] = (byte)random.Next(8);
                image[0x211] = 1;
                BinaryPrimitives.WriteUInt16LittleEndian(image[0x236..], (ushort)random.Next(4));
                BinaryPrimitives.WriteUInt32LittleEndian(image[0x260..], (uint)random.Next(RamBytes * 2));
                break;
            case 2:
                new byte[] { 0x7f, (byte)'E', (byte)'L', (byte)'F', (byte)random.Next(1, 3), 1, 1 }.CopyTo(image);
                BinaryPrimitives.WriteUInt16LittleEndian(image[16..], 2);
                BinaryPrimitives.WriteUInt16LittleEndian(image[18..], random.Next(2) == 0 ? (ushort)62 : (ushort)3);
                BinaryPrimitives.WriteUInt64LittleEndian(image[32..], 64);
                BinaryPrimitives.WriteUInt16LittleEndian(image[54..], 56);
                BinaryPrimitives.WriteUInt16LittleEndian(image[56..], (ushort)random.Next(4));
                BinaryPrimitives.WriteUInt32LittleEndian(image[64..], 1);
                break;
            case 3:
                int at = random.Next(64) * 4;
                uint flags = (uint)random.Next(8) | (random.Next(2) == 0 ? 0x10000u : 0);
                BinaryPrimitives.WriteUInt32LittleEndian(image[at..], 0x1badb002);
                BinaryPrimitives.WriteUInt32LittleEndian(image[(at + 4)..], flags);
                BinaryPrimitives.WriteUInt32LittleEndian(image[(at + 8)..], unchecked(0u - 0x1badb002 - flags));
                break;
        }
    }
}
