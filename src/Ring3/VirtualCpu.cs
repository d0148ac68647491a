using Ring3.Abi;
using Ring3.Arch;
using Ring3.Kvm;

// SAFETY: kvm_run is mapped until the vCPU is disposed, and locals are passed by address for the call only.
namespace Ring3;

/// <summary>A processor of a <see cref="VirtualMachine"/>. Members are for the thread that runs it, except <see cref="Stop"/> and <see cref="InjectNmi"/>.
/// After the machine's end they throw <see cref="ObjectDisposedException"/>.</summary>
public sealed class VirtualCpu
{
    internal VirtualCpu(VirtualMachine machine, Vcpu vcpu)
    {
        (Machine, Vcpu) = (machine, vcpu);
        kvm_cpuid_entry2[] cpuid = SupportedCpuid.WithTiming(vcpu.TscKhz, vcpu.Lapic is not null, vcpu.Vm.Processor);
        CpuidTopology.Apply(cpuid, vcpu.Id, (uint)machine.Cpus.Count + 1);
        Ring3Exception.ThrowIfFailed(vcpu.SetCpuid2(cpuid), "set CPUID");
    }

    /// <summary>The machine that the processor is of.</summary>
    public VirtualMachine Machine { get; }

    /// <summary>The processor as KVM sees it: everything this class leaves out.</summary>
    public Vcpu Vcpu { get; }

    /// <summary>The processor of a machine that has not been disposed of.</summary>
    private Vcpu Live
    {
        get
        {
            Machine.ThrowIfDisposed();
            return Vcpu;
        }
    }

    /// <summary>General registers, RIP and RFLAGS.</summary>
    public kvm_regs Registers
    {
        get
        {
            Live.GetRegs(out kvm_regs regs);
            return regs;
        }
        set => Live.SetRegs(value);
    }

    /// <summary>Segments, control registers, descriptor tables.</summary>
    /// <exception cref="Ring3Exception">A combination that no processor can have.</exception>
    public kvm_sregs SpecialRegisters
    {
        get
        {
            Live.GetSregs(out kvm_sregs sregs);
            return sregs;
        }
        set => Ring3Exception.ThrowIfFailed(Live.SetSregs(value), "set the segment and control registers");
    }

    /// <summary>Guest instructions retired so far.</summary>
    public ulong InstructionsRetired => Live.InstructionsRetired;

    /// <summary>Runs guest code on this thread until something needs the caller.</summary>
    /// <exception cref="Ring3Exception">Another thread runs the processor, or the machine is dead.</exception>
    /// <exception cref="ObjectDisposedException">The machine has been disposed of, before or meanwhile.</exception>
    public unsafe CpuExit Run()
    {
        if (!Vcpu.TryClaim())
            throw new Ring3Exception("run the processor", Errno.EBUSY);
        int r;
        try
        {
            r = Vcpu.RunExclusive();
            if (r == 0)
                return new CpuExit(CpuExit.KindOf(*Vcpu.KvmRun), Vcpu.KvmRun);
        }
        finally { Vcpu.Release(); }
        if (r == -Errno.EINTR)
            return new CpuExit(CpuExitKind.Interrupted, Vcpu.KvmRun);
        if (r == -Errno.EFAULT)
            return new CpuExit(CpuExitKind.Error, Vcpu.KvmRun);
        Machine.ThrowIfDisposed();
        throw new Ring3Exception("run the processor", -r);
    }

    /// <summary>Makes the current or the next <see cref="Run"/> return with <see cref="CpuExitKind.Interrupted"/>. Any thread.</summary>
    public void Stop() => Live.Kick();

    /// <summary>Delivers an external interrupt as soon as the guest allows, on a machine without interrupt controllers. One that still waits is
    /// replaced.</summary>
    /// <exception cref="Ring3Exception">The machine has interrupt controllers.</exception>
    public void Interrupt(byte vector) => Ring3Exception.ThrowIfFailed(Live.Interrupt(vector), "queue an interrupt");

    /// <summary>Delivers a non-maskable interrupt. Any thread.</summary>
    public void InjectNmi() => Live.InjectNmi();

    /// <summary>Prepares 16-bit real mode at an address below 1 MiB: segments 0, or the address's paragraph in CS when it does not fit 64 KiB.</summary>
    public void StartInRealMode(uint address, ushort stack = 0x7000)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(address, 0xfffffu);
        kvm_sregs s = SpecialRegisters;
        uint cs = address < 0x10000 ? 0 : address >> 4;
        s.cs.@base = cs << 4;
        s.cs.selector = (ushort)cs;
        SpecialRegisters = s;
        Registers = new kvm_regs { rip = address - (cs << 4), rsp = stack, rflags = Rflags.Fixed1 };
    }

    /// <summary>
    /// Prepares 64-bit mode, ring 0, with the first 512 GiB identity-mapped by 1 GiB pages. Two pages of page tables and one of descriptors are written at
    /// <paramref name="tables"/>, which must be memory.
    /// </summary>
    /// <param name="entry">Address of the first instruction.</param>
    /// <param name="stack">Initial RSP.</param>
    /// <param name="tables">Page-aligned guest-physical address of three free pages.</param>
    public void StartInLongMode(ulong entry, ulong stack, ulong tables)
    {
        LongMode.WriteTables(Machine.Memory, tables);
        kvm_sregs s = SpecialRegisters;
        LongMode.Apply(ref s, tables);
        SpecialRegisters = s;
        Registers = new kvm_regs { rip = entry, rsp = stack, rflags = Rflags.Fixed1 };
    }
}
