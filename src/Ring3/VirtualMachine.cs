using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Kvm;
using Ring3.Memory;
using Ring3.Mmu;
using Ring3.Reclaim;

namespace Ring3;

/// <summary>Choices made when a virtual machine is created.</summary>
public sealed record VirtualMachineOptions
{
    /// <summary>Create the interrupt controllers of a PC (PIC pair, I/O APIC, a local APIC for each processor) and the PIT in the hypervisor. Without them HLT
    /// is an exit, and interrupts are injected by <see cref="VirtualCpu.Interrupt"/>.</summary>
    public bool InterruptControllers { get; init; }

    /// <summary>Which processor the machine has (see <see cref="VmOptions.Processor"/>).</summary>
    public ProcessorModel Processor { get; init; } = ProcessorModel.Host;

    /// <summary>Host threads write guest memory through pointers of their own, not through <see cref="VirtualMachine.Memory"/>: executed code is compared with
    /// memory again after each exit.</summary>
    public bool ExternalWriters { get; init; }

    /// <summary>Who zaps obsolete page tables (see <see cref="VmOptions.ZapPolicy"/>).</summary>
    public RootZapPolicy ZapPolicy { get; init; } = RootZapPolicy.Worker;

    /// <summary>Percent of one processor, 1 to 100, that zapping may take (see <see cref="VmOptions.ZapSharePercent"/>).</summary>
    public int ZapSharePercent { get; init; } = 50;

    /// <summary>Check every use of a cached translation; a violation makes <see cref="VirtualCpu.Run"/> fail. Some ten times slower.</summary>
    public bool CheckTlb { get; init; }
}

/// <summary>
/// A virtual x86-64 machine on a software KVM: needs neither /dev/kvm nor privileges. Create it, map memory, create processors, and run each on a thread of its
/// own.
/// <code>
/// using var vm = VirtualMachine.Create();
/// vm.MapMemory(0x1000, 4096);
/// vm.Memory.Write(0x1000, code);
/// var cpu = vm.CreateCpu();
/// cpu.StartInRealMode(0x1000);
/// for (bool running = true; running;)
/// {
///     var exit = cpu.Run();
///     switch (exit.Kind)
///     {
///         case CpuExitKind.PortWrite: Console.Write((char)exit.Data[0]); break;
///         case CpuExitKind.Halt: running = false; break;
///     }
/// }
/// </code>
/// </summary>
public sealed class VirtualMachine : IDisposable
{
    private readonly List<GuestRam> _owned = [];
    private readonly List<VirtualCpu> _cpus = [];
    private uint _nextSlot;
    private volatile bool _disposed;

    /// <summary>Creates a machine without memory and processors.</summary>
    /// <exception cref="OutOfMemoryException">The host has no memory for the machine's own tables.</exception>
    /// <exception cref="PlatformNotSupportedException">The host's processor does not have AVX2, BMI2 and FMA.</exception>
    public static VirtualMachine Create(VirtualMachineOptions? options = null) => new(options ?? new());

    private VirtualMachine(VirtualMachineOptions options)
    {
        Vm = Vm.Create(new VmOptions { Processor = options.Processor, ExternalWriters = options.ExternalWriters, CheckTlb = options.CheckTlb,
            ZapPolicy = options.ZapPolicy, ZapSharePercent = options.ZapSharePercent });
        if (!options.InterruptControllers)
            return;
        Ring3Exception.ThrowIfFailed(Vm.CreateIrqchip(), "create the interrupt controllers");
        Ring3Exception.ThrowIfFailed(Vm.CreatePit2(), "create the PIT");
    }

    /// <summary>The machine as KVM sees it: everything this class leaves out.</summary>
    public Vm Vm { get; }

    /// <summary>Guest memory by guest-physical address. Any thread, also while processors run.</summary>
    public GuestMemory Memory => Vm.Memory;

    /// <summary>Processors in order of creation.</summary>
    public IReadOnlyList<VirtualCpu> Cpus => _cpus;

