using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3;

/// <summary>Why a processor stopped running guest code.</summary>
public enum CpuExitKind
{
    /// <summary>IN, INS: fill <see cref="CpuExit.Data"/> and run again.</summary>
    PortRead,
    /// <summary>OUT, OUTS: <see cref="CpuExit.Data"/> was written.</summary>
    PortWrite,
    /// <summary>Load from an address without memory: fill <see cref="CpuExit.Data"/> and run again.</summary>
    MmioRead,
    /// <summary>Store to an address without memory, or to read-only memory.</summary>
    MmioWrite,
    /// <summary>HLT, on a machine without interrupt controllers.</summary>
    Halt,
    /// <summary>Triple fault.</summary>
    Shutdown,
    /// <summary><see cref="VirtualCpu.Stop"/> was called.</summary>
    Interrupted,
    /// <summary>A breakpoint or single step that the debugger side asked for.</summary>
    Debug,
    /// <summary>The guest can take an interrupt now.</summary>
    InterruptWindow,
    /// <summary>The guest did something that the machine cannot execute, or guest memory cannot be used.</summary>
    Error,
    /// <summary>Any other exit of KVM: see <see cref="CpuExit.Raw"/>.</summary>
    Other,
}

/// <summary>An exit: valid until the processor runs again.</summary>
/// <remarks>SAFETY: points into the processor's run area, which lives as long as the processor.</remarks>
public readonly ref struct CpuExit
{
    private readonly unsafe kvm_run* _run;

    internal unsafe CpuExit(CpuExitKind kind, kvm_run* run)
    {
        Kind = kind;
        _run = run;
    }

    /// <summary>Which of the other members tell more.</summary>
    public CpuExitKind Kind { get; }

    /// <summary>I/O port of a port exit.</summary>
    public unsafe ushort Port => _run->io.port;

    /// <summary>Bytes of one element of a port access (1, 2, 4), or of a memory access (1 to 8).</summary>
    public unsafe int Size => IsPort ? _run->io.size : (int)_run->mmio.len;

    /// <summary>Number of elements: more than one for string instructions.</summary>
    public unsafe int Count => IsPort ? (int)_run->io.count : 1;

    /// <summary>Guest-physical address of a memory access.</summary>
    public unsafe ulong Address => _run->mmio.phys_addr;

    /// <summary>What was written, or room for what is read: Size * Count bytes.</summary>
    public unsafe Span<byte> Data => IsPort ? new Span<byte>((byte*)_run + _run->io.data_offset, Size * Count) : new Span<byte>(_run->mmio.data, Size);

    /// <summary>The exit as KVM describes it.</summary>
    public unsafe ref readonly kvm_run Raw => ref *_run;

    private bool IsPort => Kind is CpuExitKind.PortRead or CpuExitKind.PortWrite;

    internal static CpuExitKind KindOf(in kvm_run run) => run.exit_reason switch
    {
        KVM_EXIT_IO => run.io.direction == KVM_EXIT_IO_OUT ? CpuExitKind.PortWrite : CpuExitKind.PortRead,
        KVM_EXIT_MMIO => run.mmio.is_write != 0 ? CpuExitKind.MmioWrite : CpuExitKind.MmioRead,
        KVM_EXIT_HLT => CpuExitKind.Halt,
        KVM_EXIT_SHUTDOWN => CpuExitKind.Shutdown,
        KVM_EXIT_DEBUG => CpuExitKind.Debug,
        KVM_EXIT_IRQ_WINDOW_OPEN => CpuExitKind.InterruptWindow,
        KVM_EXIT_INTERNAL_ERROR or KVM_EXIT_FAIL_ENTRY or KVM_EXIT_MEMORY_FAULT => CpuExitKind.Error,
        _ => CpuExitKind.Other,
    };
}
