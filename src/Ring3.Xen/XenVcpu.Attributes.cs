using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Xen;

// KVM_XEN_VCPU_SET_ATTR and KVM_XEN_VCPU_GET_ATTR.
public sealed partial class XenVcpu
{
    /// <summary>KVM_MAX_VCPUS: bound of Xen ids.</summary>
    private const uint MaxVcpus = 1024;

    /// <summary>KVM_XEN_VCPU_SET_ATTR: 0, -ENOENT for an unknown type, or what api.rst says for the attribute. Caller is in no RCU section.</summary>
    public int SetAttribute(in kvm_xen_vcpu_attr attr)
    {
        using var _ = _vm.Lock.Enter();
        switch (attr.type)
        {
            case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO or KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA:
                return SetVcpuInfo(attr);
            case KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
                int r = Place(TimeInfo, attr.gpa, 32);
                if (r == 0 && attr.gpa != KVM_XEN_INVALID_GPA)
                    Processor.RequestClockUpdate();
                return r;
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
                return Runstate.SetAddress(attr.gpa);
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
                if (attr.runstate.state > XenAbi.RUNSTATE_offline)
                    return -Errno.EINVAL;
                UpdateRunstate((int)attr.runstate.state);
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
                return Runstate.SetData(attr.runstate, _vm.ClockNs, Processor.RunDelayNs);
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
                return Runstate.Adjust(attr.runstate, _vm.ClockNs, Processor.RunDelayNs);
            case KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
                if (attr.vcpu_id >= MaxVcpus)
                    return -Errno.EINVAL;
                Volatile.Write(ref _xenId, attr.vcpu_id);
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_TIMER:
                return SetTimer(attr.timer);
            case KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
                if (attr.vector is > 0 and < 0x10)
                    return -Errno.EINVAL;
                Volatile.Write(ref _upcallVector, attr.vector);
                return 0;
            case RING3_XEN_VCPU_ATTR_TYPE_FIFO_CONTROL:
                return _vm.Fifo is null || (attr.gpa & 7) != 0 && attr.gpa != KVM_XEN_INVALID_GPA ? -Errno.EINVAL
                    : Place(FifoControl, attr.gpa, XenAbi.Fifo.ControlSize);
            case RING3_XEN_VCPU_ATTR_TYPE_FIFO_TAILS:
                return _vm.Fifo is { } fifo ? fifo.SetTails(Index, attr.fifo_tails) : -Errno.EINVAL;
            default:
                return -Errno.ENOENT;
        }
    }

    /// <summary>
    /// KVM_XEN_VCPU_GET_ATTR: 0, -ENOENT, or -EINVAL for an attribute that cannot be read. Who asks where vcpu_info is may read it: events of the shadow are
    /// there.
    /// </summary>
    public int GetAttribute(ref kvm_xen_vcpu_attr attr)
    {
        using var _ = _vm.Lock.Enter();
        switch (attr.type)
        {
            case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO:
                MergePendingEvents();
                attr.gpa = VcpuInfo.IsActive ? VcpuInfo.Gpa : KVM_XEN_INVALID_GPA;
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA:
                attr.hva = VcpuInfo.IsActive && VcpuInfo.Gpa == GfnToPfnCache.InvalidGpa ? VcpuInfo.Hva : 0;
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
                attr.gpa = TimeInfo.IsActive ? TimeInfo.Gpa : KVM_XEN_INVALID_GPA;
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
                if (!Runstate.IsActive)
                    return -Errno.ENOENT;
                attr.gpa = Runstate.Gpa;
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
                attr.runstate.state = (ulong)Runstate.State;
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
                attr.runstate = Runstate.Data;
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
                return -Errno.EINVAL;
            case KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
                attr.vcpu_id = XenId;
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_TIMER:
                attr.timer = GetTimer();
                return 0;
            case KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
                attr.vector = UpcallVector;
                return 0;
            case RING3_XEN_VCPU_ATTR_TYPE_FIFO_CONTROL:
                attr.gpa = FifoControl.IsActive ? FifoControl.Gpa : KVM_XEN_INVALID_GPA;
                return 0;
            case RING3_XEN_VCPU_ATTR_TYPE_FIFO_TAILS:
                if (_vm.Fifo is not { } fifo)
                    return -Errno.EINVAL;
                attr.fifo_tails = fifo.Tails(Index);
                return 0;
            default:
                return -Errno.ENOENT;
        }
    }

    private int SetVcpuInfo(in kvm_xen_vcpu_attr attr)
    {
        bool byHva = attr.type == KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA;
        if (byHva ? attr.hva == 0 : attr.gpa == KVM_XEN_INVALID_GPA)
        {
            VcpuInfo.Deactivate();
            return 0;
        }
        if ((attr.gpa & 3) != 0)
            return -Errno.ENXIO;
        int r = byHva ? VcpuInfo.ActivateHva(attr.hva, XenAbi.VcpuInfo.Size) : VcpuInfo.Activate(attr.gpa, XenAbi.VcpuInfo.Size);
        if (r == 0)
            Processor.RequestClockUpdate();
        return r;
    }

    private static int Place(GfnToPfnCache gpc, ulong gpa, uint length)
    {
        if (gpa != KVM_XEN_INVALID_GPA)
            return gpc.Activate(gpa, length);
        gpc.Deactivate();
        return 0;
    }

    /// <summary>Accounts the time since the last change and enters a state. Owner thread.</summary>
    public void UpdateRunstate(int state) => Runstate.Update(state, _vm.ClockNs, Processor.RunDelayNs);
}
