using System.Collections.Concurrent;
using System.Runtime.InteropServices;

// SAFETY: blocks are recycled, never freed; a block whose vCPU is gone points to words of its own.
namespace Ring3.Kvm;

// Signals of the client's threads.
public sealed unsafe partial class Vcpu
{
    /// <summary>Blocks of vCPUs that are gone. A signal can arrive between the end of the last call on a vCPU, which frees it, and the moment the caller knows.</summary>
    private static readonly ConcurrentBag<nint> s_retiredSignals = [];

    /// <summary>A block, and the words it points to when its vCPU is gone.</summary>
    private struct SignalBlock
    {
        public VcpuSignal Signal;
        public uint ExitRequest, WakeWord;
    }

    private VcpuSignal* _signal;

    /// <summary>Words for the signal handlers of the thread that runs this vCPU. They mean this vCPU until the VM is disposed of, and can be written for ever.</summary>
    public VcpuSignal* Signal => _signal;

    private void InitializeSignal()
    {
        _signal = s_retiredSignals.TryTake(out nint block) ? (VcpuSignal*)block : (VcpuSignal*)NativeMemory.AlignedAlloc((nuint)sizeof(SignalBlock), 64);
        *_signal = new VcpuSignal { ExitRequest = (uint*)&_s->ExitRequest, WakeWord = (uint*)Requests.WakeWord };
    }

    private void FreeSignal()
    {
        SignalBlock* block = (SignalBlock*)_signal;
        Volatile.Write(ref *(nint*)&block->Signal.ExitRequest, (nint)(&block->ExitRequest));
        Volatile.Write(ref *(nint*)&block->Signal.WakeWord, (nint)(&block->WakeWord));
        s_retiredSignals.Add((nint)block);
    }

    /// <summary>A signal was handled on this thread since KVM_RUN began. The handler ran on the thread that asks, so program order is order enough.</summary>
    private bool IsSignalled => Volatile.Read(ref _signal->Signalled) != 0;
}
