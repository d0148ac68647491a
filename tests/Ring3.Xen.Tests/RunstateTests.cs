using Ring3.Abi;
using static Ring3.Abi.KvmApi;

// SAFETY: pointers into the fixture's guest memory, which lives as long as it.
namespace Ring3.Xen.Tests;

public sealed unsafe class RunstateTests
{
    private static kvm_xen_vcpu_attr.runstate_t Data(XenVcpu v)
    {
        kvm_xen_vcpu_attr a = new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA };
        Assert.Equal(0, v.GetAttribute(ref a));
        return a.runstate;
    }

    [Fact]
    public void Times_AddUp_AndWaitingForAProcessorIsRunnable()
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        Assert.Equal(0, v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa = XenFixture.RunstateGpa }));
        v.UpdateRunstate(XenAbi.RUNSTATE_running);
        (f.Now, f.Processors[0].RunDelayNs) = (1_500_000, 200_000);
        v.UpdateRunstate(XenAbi.RUNSTATE_blocked);
        f.Now = 1_600_000;
        v.UpdateRunstate(XenAbi.RUNSTATE_running);
        var d = Data(v);
        Assert.Equal((1_600_000UL, 300_000UL, 200_000UL, 100_000UL, 1_000_000UL), (d.state_entry_time, d.time_running, d.time_runnable, d.time_blocked,
            d.time_offline));
        Assert.Equal(0u, f.Half(XenFixture.RunstateGpa));
        Assert.Equal(1_600_000UL, f.Word(XenFixture.RunstateGpa + 8));
        Assert.Equal(300_000UL, f.Word(XenFixture.RunstateGpa + 16));
    }

    [Theory]
    [InlineData(false), InlineData(true)]
    public void EveryAlignment_AcrossAPage_In32And64Bits(bool flag)
    {
        using var f = new XenFixture(longMode: false);
        XenVcpu v = f.Processors[0].Xen;
        f.Vm.SetAttribute(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG, runstate_update_flag = flag ? (byte)1 : (byte)0 });
        v.UpdateRunstate(XenAbi.RUNSTATE_blocked);
        var d = Data(v);
        for (ulong gpa = XenFixture.RunstateGpa + 4096 - 0x38; gpa < XenFixture.RunstateGpa + 4096 + 4; gpa++)
        {
            f.Vm.LatchMode(false);
            new Span<byte>(f.At(gpa), 0x38).Fill(0xa5);
            Assert.Equal(0, v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa = gpa }));
            Check(f, gpa, 4, d);
            // The guest becomes a 64-bit one: the area grows, perhaps onto a second page.
            f.Vm.LatchMode(true);
            new Span<byte>(f.At(gpa), 0x38).Fill(0xa5);
            Assert.Equal(0, v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST, runstate = new() { state = ulong.MaxValue } }));
            Check(f, gpa, 8, d);
        }
    }

    private static void Check(XenFixture f, ulong gpa, int entry, in kvm_xen_vcpu_attr.runstate_t d)
    {
        Assert.Equal(d.state, f.Half(gpa));
        Assert.Equal(d.state_entry_time, f.Word(gpa + (ulong)entry));
        Assert.Equal((d.time_running, d.time_runnable, d.time_blocked, d.time_offline), (f.Word(gpa + (ulong)entry + 8), f.Word(gpa + (ulong)entry + 16),
            f.Word(gpa + (ulong)entry + 24), f.Word(gpa + (ulong)entry + 32)));
        Assert.Equal(0xa5, f.Byte(gpa + (ulong)entry + 40));
    }

    [Fact]
    public void Attributes_RefuseTimesThatDoNotAddUp()
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        Assert.Equal(-Errno.EINVAL,
            v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, runstate = new() { state_entry_time = 5, time_running = 4 } }));
        Assert.Equal(-Errno.EINVAL, v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, runstate = new() { state = 4 } }));
        Assert.Equal(-Errno.EINVAL,
            v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, runstate = new() { state_entry_time = 2_000_000, time_running = 2_000_000 } }));
        Assert.Equal(-Errno.EINVAL, v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, runstate = new() { state = 4 } }));
        kvm_xen_vcpu_attr a = new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST };
        Assert.Equal(-Errno.EINVAL, v.GetAttribute(ref a));
        a.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR;
        Assert.Equal(-Errno.ENOENT, v.GetAttribute(ref a));
    }

    /// <summary>A vCPU that loses its processor does not wait: with the page gone the guest keeps the old picture, and the next update writes it all.</summary>
    [Fact]
    public void Preempted_NeverWaits()
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa = XenFixture.RunstateGpa });
        v.UpdateRunstate(XenAbi.RUNSTATE_running);
        f.Invalidate(XenFixture.RunstateGpa);
        f.Now += 1000;
        v.UpdateRunstate(XenAbi.RUNSTATE_runnable);
        Assert.Equal(0u, f.Half(XenFixture.RunstateGpa));
        f.Now += 1000;
        v.UpdateRunstate(XenAbi.RUNSTATE_running);
        Assert.Equal(1000UL, f.Word(XenFixture.RunstateGpa + 24));
    }
}