    /// <summary>Gives the guest zeroed memory at a guest-physical address. Host memory is used as the guest touches it.</summary>
    /// <param name="guestAddress">Page-aligned.</param>
    /// <param name="size">Bytes, a multiple of the page size.</param>
    /// <param name="readOnly">Guest writes leave with <see cref="CpuExitKind.MmioWrite"/>.</param>
    /// <exception cref="Ring3Exception">The range is unaligned or overlaps another.</exception>
    /// <exception cref="OutOfMemoryException">The address space cannot be reserved.</exception>
    public GuestRam MapMemory(ulong guestAddress, ulong size, bool readOnly = false)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        var ram = new GuestRam(size);
        try { MapHostMemory(guestAddress, size, ram.Hva, readOnly); }
        catch
        {
            ram.Dispose();
            throw;
        }
        try { Vm.Resident?.AddMemory(new HvaRange(ram.Hva, ram.Hva + ram.Size)); }
        finally { _owned.Add(ram); }
        return ram;
    }

    /// <summary>
    /// Keeps the memory of <see cref="MapMemory"/>, what there is and what is mapped later, inside a resident limit: pages that have been idle longest are
    /// written to a file and come back when guest or host touch them. Guest data is never lost; a system call that stores directly into the memory may fail
    /// with EFAULT while its page is being written. Any thread; processors may run.
    /// </summary>
    /// <param name="bytes">The limit; it can be changed later (<see cref="ResidentLimit.Bytes"/>). <see cref="ulong.MaxValue"/>: only watch the working
    /// set.</param>
    /// <param name="options">Where the file is made and how pages age; null: the defaults.</param>
    /// <exception cref="ArgumentOutOfRangeException">The limit is too small for the number of processors, see <see cref="ResidentLimit.MinBytes"/>.</exception>
    /// <exception cref="IOException">The file cannot be made, or cannot take what the memory contains.</exception>
    /// <exception cref="InvalidOperationException">The machine has a limit already.</exception>
    public ResidentLimit LimitResident(ulong bytes, ResidentOptions? options = null)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        return Vm.LimitResident(bytes, _owned.Select(r => new HvaRange(r.Hva, r.Hva + r.Size)), options);
    }

    /// <summary>Gives the guest memory that the caller owns. It must stay mapped until the machine is disposed.</summary>
    /// <param name="guestAddress">Page-aligned.</param>
    /// <param name="size">Bytes, a multiple of the page size.</param>
    /// <param name="hostAddress">Page-aligned host virtual address.</param>
    /// <param name="readOnly">Guest writes leave with <see cref="CpuExitKind.MmioWrite"/>.</param>
    /// <exception cref="Ring3Exception">A range is unaligned or overlaps another.</exception>
    public void MapHostMemory(ulong guestAddress, ulong size, ulong hostAddress, bool readOnly = false)
    {
        Ring3Exception.ThrowIfFailed(Vm.SetUserMemoryRegion(_nextSlot, readOnly ? KvmApi.KVM_MEM_READONLY : 0, guestAddress, size, hostAddress),
            $"map {size} bytes at 0x{guestAddress:x}");
        _nextSlot++;
    }

    /// <summary>Creates the next processor, with every feature that the library implements in its CPUID. The first starts; with interrupt controllers the
    /// others wait for INIT and SIPI.</summary>
    /// <exception cref="Ring3Exception">There are too many.</exception>
    public VirtualCpu CreateCpu()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        Ring3Exception.ThrowIfFailed(Vm.CreateVcpu((uint)_cpus.Count, out Vcpu? vcpu), "create a processor");
        var cpu = new VirtualCpu(this, vcpu!);
        _cpus.Add(cpu);
        return cpu;
    }

    /// <summary>Drives an interrupt line of the in-hypervisor controllers: 0-15 are the ISA interrupts, 0-23 the pins of the I/O APIC.</summary>
    public void SetIrq(uint line, bool level) => Vm.IrqLine(line, level);

    internal void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(_disposed, this);

    /// <summary>
    /// Frees the machine. Processors that run on other threads are stopped and waited for: their <see cref="VirtualCpu.Run"/> throws
    /// <see cref="ObjectDisposedException"/>. Data of earlier exits is gone, and no other member may be in use.
    /// </summary>
    /// <exception cref="InvalidOperationException">Called from inside a processor's Run.</exception>
    public void Dispose()
    {
        if (_disposed)
            return;
        Vm.RefuseIfInside();
        _disposed = true;
        Vm.Dispose();
        foreach (GuestRam ram in _owned)
            ram.Dispose();
    }
}
