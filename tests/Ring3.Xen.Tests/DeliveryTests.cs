using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Xen.Tests;

public sealed class DeliveryTests
{
    private const ulong Info = XenFixture.VcpuInfoGpa, Shared = XenFixture.SharedGpa;

    [Theory]
    [InlineData(5u), InlineData(64u), InlineData(4095u)]
    public void Send64_SetsPendingSelectorAndUpcall_AndKicks(uint port)
    {
        using var f = new XenFixture();
        Assert.Equal(1, f.Vm.TrySend(f.To(0, port)));
        Assert.True(f.IsPending(port));
        Assert.Equal(1UL << (int)(port / 64), f.Word(Info + 8));
        Assert.Equal(1, f.Byte(Info));
        Assert.Equal(1, f.Processors[0].Kicks);
        Assert.True(f.Processors[0].Xen.HasInterrupt(mayWait: false));
        Assert.Equal(0, f.Vm.TrySend(f.To(0, port)));
        Assert.Equal(1, f.Processors[0].Kicks);
    }

    [Fact]
    public void Send32_UsesTheCompactLayout_AndHas1024Ports()
    {
        using var f = new XenFixture(longMode: false);
        f.Half(Shared + XenAbi.SharedInfo.Mask32 + 4) = 1u << 3; // port 35
        Assert.Equal(1, f.Vm.TrySend(f.To(0, 40)));
        Assert.Equal(1u << 1, f.Half(Info + 4));
        Assert.Equal(0UL, f.Word(Info + 8));
        Assert.Equal(-Errno.ENOTCONN, f.Vm.TrySend(f.To(0, 35)));
        Assert.Equal(-Errno.EINVAL, f.Vm.TrySend(f.To(0, 1024)));
        Assert.Equal(-Errno.EINVAL, f.Vm.SendFromClient(new() { port = 1024, vcpu = 10, priority = XenFixture.TwoLevel }));
    }

    [Fact]
    public void Masked_IsPendingOnly_AndTheClientSeesNoError()
    {
        using var f = new XenFixture();
        f.Word(Shared + XenAbi.SharedInfo.Mask64) = 1 << 9;
        Assert.Equal(0, f.Vm.SendFromClient(new() { port = 9, vcpu = 10, priority = XenFixture.TwoLevel }));
        Assert.True(f.IsPending(9));
        Assert.Equal(0, f.Byte(Info));
        Assert.Equal(0, f.Processors[0].Kicks);
    }

    [Fact]
    public void SharedInfoInvalidated_WouldBlockAndChangesNothing_TheWorkerDelivers()
    {
        using var f = new XenFixture();
        f.Invalidate(Shared);
        Assert.Equal(XenVm.WouldBlock, f.Vm.TrySend(f.To(0, 7)));
        Assert.False(f.IsPending(7));
        Assert.Equal(1, f.Vm.SendOrDefer(f.To(0, 7)));
        Assert.Equal(1, f.Vm.SendOrDefer(f.To(0, 7)));
        f.Vm.DeliverDeferred();
        Assert.True(f.IsPending(7));
        Assert.Equal(1, f.Processors[0].Kicks);
    }

    [Fact]
    public void SlotChange_MakesCachesStale_SendFindsTheNewMemory()
    {
        using var f = new XenFixture();
        using var other = new Memory.GuestRam(4096);
        Assert.Equal(0, f.Slots.SetRegion(1, 0, 0x100000, 4096, other.Hva));
        Assert.Equal(XenVm.WouldBlock, f.Vm.TrySend(f.To(0, 7)));
        Assert.Equal(1, f.Vm.Send(f.To(0, 7)));
        Assert.True(f.IsPending(7));
    }

