using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// Exits that the hypervisor finishes itself.
public sealed unsafe partial class Vcpu
{
    private int HandleNestedFault()
    {
        ulong gpa = _exit->Gpa;
        switch (Vm.Mmu.Fault(_mmu, gpa, (NestedAccess)(uint)_exit->Access))
        {
            // After Mmio and ReadOnlyWrite the entry says that it is a device access: the processor leaves with MMIO next.
            case MmuResult.Retry or MmuResult.Fixed or MmuResult.Mmio or MmuResult.ReadOnlyWrite:
                return KeepRunning;
            case MmuResult.NoMemory:
                return -Errno.ENOMEM;
            case MmuResult.MemoryFault:
                return ExitMemoryFault(gpa, false);
            case MmuResult.PrivateMemoryFault:
                return ExitMemoryFault(gpa, true);
            case MmuResult.NoSlot:
                return ExitEmulationFailure();
            default:
                return -Errno.EFAULT;
        }
    }

    private int HandleCr8()
    {
        ulong value = *(ulong*)_exit->Data;
        if (value > 15)
        {
            QueueException(Vector.GP, true);
            return KeepRunning;
        }
        ulong old = Cr8;
        Cr8 = value;
        Cpu.SkipInstruction();
        if (Lapic is not null || value >= old)
            return KeepRunning;
        KvmRun->exit_reason = KVM_EXIT_SET_TPR;
        return ToClient;
    }

    private int HandleXsetbv()
    {
        if ((uint)_s->Gpr[1] == 0 && _extended.TrySetXcr0(_s->Gpr[2] << 32 | (uint)_s->Gpr[0]))
            Cpu.SkipInstruction();
        else
            QueueException(Vector.GP, true);
        return KeepRunning;
    }

    // ---- Task priority and IA32_APIC_BASE ----

    private ulong _apicBase;

    internal ulong Cr8
    {
        get => Lapic?.Cr8 ?? _s->Cr8;
        set
        {
            if (Lapic is not null)
                Lapic.Cr8 = value & 15;
            _s->Cr8 = value & 15;
        }
    }

    /// <summary>The processor reads CR8 without an exit: keeps its copy equal to the local APIC's.</summary>
    private void SyncCr8()
    {
        if (Lapic is not null)
            _s->Cr8 = Lapic.Cr8;
    }

    internal ulong ApicBase => Lapic?.Base ?? _apicBase;

    internal bool SetApicBase(ulong value, bool hostInitiated)
    {
        if (Lapic is not null)
            return Lapic.SetBase(value, hostInitiated);
        if (!Irqchip.ApicBase.IsValid(value, _apicBase, Cpu.CpuidFeatures.PhysicalAddressBits, (Leaf(1).ecx & CpuidBits.Leaf1Ecx.X2APIC) != 0, hostInitiated))
            return false;
        _apicBase = value;
        return true;
    }
}
