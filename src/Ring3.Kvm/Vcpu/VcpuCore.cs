using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Host;
using Ring3.Irqchip;

namespace Ring3.Kvm;

/// <summary>
/// What all parts of a vCPU stand on: the processor, the page shared with the client, the request word, the counters, and the marks that parts set for the run
/// loop. It knows no part and decides nothing.
/// </summary>
/// <remarks>SAFETY: State and Exit belong to the processor, which the VM's machine frees; Run is mapped until <see cref="Free"/>, or the client's until the VM
/// is disposed of. All outlive every part.</remarks>
internal sealed class VcpuCore
{
    private readonly bool _ownsRunArea;

    /// <param name="runArea">Memory of kvm_run that the caller keeps; null: it is mapped here.</param>
    public unsafe VcpuCore(Vm vm, uint id, int index, byte* runArea)
    {
        (Vm, Id, Index) = (vm, id, index);
        IsBootProcessor = id == vm.BootCpuId;
        Cpu = vm.Machine.CreateProcessor();
        State = Cpu.State;
        Exit = Cpu.Exit;
        if (vm.TlbReference is { } reference)
            Cpu.CheckTranslations(reference);
        _ownsRunArea = runArea == null;
        Run = (kvm_run*)(runArea != null ? runArea : HostMemory.Map((nuint)Vcpu.AreaBytes(vm)));
        Requests = new VcpuRequests(&State->ExitRequest);
    }

    public Vm Vm { get; }

    /// <summary>The id given at creation: the APIC id.</summary>
    public uint Id { get; }

    /// <summary>Position in <see cref="Vm.Vcpus"/>.</summary>
    public int Index { get; }
    public bool IsBootProcessor { get; }
    public LogicalProcessor Cpu { get; }
    public unsafe CpuState* State { get; }

    /// <summary>What the processor tells of its last exit.</summary>
    public unsafe ExitInfo* Exit { get; }

    /// <summary>The area shared with the client. It can change at any time: what matters twice is read once.</summary>
    public unsafe kvm_run* Run { get; }
    public VcpuRequests Requests { get; }
    public VcpuStats Stats { get; } = new();

    /// <summary>What the next KVM_RUN has to finish.</summary>
    public Completion Completion { get; set; }

    /// <summary>What is to be done around an entry. A vCPU looks at events before its first.</summary>
    public EntryWork Work = new() { Events = true };

    /// <summary>The vCPU has been about to enter the guest.</summary>
    public bool HasRun { get; set; }

    /// <summary>The vCPU comes back to a processor: for a Xen guest "running" begins at the next entry.</summary>
    public bool Arrives { get; set; }

    /// <summary>The guest has enabled steal time.</summary>
    public bool HasStealTime { get; set; }

    /// <summary>
    /// The client moves RIP: the instruction of the last exit never ends, also when the client comes back to it.
    /// Of a write that has retired the rest still goes to the device.
    /// </summary>
    /// <remarks>KVM: it looks at RIP at the next KVM_RUN only, and for ports and Xen's hypercalls only; others end in whatever the client has loaded.</remarks>
    public void AbandonExit()
    {
        Cpu.AbandonInstruction();
        if (Completion != Completion.MmioWrite)
            Completion = Completion.None;
    }

    /// <summary>In-kernel local APIC, or null. Set once, while the vCPU is made.</summary>
    public Lapic? Lapic { get; set; }

    /// <summary>After the last thread that could make a request is gone.</summary>
    public unsafe void Free()
    {
        if (_ownsRunArea)
            HostMemory.Unmap(Run, (nuint)Vcpu.AreaBytes(Vm));
    }
}
