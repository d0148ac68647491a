namespace Ring3.Kvm;

/// <summary>What a step of the run loop wants. Values of 0 and below are what <see cref="Vcpu.Run"/> returns.</summary>
internal static class RunStep
{
    public const int KeepRunning = 1;

    /// <summary>kvm_run has an exit for the client.</summary>
    public const int ToClient = 0;
}

/// <summary>What the next KVM_RUN has to finish: the client has seen an exit in the middle of an instruction. Set by whoever fills kvm_run.</summary>
internal enum Completion : byte { None, PortRead, PortWrite, StringWrite, MmioRead, MmioWrite, InputMmio, MsrRead, MsrWrite, Hypercall, XenHypercall }
