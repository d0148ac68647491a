using System.Collections.Concurrent;
using System.Runtime.InteropServices;

// SAFETY: blocks are recycled, never freed; a block whose vCPU is gone points to words of its own.
namespace Ring3.Kvm;

/// <summary>
/// The words through which signal handlers of the client's threads reach a vCPU. They lie in a block that can be written for ever: a signal can arrive between
/// the end of the last call on a vCPU, which frees it, and the moment the caller knows.
/// </summary>
internal sealed class SignalWords
{
    /// <summary>Blocks of vCPUs that are gone.</summary>
    private static readonly ConcurrentBag<nint> s_retired = [];

    /// <summary>A block, and the words it points to when its vCPU is gone.</summary>
    private struct Block
    {
        public VcpuSignal Signal;
        public uint ExitRequest, WakeWord;
    }

    private readonly unsafe Block* _block;

    public unsafe SignalWords(VcpuCore core)
    {
        _block = (Block*)(s_retired.TryTake(out nint block) ? (void*)block : NativeMemory.AlignedAlloc((nuint)sizeof(Block), 64));
        _block->Signal = new VcpuSignal { ExitRequest = (uint*)&core.State->ExitRequest, WakeWord = (uint*)core.Requests.WakeWord };
    }

    public unsafe VcpuSignal* Signal => &_block->Signal;

    /// <summary>A signal was handled on this thread since KVM_RUN began. The handler ran on the thread that asks, so program order is order enough.</summary>
    public unsafe bool IsSignalled => Volatile.Read(ref _block->Signal.Signalled) != 0;

    /// <summary>The vCPU goes: what comes late is written to words that nobody reads.</summary>
    public unsafe void Free()
    {
        Volatile.Write(ref *(nint*)&_block->Signal.ExitRequest, (nint)(&_block->ExitRequest));
        Volatile.Write(ref *(nint*)&_block->Signal.WakeWord, (nint)(&_block->WakeWord));
        s_retired.Add((nint)_block);
    }
}
