using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Irqchip;

namespace Ring3.Kvm;

/// <summary>
/// A part of a vCPU: state of its own, and the core. What it needs of other parts is given to its constructor, so parts know each other in one direction only
/// (see <see cref="Vcpu"/>'s constructor). Members are for the vCPU's thread, or for any thread while the vCPU is not running, unless they say otherwise.
/// </summary>
/// <remarks>SAFETY: the pointers are the core's, which outlives its parts.</remarks>
internal abstract class VcpuPart(VcpuCore core)
{
    /// <summary>The processor's state.</summary>
    protected readonly unsafe CpuState* _s = core.State;
    /// <summary>What the processor tells of its last exit.</summary>
    protected readonly unsafe ExitInfo* _exit = core.Exit;
    protected readonly VcpuCore _core = core;

    protected Vm Vm { get; } = core.Vm;
    protected LogicalProcessor Cpu { get; } = core.Cpu;
    protected VcpuRequests Requests { get; } = core.Requests;
    protected VcpuStats Stats { get; } = core.Stats;
    protected unsafe kvm_run* KvmRun { get; } = core.Run;

    /// <summary>The processor's vendor by its model; what the guest sees is <see cref="CpuidFeatures.Vendor"/>.</summary>
    protected bool IsAmd => Vm.Processor.IsAmd;

    /// <summary>In-kernel local APIC, or null. Every part but the TSC, which it needs, is made after it.</summary>
    protected Lapic? Lapic { get; } = core.Lapic;

    /// <summary>What the next KVM_RUN has to finish.</summary>
    protected Completion Completion { set => _core.Completion = value; }

    /// <inheritdoc cref="VcpuCore.AbandonExit"/>
    protected void AbandonExit() => _core.AbandonExit();

    /// <summary>kvm_run has an exit for the client, which the next KVM_RUN finishes.</summary>
    protected int ExitToClient(Completion completion)
    {
        _core.Completion = completion;
        return RunStep.ToClient;
    }
}
