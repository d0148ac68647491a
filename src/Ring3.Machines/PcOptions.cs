using Ring3.Vmm;

namespace Ring3.Machines;

/// <summary>What a <see cref="Pc"/> is made of, and what it boots.</summary>
public sealed class PcOptions
{
    /// <summary>Kernel file (bzImage, ELF, Multiboot); null: Debian's cloud kernel, fetched once into the user's cache.</summary>
    public string? Kernel { get; init; }

    /// <summary>Initial RAM disks, one behind the other; none: a small system with busybox, whose shell is on the console.</summary>
    public IReadOnlyList<string> Initrds { get; init; } = [];

    /// <summary>Added to the kernel's command line, which begins with <c>console=ttyS0 panic=-1</c>. <c>root=/dev/vda</c> boots the system on the first
    /// disk.</summary>
    public string CommandLine { get; init; } = "";

    /// <summary>Processors, 1 to 255.</summary>
    public int Processors { get; init; } = 1;

    /// <summary>Bytes of memory, 1 MiB to 1 TiB.</summary>
    public ulong MemoryBytes { get; init; } = 512UL << 20;

    /// <summary>Disks, which the guest finds in this order.</summary>
    public IReadOnlyList<PcDisk> Disks { get; init; } = [];

    /// <summary>The network; null: none.</summary>
    public PcNetwork? Network { get; init; }

    /// <summary>Where lines go about what happens to the machine's devices, and what is fetched for it; written to by any thread. By default nowhere.</summary>
    public TextWriter Messages { get; init; } = TextWriter.Null;

    /// <exception cref="ArgumentException">A value is outside of what its comment says.</exception>
    internal BootOptions ToBoot()
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(Processors, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(Processors, BootOptions.MaxCpus);
        return new()
        {
            Kernel = Kernel, Initrd = Initrds, Append = CommandLine, Cpus = Processors, MemoryBytes = MemoryBytes, Disks = [.. Disks.Select(d => d.ToOption())],
            Net = Network?.ToOption(), Sandbox = false, Messages = TextWriter.Synchronized(Messages),
        };
    }
}

/// <summary>A disk: an image file or a block device, locked as long as the machine has it.</summary>
/// <param name="path">Its file.</param>
public sealed class PcDisk(string path)
{
    /// <summary>Its file.</summary>
    public string Path { get; } = path;

    /// <summary>The guest cannot write.</summary>
    public bool ReadOnly { get; init; }

    /// <summary>Without the host's page cache, where the image's file system has that (O_DIRECT).</summary>
    public bool Direct { get; init; }

    /// <summary>What the guest is told; 1 to 20 ASCII characters. Null: a name by the disk's number.</summary>
    public string? Serial { get; init; }

    /// <summary>Null: raw. qcow2, qed, vdi, vhdx, vmdk, vpc: served by qemu-storage-daemon, and only from the machine's start on.</summary>
    public string? Format { get; init; }

    /// <exception cref="ArgumentException">The serial number or the format cannot be.</exception>
    internal DiskOption ToOption()
    {
        if (Serial is not null && !DiskOption.IsSerial(Serial))
            throw new ArgumentException("a serial number has 1 to 20 ASCII characters", nameof(Serial));
        if (Format is not null && !DiskOption.IsFormat(Format))
            throw new ArgumentException($"there are no images in {Format} format", nameof(Format));
        return new() { Path = Path, ReadOnly = ReadOnly, Direct = Direct, Serial = Serial, Format = Format };
    }
}

/// <summary>A network card, and what is on its other side.</summary>
public sealed class PcNetwork
{
    /// <summary>A TAP interface of the host. Null: passt, which needs no privileges: the guest reaches what the host reaches.</summary>
    public string? Tap { get; init; }

    /// <summary>Ports of the host's 127.0.0.1 that lead to ports of the guest; not with <see cref="Tap"/>.</summary>
    public IReadOnlyDictionary<ushort, ushort> Forwards { get; init; } = new Dictionary<ushort, ushort>();

    /// <exception cref="ArgumentException">No interface has such a name, or a port is 0.</exception>
    internal NetOption ToOption()
    {
        if (Tap is not null && !NetOption.IsInterface(Tap))
            throw new ArgumentException("an interface's name has 1 to 15 ASCII characters", nameof(Tap));
        if (Tap is not null && Forwards.Count != 0 || Forwards.Any(f => f.Key == 0 || f.Value == 0))
            throw new ArgumentException("forwards lead from ports to ports, and only without an interface", nameof(Forwards));
        return new() { Tap = Tap, Forwards = [.. Forwards.Select(f => new NetOption.Forward(f.Key, f.Value))] };
    }
}

/// <summary>How a machine has ended.</summary>
public enum PcEnd
{
    /// <summary>The guest has switched it off.</summary>
    PowerOff,

    /// <summary>The guest has reset it; a kernel that panics does.</summary>
    Reset,

    /// <summary>A triple fault of the guest.</summary>
    TripleFault,

    /// <summary><see cref="Pc.Stop"/>.</summary>
    Stopped,
}

/// <summary>What was asked of a machine cannot be: a missing file or program, an image that is in use, a guest that keeps its disk. The message is a
/// line.</summary>
public sealed class PcException : Exception
{
    internal PcException(string message, Exception? inner = null) : base(message, inner)
    {
    }
}
