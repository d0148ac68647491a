using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Xen;

// Messages of devices (MSI) that name a PIRQ and arrive as event channels: an extension of Ring3. In Linux the client translates each message into a route.
public sealed partial class XenVm
{
    /// <summary>PIRQs that a message can be bound for.</summary>
    public const uint MaxPirqs = 4096;

    private sealed record PirqBinding(EventTarget Target);

    private readonly PirqBinding?[] _pirqs = new PirqBinding?[MaxPirqs];

    private int SetPirq(in kvm_xen_hvm_attr.pirq_t p)
    {
        if (p.pirq >= MaxPirqs || p.port >= MaxPorts || p.port != 0 && !IsAcceptablePriority(p.priority))
            return -Errno.EINVAL;
        Volatile.Write(ref _pirqs[p.pirq], p.port == 0 ? null : new(new(p.port, p.vcpu, p.priority)));
        return 0;
    }

    /// <summary>
    /// Delivers a message whose destination is a bound PIRQ. SPEC: Xen takes vector 0 with delivery mode ExtINT for "this is a PIRQ": bits 7:0 of its number
    /// are the message's destination, the others bits 31:8 of the upper address.
    /// Never waits. Any thread.
    /// </summary>
    /// <param name="result">As <see cref="SendOrDefer"/>.</param>
    /// <returns>False: no such message, or nobody has bound the PIRQ.</returns>
    public bool TryMessage(uint addressLow, uint addressHigh, uint data, out int result)
    {
        const uint VectorAndMode = 0x7ff, ExtInt = 7 << 8, Base = 0xfee;
        result = 0;
        uint pirq = addressLow >> 12 & 0xff | addressHigh & 0xffff_ff00;
        if ((data & VectorAndMode) != ExtInt || addressLow >> 20 != Base || pirq >= MaxPirqs || Volatile.Read(ref _pirqs[pirq]) is not { } bound)
            return false;
        result = SendOrDefer(bound.Target);
        return true;
    }
}
