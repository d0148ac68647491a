using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Xen.Tests;

public sealed class PirqTests
{
    private const uint ExtInt = 7 << 8;

    private static int Bind(XenFixture f, uint pirq, uint port, uint vcpu = 10, uint priority = XenFixture.TwoLevel) =>
        f.Vm.SetAttribute(new kvm_xen_hvm_attr { type = RING3_XEN_ATTR_TYPE_PIRQ, pirq = new() { pirq = pirq, port = port, vcpu = vcpu,
            priority = priority } });

    [Theory]
    [InlineData(16u, 0xfee1_0000u, 0u), InlineData(0x345u, 0xfee4_5000u, 0x300u)]
    public void Message_ThatNamesABoundPirq_IsAnEvent(uint pirq, uint low, uint high)
    {
        using var f = new XenFixture(vcpus: 2);
        Assert.False(f.Vm.TryMessage(low, high, ExtInt, out _));
        Assert.Equal(0, Bind(f, pirq, 9, vcpu: 11));
        Assert.True(f.Vm.TryMessage(low, high, ExtInt, out int r));
        Assert.Equal(1, r);
        Assert.True(f.IsPending(9));
        Assert.Equal((0, 1), (f.Processors[0].Kicks, f.Processors[1].Kicks));
        // Not Xen's message: a vector, another mode, another PIRQ, not the APIC's window.
        Assert.False(f.Vm.TryMessage(low, high, ExtInt | 0x30, out _));
        Assert.False(f.Vm.TryMessage(low, high, 0, out _));
        Assert.False(f.Vm.TryMessage(low, high + 0x100, ExtInt, out _));
        Assert.False(f.Vm.TryMessage(low & 0xf_ffff, high, ExtInt, out _));
        // Unbound again.
        Assert.Equal(0, Bind(f, pirq, 0));
        Assert.False(f.Vm.TryMessage(low, high, ExtInt, out _));
    }

    [Fact]
    public void MaskedPort_KeepsTheInterruptPending_AndAStalePageDefersIt()
    {
        using var f = new XenFixture();
        Assert.Equal(0, Bind(f, 20, 9));
        f.Word(XenFixture.SharedGpa + XenAbi.SharedInfo.Mask64) = 1 << 9;
        Assert.True(f.Vm.TryMessage(0xfee1_4000, 0, ExtInt, out int r));
        Assert.Equal(-Errno.ENOTCONN, r);
        Assert.True(f.IsPending(9));
        f.Word(XenFixture.SharedGpa + XenAbi.SharedInfo.Mask64) = 0;
        f.Word(XenFixture.SharedGpa + XenAbi.SharedInfo.Pending) = 0;
        f.Invalidate(XenFixture.SharedGpa);
        Assert.True(f.Vm.TryMessage(0xfee1_4000, 0, ExtInt, out r));
        Assert.Equal((1, 1), (r, f.Deferred));
        f.Vm.DeliverDeferred();
        Assert.True(f.IsPending(9));
    }

    [Fact]
    public void Bindings_OutsideTheirRanges_AreRefused()
    {
        using var f = new XenFixture();
        Assert.Equal(-Errno.EINVAL, Bind(f, XenVm.MaxPirqs, 9));
        Assert.Equal(-Errno.EINVAL, Bind(f, 16, XenAbi.TwoLevelPorts64));
        Assert.Equal(-Errno.EINVAL, Bind(f, 16, 9, priority: 3));
        Assert.False(f.Vm.TryMessage(uint.MaxValue, uint.MaxValue, ExtInt, out _));
    }
}
