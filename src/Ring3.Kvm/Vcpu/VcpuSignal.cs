// SAFETY: layout only; the pointers stay inside blocks that live as long as their vCPU.
namespace Ring3.Kvm;

/// <summary>
/// What a signal handler needs of a vCPU, in memory that does not move: <c>struct r3_vcpu_signal</c> of the interposer. A handler that runs on the thread
/// inside <see cref="Vcpu.Run"/> sets <see cref="Signalled"/>, then <c>*ExitRequest</c>, then increments <c>*WakeWord</c>: the run loop looks at them in the
/// opposite order before it enters the guest or sleeps, so no signal is missed.
/// </summary>
public struct VcpuSignal
{
    /// <summary>The word that the running processor polls.</summary>
    public unsafe uint* ExitRequest;
    /// <summary>The futex word on which the vCPU sleeps.</summary>
    public unsafe uint* WakeWord;
    /// <summary>Non-zero: KVM_RUN returns -EINTR. Cleared by whoever sets it, before KVM_RUN.</summary>
    public uint Signalled;
}
