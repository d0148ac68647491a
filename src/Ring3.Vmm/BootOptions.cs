using Ring3.Cpu;
using Ring3.Mmu;

namespace Ring3.Vmm;

/// <summary>Everything that <c>ring3 boot</c> can be told.</summary>
public sealed record BootOptions
{
    /// <summary>Kernel file; null = Debian's cloud kernel from the cache.</summary>
    public string? Kernel { get; init; }
    /// <summary>RAM disks (Linux concatenates them) or Multiboot modules; empty = busybox when the kernel is Linux.</summary>
    public IReadOnlyList<string> Initrd { get; init; } = [];
    public string Append { get; init; } = "";
    internal string[] KernelWords => Append.Split(' ', StringSplitOptions.RemoveEmptyEntries);
    /// <summary>The default guest's init hands over to the root that <see cref="Append"/> names.</summary>
    public bool BootsRoot => Initrd.Count == 0 && !HasCommand && KernelWords.Any(w => w.StartsWith("root=", StringComparison.Ordinal));
    /// <summary>Which processor the machine has (VmOptions.Processor).</summary>
    public ProcessorModel Processor { get; init; } = ProcessorModel.Host;
    /// <summary>When guest code is translated (VmOptions.TranslationThreshold).</summary>
    public int TranslationThreshold { get; init; } = Engine.Threshold;
    public int Cpus { get; init; } = 2;
    public ulong MemoryBytes { get; init; } = 512UL << 20;
    /// <summary>"stdio", or a file for COM1's output.</summary>
    public string Serial { get; init; } = "stdio";
    public bool Acpi { get; init; } = true;
    /// <summary>Makes random numbers that the machine gives the guest repeatable.</summary>
    public ulong? Seed { get; init; }
    public string? Exec { get; init; }
    /// <summary>The default guest waits for what it is to do, which it is sent (<see cref="CommandStreams.Script"/>): before that it can be copied.</summary>
    public bool WaitsForScript { get; init; }
    /// <summary>Where a snapshot goes that the user asks for; null: nowhere.</summary>
    public string? SnapshotFile { get; init; }
    /// <summary>When it is made, and the machine ends: "ready", or what the console then says; null: when a key says so.</summary>
    public string? SnapshotAt { get; init; }
    /// <summary>Serial ports as those of a snapshot; null: as the other options say.</summary>
    public bool? PolledSerial { get; init; }
    /// <summary>No use is made of a snapshot in the cache, and none is kept there.</summary>
    public bool Cold { get; init; }
    /// <summary>A command with the host's root; <see cref="Shares"/> begin with that root.</summary>
    public RunCommand? Run { get; init; }
    /// <summary>How the command's streams are; null: <see cref="Exec"/> has no input, and serial ports for the rest.</summary>
    public CommandStreams? Streams { get; init; }
    /// <summary>The guest runs one command, and its status is the machine's.</summary>
    public bool HasCommand => Exec is not null || Run is not null;
    public BootProtocol Protocol { get; init; } = BootProtocol.Auto;
    /// <summary>The machine is a Xen HVM guest's.</summary>
    public bool Xen { get; init; }
    /// <summary>With <see cref="Xen"/>: offer FIFO event channels.</summary>
    public bool XenFifo { get; init; }
    /// <summary>Check every use of a cached translation (VmOptions.CheckTlb).</summary>
    public bool CheckTlb { get; init; }
    /// <summary>Who zaps obsolete page tables (VmOptions.ZapPolicy).</summary>
    public RootZapPolicy Zap { get; init; } = RootZapPolicy.Worker;
    /// <summary>Percent of one processor, 1 to 100, that zapping may take (VmOptions.ZapSharePercent).</summary>
    public int ZapShare { get; init; } = DefaultZapShare;
    /// <summary>Resident limit in bytes; null: none.</summary>
    public ulong? ResidentBytes { get; init; }
    /// <summary>Directory for evicted pages; null: one for temporary files.</summary>
    public string? ResidentDirectory { get; init; }
    /// <summary>Disks, in the order in which the guest finds them.</summary>
    public IReadOnlyList<DiskOption> Disks { get; init; } = [];
    /// <summary>Folders of the host.</summary>
    public IReadOnlyList<ShareOption> Shares { get; init; } = [];
    /// <summary>The network card's other side; null: no card.</summary>
    public NetOption? Net { get; init; }
    /// <summary>Streams to programs of the host; null: none.</summary>
    public VsockOption? Vsock { get; init; }
    /// <summary>The words that start a <see cref="Ring3.Vmm.VsockConnector"/>, which a confined process needs; null: it connects itself.</summary>
    public IReadOnlyList<string>? VsockConnector { get; init; }
    /// <summary>File for a picture of the working set over time.</summary>
    public string? Heatmap { get; init; }
    /// <summary>What <c>ring3 ctl</c> calls the machine; null: the number of its process.</summary>
    public string? Name { get; init; }
    /// <summary>The process confines itself to what it has open before the guest runs.</summary>
    public bool Sandbox { get; init; } = true;
    public bool Stats { get; init; }
    /// <summary>Where warnings and <see cref="Trace"/> go, a line each; any thread.</summary>
    public TextWriter Messages { get; init; } = TextWriter.Null;
    public bool Verbose { get; init; }
    public TraceCategories Trace { get; init; }

    public const int MaxCpus = 255, DefaultZapShare = 50;
}

/// <summary>What --trace prints.</summary>
[Flags]
public enum TraceCategories
{
    None = 0, Exits = 1, Io = 2, Mmio = 4, Interrupts = 8, Exceptions = 16, Blocks = 32, Translate = 64,
    All = Exits | Io | Mmio | Interrupts | Exceptions | Blocks | Translate,
}
