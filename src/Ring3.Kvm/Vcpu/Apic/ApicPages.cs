using Ring3.Abi;
using static Ring3.Abi.KvmPara;

namespace Ring3.Kvm;

/// <summary>
/// Words in guest memory in which the guest sees its local APIC, and may act on it without an exit: the flag of a paravirtual EOI, and the priorities of
/// KVM_CAP_VAPIC. They are right while the vCPU is in the guest: written before an entry, read after the exit.
/// </summary>
internal sealed class ApicPages(VcpuCore core, VcpuApic apic) : VcpuPart(core)
{
    /// <summary>Guest-physical address of the 32-bit word that mirrors the local APIC's priorities; 0: none.</summary>
    private ulong _vapicGpa;
    /// <summary>Guest-physical address of the flag of paravirtual EOI; 0: none.</summary>
    private ulong _pvEoiGpa;
    /// <summary>The flag was offered to the guest, and has not been looked at since. INVARIANT: _pvEoiGpa is not 0.</summary>
    private bool _pvEoiPending;

    /// <summary>There is anything to do around an entry.</summary>
    private bool InUse { set => _core.Work.ApicPages = value; }

    /// <summary>MSR_KVM_PV_EOI_EN as it was written.</summary>
    public ulong PvEoiMsr { get; private set; }

    /// <summary>
    /// KVM_SET_VAPIC_ADDR: the word at <paramref name="gpa"/> holds the task priority in bits 7:0, which the guest may write instead of the register, the class
    /// of the highest interrupt in service in bits 15:12 and the highest requested vector in bits 31:24. 0 switches it off. 0, or -EINVAL without an in-kernel
    /// local APIC or when the address is in no slot.
    /// </summary>
    public int SetVapicAddress(ulong gpa)
    {
        if (Lapic is null || (gpa != 0 && !Vm.Memory.TryRead(gpa, out uint _)))
            return -Errno.EINVAL;
        _vapicGpa = gpa;
        InUse = (_pvEoiGpa | _vapicGpa) != 0;
        return 0;
    }

    /// <summary>WRMSR of MSR_KVM_PV_EOI_EN. False: #GP.</summary>
    public bool TryWritePvEoiMsr(ulong value)
    {
        if ((value & 2) != 0)
            return false;
        PvEoiMsr = value;
        _pvEoiGpa = (value & KVM_MSR_ENABLED) != 0 ? value & ~3UL : 0;
        InUse = (_pvEoiGpa | _vapicGpa) != 0;
        return true;
    }

    /// <summary>INIT.</summary>
    public void ResetPvEoi()
    {
        _ = TryWritePvEoiMsr(0);
        _pvEoiPending = false;
    }

    /// <summary>Before an entry.</summary>
    public void Publish()
    {
        if (_pvEoiGpa != 0)
            OfferPvEoi();
        if (_vapicGpa != 0)
            WriteVapic();
    }

    /// <summary>After the exit.</summary>
    public void Collect()
    {
        if (_pvEoiPending)
            FinishPvEoi();
        if (_vapicGpa != 0)
            ReadVapic();
    }

    /// <summary>The entry does not happen: the client may read guest memory before the next one.</summary>
    public void Withdraw()
    {
        if (_pvEoiPending)
            FinishPvEoi();
    }

    /// <summary>Offers the guest to end the interrupt in service by clearing a bit in memory.</summary>
    private void OfferPvEoi()
    {
        if (Lapic is null || !Lapic.CanUsePvEoi || !Vm.Memory.TryRead(_pvEoiGpa, out byte flag))
            return;
        _pvEoiPending = Vm.Memory.TryWrite(_pvEoiGpa, (byte)(flag | KVM_PV_EOI_MASK));
    }

    /// <summary>A cleared bit is an EOI; a bit still set is taken back.</summary>
    private void FinishPvEoi()
    {
        _pvEoiPending = false;
        if (!Vm.Memory.TryRead(_pvEoiGpa, out byte flag))
            return;
        if ((flag & KVM_PV_EOI_MASK) != 0)
            Vm.Memory.TryWrite(_pvEoiGpa, (byte)(flag & ~KVM_PV_EOI_MASK));
        else
        {
            Lapic!.SetEoi();
            apic.SyncCr8();
        }
    }

    private void WriteVapic()
    {
        uint isr = (uint)Math.Max(Lapic!.HighestIsr, 0), irr = (uint)Math.Max(Lapic.HighestIrr, 0);
        Vm.Memory.TryWrite(_vapicGpa, Lapic.Tpr | (isr & 0xf0) << 8 | irr << 24);
    }

    private void ReadVapic()
    {
        if (!Vm.Memory.TryRead(_vapicGpa, out uint word) || (word & 0xff) == Lapic!.Tpr)
            return;
        Lapic.Tpr = word & 0xff;
        apic.SyncCr8();
    }
}
