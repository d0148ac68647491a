using Ring3.Arch;
using static Ring3.Kvm.RunStep;

// SAFETY: _s lives as long as the vCPU; register numbers are constants.
namespace Ring3.Kvm;

/// <summary>
/// Hyper-V's hypercall page, beside Xen's or alone. SPEC: Hyper-V TLFS, "Hypercall Interface". Nothing else of Hyper-V is here, and no KVM_CAP_HYPERV* is
/// offered.
/// </summary>
internal sealed class HypervPort(VcpuCore core, VcpuCpuid cpuid, VcpuEvents events) : VcpuPart(core)
{
    private const ulong HypercallEnable = 1, Fast = 1 << 16;
    private const ushort SignalEventCall = 0x5d;
    private const uint InvalidCode = 2, InvalidInput = 3, InvalidAlignment = 4, InvalidPortId = 0x11;
    private const ulong ConnectionIdMask = 0x00ff_ffff;

    /// <summary>HV_X64_MSR_HYPERCALL: where the page is, and whether it is there.</summary>
    public ulong HypercallMsr { get; private set; }

    /// <summary>The client shows Hyper-V to the guest: its MSRs exist.</summary>
    public bool IsShown => cpuid.Leaf(HypervCpuid.InterfaceLeaf).eax == HypervCpuid.InterfaceSignature;

    /// <summary>HV_X64_MSR_GUEST_OS_ID. A guest that takes its identity back loses the page.</summary>
    public void WriteGuestOsId(ulong value)
    {
        Vm.Hyperv.GuestOsId = value;
        if (value == 0)
            HypercallMsr &= ~HypercallEnable;
    }

    /// <summary>HV_X64_MSR_HYPERCALL. False: #GP, the page is in no memory.</summary>
    public bool TryWriteHypercallMsr(ulong value)
    {
        if (Vm.Hyperv.GuestOsId == 0)
            return true;
        HypercallMsr = value;
        if ((value & HypercallEnable) == 0)
            return true;
        Span<byte> stub = stackalloc byte[9];
        int n = 0;
        if (Vm.Xen.SideOrNull is { InterceptsHypercalls: true })
        {
            // or eax, 0x80000000: tells these calls from Xen's, which use the same instruction.
            stub[0] = 0x0d;
            stub[4] = 0x80;
            n = 5;
        }
        (stub[n], stub[n + 1], stub[n + 2], stub[n + 3]) = (0x0f, 0x01, IsAmd ? (byte)0xd9 : (byte)0xc1, 0xc3);
        return Vm.Memory.Write(value & ~0xfffUL, stub[..(n + 4)]);
    }

    /// <summary>A hypercall with bit 31 set is Hyper-V's once the guest has said who it is.</summary>
    public bool IsCall(ulong input) => (input & 0x8000_0000) != 0 && Vm.Hyperv.GuestOsId != 0 && IsShown;

    public unsafe int HandleHypercall()
    {
        Stats.hypercalls++;
        if (_s->Cpl != 0 || (_s->Cr0 & Cr0.PE) == 0)
        {
            events.Queue(Vector.UD);
            return KeepRunning;
        }
        ulong* g = _s->Gpr;
        bool is64 = ProcessorMode.Is64BitCode(_s);
        ulong control = is64 ? g[1] : g[2] << 32 | (uint)g[0];
        ulong input = is64 ? g[2] : g[3] << 32 | (uint)g[1];
        const ulong RepAndVariable = 0x0fff_0fff_03fe_0000;
        ulong result = (ushort)control != SignalEventCall ? InvalidCode
            : (control & RepAndVariable) != 0 ? InvalidInput
            : SignalEvent(input, (control & Fast) != 0);
        if (is64)
            g[0] = result;
        else
            (g[2], g[0]) = (0, result);
        Cpu.SkipInstruction();
        return KeepRunning;
    }

    /// <summary>No connection is ever registered, so a well-formed call names a port that does not exist.</summary>
    private uint SignalEvent(ulong input, bool fast)
    {
        if (!fast && ((input & 7) != 0 || !Vm.Memory.TryRead(input, out input)))
            return InvalidAlignment;
        return (input & ~ConnectionIdMask) != 0 ? InvalidInput : InvalidPortId;
    }
}
