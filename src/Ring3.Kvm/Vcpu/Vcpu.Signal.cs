using System.Runtime.InteropServices;

// SAFETY: the block is allocated with the vCPU and freed after its last use, in Free.
namespace Ring3.Kvm;

// Signals of the client's threads.
public sealed unsafe partial class Vcpu
{
    private VcpuSignal* _signal;

    /// <summary>Words for the signal handlers of the thread that runs this vCPU. Valid until the VM is disposed of.</summary>
    public VcpuSignal* Signal => _signal;

    private void InitializeSignal()
    {
        _signal = (VcpuSignal*)NativeMemory.AlignedAlloc((nuint)sizeof(VcpuSignal), 64);
        *_signal = new VcpuSignal { ExitRequest = (uint*)&_s->ExitRequest, WakeWord = (uint*)Requests.WakeWord };
    }

    private void FreeSignal() => NativeMemory.AlignedFree(_signal);

    /// <summary>A signal was handled on this thread since KVM_RUN began. The handler ran on the thread that asks, so program order is order enough.</summary>
    private bool IsSignalled => Volatile.Read(ref _signal->Signalled) != 0;
}
