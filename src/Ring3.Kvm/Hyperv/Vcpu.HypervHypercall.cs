using Ring3.Abi;
using Ring3.Arch;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// Hyper-V's hypercall page beside Xen's. SPEC: Hyper-V TLFS, "Hypercall Interface". Nothing else of Hyper-V is here, and no KVM_CAP_HYPERV* is offered.
public sealed unsafe partial class Vcpu
{
    private const uint HvGuestOsId = 0x4000_0000, HvHypercall = 0x4000_0001;
    private const uint HvInterfaceLeaf = 0x4000_0001, HvInterfaceSignature = 0x3123_7648;
    private const ulong HvHypercallEnable = 1, HvFast = 1 << 16;
    private const ushort HvcallSignalEvent = 0x5d;
    private const uint HvInvalidCode = 2, HvInvalidInput = 3, HvInvalidAlignment = 4, HvInvalidPortId = 0x11;
    private const ulong ConnectionIdMask = 0x00ff_ffff;

    private ulong _hvHypercall;

    /// <summary>Leaves for a client that shows Hyper-V's hypercall interface to a guest: KVM_GET_SUPPORTED_HV_CPUID.</summary>
    public static ReadOnlySpan<kvm_cpuid_entry2> HyperVCpuid => s_hyperVCpuid;

    private static readonly kvm_cpuid_entry2[] s_hyperVCpuid =
    [
        // "Linux KVM Hv", interface "Hv#1", no version, AccessHypercallMsrs only, no recommendations, limits.
        new() { function = 0x4000_0000, eax = 0x4000_0005, ebx = 0x756e_694c, ecx = 0x564b_2078, edx = 0x7648_204d },
        new() { function = HvInterfaceLeaf, eax = HvInterfaceSignature },
        new() { function = 0x4000_0002 },
        new() { function = 0x4000_0003, eax = 1 << 5 },
        new() { function = 0x4000_0004, ebx = uint.MaxValue },
        new() { function = 0x4000_0005, eax = Vm.MaxVcpus, ebx = 64 },
    ];

    private bool ShowsHyperV => _cpuid.Leaf(HvInterfaceLeaf).eax == HvInterfaceSignature;

    /// <summary>A hypercall with bit 31 set is Hyper-V's once the guest has said who it is.</summary>
    private bool IsHyperVCall(ulong input) => (input & 0x8000_0000) != 0 && Vm.HyperVGuestOsId != 0 && ShowsHyperV;

    private bool TryReadHyperVMsr(uint msr, out ulong value)
    {
        value = msr == HvGuestOsId ? Vm.HyperVGuestOsId : _hvHypercall;
        return msr is HvGuestOsId or HvHypercall && ShowsHyperV;
    }

    private bool TryWriteHyperVMsr(uint msr, ulong value, out bool ok)
    {
        ok = true;
        if (msr is not (HvGuestOsId or HvHypercall) || !ShowsHyperV)
            return false;
        if (msr == HvGuestOsId)
        {
            Vm.HyperVGuestOsId = value;
            if (value == 0)
                _hvHypercall &= ~HvHypercallEnable;
            return true;
        }
        if (Vm.HyperVGuestOsId == 0)
            return true;
        _hvHypercall = value;
        if ((value & HvHypercallEnable) == 0)
            return true;
        Span<byte> stub = stackalloc byte[9];
        int n = 0;
        if (Vm.XenOrNull is { InterceptsHypercalls: true })
        {
            // or eax, 0x80000000: tells these calls from Xen's, which use the same instruction.
            stub[0] = 0x0d;
            stub[4] = 0x80;
            n = 5;
        }
        (stub[n], stub[n + 1], stub[n + 2], stub[n + 3]) = (0x0f, 0x01, IsAmd ? (byte)0xd9 : (byte)0xc1, 0xc3);
        ok = Vm.Memory.Write(value & ~0xfffUL, stub[..(n + 4)]);
        return true;
    }

    private int HandleHyperVHypercall()
    {
        Stats.hypercalls++;
        if (_s->Cpl != 0 || (_s->Cr0 & Cr0.PE) == 0)
        {
            _events.Queue(Vector.UD);
            return KeepRunning;
        }
        ulong* g = _s->Gpr;
        bool is64 = ProcessorMode.Is64BitCode(_s);
        ulong control = is64 ? g[1] : g[2] << 32 | (uint)g[0];
        ulong input = is64 ? g[2] : g[3] << 32 | (uint)g[1];
        const ulong RepAndVariable = 0x0fff_0fff_03fe_0000;
        ulong result = (ushort)control != HvcallSignalEvent ? HvInvalidCode : (control & RepAndVariable) != 0 ? HvInvalidInput : SignalEvent(input, (control & HvFast) != 0);
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
            return HvInvalidAlignment;
        return (input & ~ConnectionIdMask) != 0 ? HvInvalidInput : HvInvalidPortId;
    }
}
