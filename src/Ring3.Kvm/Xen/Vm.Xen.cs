using Ring3.Abi;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Sync;
using Ring3.Xen;
using static Ring3.Abi.KvmApi;

// SAFETY: pointers are to locals; guest memory is written through GuestMemory.
namespace Ring3.Kvm;

// Xen guests: what the client configures for the VM, and what Ring3.Xen needs from it.
public sealed unsafe partial class Vm : IXenMachine, IRouteExtension
{
    private XenVm? _xen;
    private XenDelivery? _xenDelivery;

    /// <summary>What KVM_CHECK_EXTENSION answers for KVM_CAP_XEN_HVM.</summary>
    internal const uint XenFeatures = KVM_XEN_HVM_CONFIG_HYPERCALL_MSR | KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_RUNSTATE | KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
        | KVM_XEN_HVM_CONFIG_EVTCHN_SEND | KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG | KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE | KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA;

    /// <summary>HV_X64_MSR_GUEST_OS_ID, which is the VM's.</summary>
    internal ulong HyperVGuestOsId;

    /// <summary>The Xen side, made on first use.</summary>
    public XenVm Xen
    {
        get
        {
            if (Volatile.Read(ref _xen) is { } xen)
                return xen;
            lock (_lock)
                return _xen ??= new XenVm(Slots, this);
        }
    }

    /// <summary>The Xen side if anybody has asked for it.</summary>
    internal XenVm? XenOrNull => Volatile.Read(ref _xen);

    /// <summary>KVM_XEN_HVM_CONFIG: 0 or -EINVAL.</summary>
    public int XenHvmConfig(in kvm_xen_hvm_config config) => Xen.Configure(config);

    /// <summary>KVM_XEN_HVM_SET_ATTR. See <see cref="XenVm.SetAttribute"/>.</summary>
    public int XenSetAttr(in kvm_xen_hvm_attr attr) => Xen.SetAttribute(attr);

    /// <summary>KVM_XEN_HVM_GET_ATTR. See <see cref="XenVm.GetAttribute"/>.</summary>
    public int XenGetAttr(ref kvm_xen_hvm_attr attr) => Xen.GetAttribute(ref attr);

    /// <summary>KVM_XEN_HVM_EVTCHN_SEND. See <see cref="XenVm.SendFromClient"/>.</summary>
    public int XenEvtchnSend(in kvm_irq_routing_xen_evtchn e) => Xen.SendFromClient(e);

    long IXenMachine.ClockNs => Clock.NowNs;

    long IXenMachine.WallClockEpochNs => HostClock.RealtimeNs() - Clock.NowNs;

    void IXenMachine.RequestClockUpdate() => MakeAllRequest(VcpuRequest.ClockUpdate);

    XenVcpu? IXenMachine.FindVcpu(uint kvmId)
    {
        // Ids are mostly positions.
        ReadOnlySpan<Vcpu> all = Vcpus;
        if (kvmId < (uint)all.Length && all[(int)kvmId].Id == kvmId)
            return all[(int)kvmId].Xen;
        return FindByApicId(kvmId)?.Xen;
    }

    XenVcpu? IXenMachine.VcpuAt(int index) => (uint)index < (uint)Vcpus.Length ? Vcpus[index].Xen : null;

    void IXenMachine.QueueDeferred() => _work.Queue(_xenDelivery ??= new XenDelivery(Xen));

    int IRouteExtension.Validate(in kvm_irq_routing_entry entry) => entry.type == KVM_IRQ_ROUTING_XEN_EVTCHN ? Xen.ValidateRoute(entry.xen_evtchn) : -Errno.EINVAL;

    int IRouteExtension.Fire(in kvm_irq_routing_entry entry, bool level) =>
        level ? Xen.SendOrDefer(new(entry.xen_evtchn.port, entry.xen_evtchn.vcpu, entry.xen_evtchn.priority)) : -Errno.EINVAL;

    bool IRouteExtension.TryMessage(uint addressLow, uint addressHigh, uint data, out int result)
    {
        result = 0;
        return XenOrNull is { } xen && xen.TryMessage(addressLow, addressHigh, data, out result);
    }

    /// <summary>The guest wrote the hypercall MSR: fills the page with our own stubs, or with the client's. False: #GP.</summary>
    internal bool WriteXenHypercallPage(ulong value, bool longMode)
    {
        const int PageBytes = 4096, StubBytes = 32;
        ulong pageNumber = value & (PageBytes - 1), gpa = value & ~(ulong)(PageBytes - 1);
        if (!Xen.LatchMode(longMode))
            return false;
        byte[] page = new byte[PageBytes];
        if (Xen.InterceptsHypercalls)
        {
            if (pageNumber != 0)
                return false;
            // mov eax, n; vmcall or vmmcall, by vendor; ret; int3.
            page.AsSpan().Fill(0xcc);
            for (int i = 0; i < PageBytes / StubBytes; i++)
            {
                Span<byte> stub = page.AsSpan(i * StubBytes);
                stub[0] = 0xb8;
                BitConverter.TryWriteBytes(stub[1..], i);
                (stub[5], stub[6], stub[7], stub[8]) = (0x0f, 0x01, Processor.IsAmd ? (byte)0xd9 : (byte)0xc1, 0xc3);
            }
        }
        else
        {
            kvm_xen_hvm_config config = Xen.Config;
            if (pageNumber >= (longMode ? config.blob_size_64 : config.blob_size_32))
                return false;
            ulong blob = (longMode ? config.blob_addr_64 : config.blob_addr_32) + pageNumber * PageBytes;
            fixed (byte* p = page)
                if (!UserCopy.TryRead(blob, p, PageBytes))
                    return false;
        }
        return Memory.Write(gpa, page);
    }

    /// <summary>Events whose page was not at hand, delivered where waiting is allowed.</summary>
    private sealed class XenDelivery(XenVm xen) : WorkItem
    {
        protected override void Run() => xen.DeliverDeferred();
    }
}