    [Fact]
    public void VcpuInfoInvalidated_TheShadowTakesTheSelector_TheMergeGivesItBack()
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        f.Invalidate(Info);
        Assert.Equal(1, f.Vm.TrySend(f.To(0, 130)));
        Assert.True(v.HasShadowEvents);
        Assert.True(v.HasPendingWork);
        Assert.Equal(0UL, f.Word(Info + 8));
        Assert.Equal(1, f.Processors[0].Kicks);
        v.MergePendingEvents();
        Assert.False(v.HasShadowEvents);
        Assert.Equal(1UL << 2, f.Word(Info + 8));
        Assert.Equal(1, f.Byte(Info));
    }

    [Fact]
    public void OwnVector_IsInjectedInsteadOfAKick()
    {
        using var f = new XenFixture();
        Assert.Equal(-Errno.EINVAL, f.Processors[0].Xen.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector = 3 }));
        Assert.Equal(0, f.Processors[0].Xen.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector = 0x55 }));
        f.Vm.TrySend(f.To(0, 3));
        Assert.Equal([0x55], f.Processors[0].Vectors);
        Assert.Equal(0, f.Processors[0].Kicks);
    }

    [Fact]
    public void WrongVcpu_IsNeverTouched_WhenXenIdsCrossKvmIds()
    {
        using var f = new XenFixture(vcpus: 3);
        // Xen ids that are other vCPUs' positions and KVM ids.
        foreach (var (p, xen) in new[] { (0, 11u), (1, 12u), (2, 0u) })
            Assert.Equal(0, f.Processors[p].Xen.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, vcpu_id = xen }));
        f.Vm.TrySend(f.To(1, 77));
        Assert.Equal([0, 1, 0], f.Processors.Select(p => p.Kicks));
        Assert.Equal(0, f.Byte(XenFixture.InfoGpa(0)) | f.Byte(XenFixture.InfoGpa(2)));
        Assert.Equal(-Errno.EINVAL, f.Vm.TrySend(new(77, 0, XenFixture.TwoLevel)));
        // Singleshot timers name the vCPU by its Xen id.
        f.Processors[1].Xen.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_TIMER, timer = new() { port = 5, priority = XenFixture.TwoLevel } });
        f.Word(0x6000) = 2_000_000;
        Assert.True(f.Processors[1].Xen.TryHypercall(new(XenAbi.vcpu_op, 0, true, XenAbi.VCPUOP_set_singleshot_timer, 11, 0x6000, 0, 0, 0), out long r));
        Assert.Equal(-Errno.EINVAL, r);
        Assert.True(f.Processors[1].Xen.TryHypercall(new(XenAbi.vcpu_op, 0, true, XenAbi.VCPUOP_set_singleshot_timer, 12, 0x6000, 0, 0, 0), out r));
        Assert.Equal(0, r);
        Assert.Equal(2_000_000UL, f.Processors[1].Timer);
    }

    [Fact]
    public void WallClock_IsWhereTheModeHasIt_WithAnEvenVersion()
    {
        using var f = new XenFixture();
        Assert.Equal((2u, 5u, 7u, 0u), (f.Half(Shared + 0xc00), f.Half(Shared + 0xc04), f.Half(Shared + 0xc08), f.Half(Shared + 0xc0c)));
        Assert.True(f.Vm.LatchMode(false));
        Assert.Equal((2u, 5u, 7u, 0u), (f.Half(Shared + 0x900), f.Half(Shared + 0x904), f.Half(Shared + 0x908), f.Half(Shared + 0x924)));
    }

    [Fact]
    public void Ports_FollowTheirRules()
    {
        using var f = new XenFixture();
        int Set(uint port, uint type, uint flags, uint target, uint vcpu, uint priority = XenFixture.TwoLevel) => f.Vm.SetAttribute(new kvm_xen_hvm_attr
        {
            type = KVM_XEN_ATTR_TYPE_EVTCHN, evtchn = new() { send_port = port, type = type, flags = flags, port = target, vcpu = vcpu, priority = priority },
        });
        Assert.Equal(-Errno.EINVAL, Set(0, XenAbi.EVTCHNSTAT_ipi, 0, 0, 10));
        Assert.Equal(-Errno.EINVAL, Set(4096, XenAbi.EVTCHNSTAT_ipi, 0, 4096, 10));
        Assert.Equal(-Errno.EINVAL, Set(3, XenAbi.EVTCHNSTAT_ipi, 0, 4, 10));
        Assert.Equal(-Errno.EINVAL, Set(3, XenAbi.EVTCHNSTAT_virq, 0, 3, 10));
        Assert.Equal(-Errno.EINVAL, Set(3, XenAbi.EVTCHNSTAT_ipi, 0, 3, 10, priority: 1));
        Assert.Equal(-Errno.EBADF, Set(3, XenAbi.EVTCHNSTAT_interdomain, 0, 0, 99999));
        Assert.Equal(0, Set(3, XenAbi.EVTCHNSTAT_interdomain, 0, 60, 999));
        Assert.Equal(-Errno.EEXIST, Set(3, XenAbi.EVTCHNSTAT_interdomain, 0, 60, 10));
        Assert.Equal(-Errno.EINVAL, Set(3, XenAbi.EVTCHNSTAT_interdomain, KVM_XEN_EVTCHN_UPDATE, 61, 10));
        Assert.Equal(-Errno.ENOENT, Set(4, XenAbi.EVTCHNSTAT_interdomain, KVM_XEN_EVTCHN_UPDATE, 60, 10));
        Assert.Equal(-Errno.EINVAL, Set(3, XenAbi.EVTCHNSTAT_interdomain, 3, 60, 10));
        f.Half(0x6000) = 3;
        // No such vCPU yet: the client's problem.
        Assert.False(f.Processors[0].Xen.TryHypercall(new(XenAbi.event_channel_op, 0, true, XenAbi.EVTCHNOP_send, 0x6000, 0, 0, 0, 0), out _));
        Assert.Equal(0, Set(3, XenAbi.EVTCHNSTAT_interdomain, KVM_XEN_EVTCHN_UPDATE, 60, 10));
        Assert.True(f.Processors[0].Xen.TryHypercall(new(XenAbi.event_channel_op, 0, true, XenAbi.EVTCHNOP_send, 0x6000, 0, 0, 0, 0), out long r));
        Assert.Equal(0, r);
        Assert.True(f.IsPending(60));
        // User mode asks the client.
        Assert.False(f.Processors[0].Xen.TryHypercall(new(XenAbi.event_channel_op, 3, true, XenAbi.EVTCHNOP_send, 0x6000, 0, 0, 0, 0), out _));
        Assert.Equal(0, Set(3, 0, KVM_XEN_EVTCHN_DEASSIGN, 0, 0));
        Assert.Equal(-Errno.ENOENT, Set(3, 0, KVM_XEN_EVTCHN_DEASSIGN, 0, 0));
        Assert.Equal(0, Set(0, 0, KVM_XEN_EVTCHN_RESET, 0, 0));
        kvm_xen_hvm_attr get = new() { type = KVM_XEN_ATTR_TYPE_EVTCHN };
        Assert.Equal(-Errno.ENOENT, f.Vm.GetAttribute(ref get));
    }

    [Fact]
    public void Timer_FiresOnce_AndWaitsForThePageIfItMust()
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        Assert.False(v.TryHypercall(new(XenAbi.set_timer_op, 0, true, 5_000_000, 0, 0, 0, 0, 0), out _));
        v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_TIMER, timer = new() { port = 6, priority = XenFixture.TwoLevel } });
        Assert.True(v.TryHypercall(new(XenAbi.set_timer_op, 0, false, 5_000_000, 0, 0, 0, 0, 0), out _));
        Assert.Equal(5_000_000UL, f.Processors[0].Timer);
        v.TimerExpired();
        Assert.False(f.IsPending(6));
        f.Now = 5_000_000;
        f.Invalidate(Shared);
        v.TimerExpired();
        Assert.True(v.HasPendingTimer);
        kvm_xen_vcpu_attr get = new() { type = KVM_XEN_VCPU_ATTR_TYPE_TIMER };
        Assert.Equal(0, v.GetAttribute(ref get));
        Assert.Equal(0UL, get.timer.expires_ns);
        Assert.True(f.IsPending(6));
        // Overflowed timeouts become 100 ms with set_timer_op.
        v.TryHypercall(new(XenAbi.set_timer_op, 0, true, ulong.MaxValue - 5, 0, 0, 0, 0, 0), out _);
        Assert.Equal(105_000_000UL, f.Processors[0].Timer);
    }

    [Fact]
    public void Poll_WaitsUnlessPending_AndAMaskedEventWakesIt()
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        (f.Word(0x6000), f.Half(0x6008), f.Word(0x6010), f.Half(0x6100)) = (0x6100, 1, 0, 8);
        var poll = new Hypercall(XenAbi.sched_op, 0, true, XenAbi.SCHEDOP_poll, 0x6000, 0, 0, 0, 0);
        // Without the client's promise to route all events here, a poll only yields.
        Assert.True(v.TryHypercall(poll, out long r));
        Assert.Equal((0, 1), (f.Processors[0].Waits, f.Processors[0].Yields));
        Assert.Equal(0, f.Vm.Configure(new() { msr = 0x40000000, flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND }));
        f.Word(Shared + XenAbi.SharedInfo.Mask64) = 1 << 8;
        f.Processors[0].OnWait = () => Assert.Equal(-Errno.ENOTCONN, f.Vm.TrySend(f.To(0, 8)));
        Assert.True(v.TryHypercall(poll, out r));
        Assert.Equal((0L, 1, 1), (r, f.Processors[0].Waits, f.Processors[0].Kicks));
        Assert.True(v.TryHypercall(poll, out r));
        Assert.Equal(1, f.Processors[0].Waits);
        f.Half(0x6100) = 4096;
        v.TryHypercall(poll, out r);
        Assert.Equal(-Errno.EINVAL, r);
        f.Half(0x6008) = 129;
        v.TryHypercall(poll, out r);
        Assert.Equal(-Errno.EINVAL, r);
        f.Word(0x6000) = 0xffff_ffff_0000;
        f.Half(0x6008) = 2;
        v.TryHypercall(poll, out r);
        Assert.Equal(-Errno.EFAULT, r);
    }

    [Fact]
    public void Poll_LooksAgain_WhenTheSharedInfoPageIsAnotherOne()
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        const ulong other = 0x7000;
        (f.Word(0x6000), f.Half(0x6008), f.Word(0x6010), f.Half(0x6100)) = (0x6100, 1, 0, 8);
        Assert.Equal(0, f.Vm.Configure(new() { msr = 0x40000000, flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND }));
        f.Word(other + XenAbi.SharedInfo.Pending) = 1 << 8;
        f.Processors[0].OnWait = () =>
        {
            Assert.Equal(0, f.Vm.SetAttribute(new() { type = KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn = Shared >> 12 }));
            Assert.Equal(0, f.Processors[0].Kicks);
            Assert.Equal(0, f.Vm.SetAttribute(new() { type = KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn = other >> 12 }));
            Assert.Equal(1, f.Processors[0].Kicks);
        };
        Assert.True(v.TryHypercall(new(XenAbi.sched_op, 0, true, XenAbi.SCHEDOP_poll, 0x6000, 0, 0, 0, 0), out long r));
        Assert.Equal((0L, 1), (r, f.Processors[0].Waits));
        // Nobody polls any more.
        Assert.Equal(0, f.Vm.SetAttribute(new() { type = KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn = other >> 12 }));
        Assert.Equal(1, f.Processors[0].Kicks);
    }

    [Fact]
    public void Config_RefusesWhatItMust()
    {
        using var f = new XenFixture();
        Assert.Equal(-Errno.EINVAL, f.Vm.Configure(new() { flags = KVM_XEN_HVM_CONFIG_RUNSTATE }));
        Assert.Equal(-Errno.EINVAL, f.Vm.Configure(new() { flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, blob_size_64 = 1 }));
        Assert.Equal(-Errno.EINVAL, f.Vm.SetAttribute(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector = 15 }));
        Assert.Equal(-Errno.ENOENT, f.Vm.SetAttribute(new kvm_xen_hvm_attr { type = 77 }));
        Assert.Equal(-Errno.ENXIO, f.Processors[0].Xen.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa = 0x2001 }));
        Assert.Equal(-Errno.EINVAL, f.Processors[0].Xen.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa = 0x2fd0 }));
        Assert.Equal(-Errno.EFAULT, f.Vm.SetAttribute(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, hva = 0x1000 }));
        Assert.Equal(-Errno.EINVAL, f.Vm.SetAttribute(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, hva = 0x1001 }));
    }
}
