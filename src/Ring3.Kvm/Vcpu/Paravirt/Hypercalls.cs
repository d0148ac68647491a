using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Irqchip;
using static Ring3.Abi.KvmApi;
using static Ring3.Abi.KvmPara;
using static Ring3.Kvm.RunStep;

// SAFETY: _s, _exit and KvmRun live as long as the vCPU; indices into their arrays are constants.
namespace Ring3.Kvm;

/// <summary>
/// VMCALL and VMMCALL: which of them the guest may use, KVM's own calls, and those that the client handles. KVM: Documentation/virt/kvm/x86/hypercalls.rst.
/// </summary>
internal sealed class Hypercalls(VcpuCore core, VcpuCpuid cpuid, VcpuEvents events, GuestTables tables, VcpuTsc tsc) : VcpuPart(core)
{
    private const ulong HcMapGpaRange = 12;
    private static readonly byte[] s_vmcall = [0x0f, 0x01, 0xc1], s_vmmcall = [0x0f, 0x01, 0xd9];

    public unsafe int Handle()
    {
        if (_exit->Payload != (IsAmd ? 1u : 0) && !AcceptForeignInstruction())
            return KeepRunning;
        Stats.hypercalls++;
        bool is64 = ProcessorMode.Is64BitCode(_s);
        ulong mask = is64 ? ulong.MaxValue : uint.MaxValue;
        ulong nr = _s->Gpr[0] & mask, a0 = _s->Gpr[3] & mask, a1 = _s->Gpr[1] & mask, a2 = _s->Gpr[2] & mask, a3 = _s->Gpr[6] & mask;
        if (nr == HcMapGpaRange && _s->Cpl == 0 && (Vm.Settings.HypercallExits >> (int)HcMapGpaRange & 1) != 0 && IsPageRange(a0, a1))
            return Exit(nr, a0, a1, a2, is64);
        long result = _s->Cpl != 0 ? -KVM_EPERM : nr == HcMapGpaRange && Vm.Settings.HypercallExits != 0 ? -KVM_EINVAL : Call(nr, a0, a1, a2, a3, is64);
        Finish((ulong)result, is64);
        return KeepRunning;
    }

    /// <summary>
    /// The instruction of the other vendor. KVM rewrites it unless the client has turned that off, and then it is undefined. Where the guest's own page tables
    /// forbid the write, KVM has nothing better than a page fault for a guest that wrote nothing; here the call is carried out, as both instructions can be.
    /// </summary>
    /// <returns>True: carry it out; false: the guest goes on at the instruction.</returns>
    private unsafe bool AcceptForeignInstruction()
    {
        if ((Vm.Settings.DisabledQuirks & KVM_X86_QUIRK_FIX_HYPERCALL_INSN) != 0)
        {
            events.Queue(Vector.UD);
            return false;
        }
        byte[] native = IsAmd ? s_vmmcall : s_vmcall;
        ulong last = ProcessorMode.LinearRip(_s) + _exit->InstructionLength - 1;
        return !tables.TryTranslate(last, out ulong gpa, out bool writable) || !writable || !Vm.Memory.TryWrite(gpa, native[2], ProcessorMode.AddressSpace(_s));
    }

    // ---- The client's ----

    private static bool IsPageRange(ulong gpa, ulong pages) => (gpa & Page.OffsetMask) == 0 && pages != 0 && (gpa >> Page.Shift) + pages > gpa >> Page.Shift;

    private unsafe int Exit(ulong nr, ulong a0, ulong a1, ulong a2, bool is64)
    {
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_HYPERCALL;
        run->hypercall.nr = nr;
        run->hypercall.ret = 0;
        run->hypercall.args[0] = a0;
        run->hypercall.args[1] = a1;
        run->hypercall.args[2] = a2;
        run->hypercall.longmode = is64 ? (uint)KVM_EXIT_HYPERCALL_LONG_MODE : 0;
        run->hypercall.pad = 0;
        return ExitToClient(Completion.Hypercall);
    }

    /// <summary>The client has answered.</summary>
    public unsafe void Complete() => Finish(KvmRun->hypercall.ret, ProcessorMode.Is64BitCode(_s));

    private unsafe void Finish(ulong result, bool is64)
    {
        _s->Gpr[0] = is64 ? result : (uint)result;
        Cpu.SkipInstruction();
    }

    // ---- KVM's own ----

    private long Call(ulong nr, ulong a0, ulong a1, ulong a2, ulong a3, bool is64)
    {
        switch (nr)
        {
            case KVM_HC_VAPIC_POLL_IRQ:
                return 0;
            case KVM_HC_KICK_CPU when cpuid.HasPvFeature(KVM_FEATURE_PV_UNHALT):
                Vm.FindByApicId((uint)a1)?.PvUnhalt();
                return 0;
            case KVM_HC_SEND_IPI when cpuid.HasPvFeature(KVM_FEATURE_PV_SEND_IPI):
                return SendIpis(a0, a1, a2, a3, is64);
            case KVM_HC_SCHED_YIELD when cpuid.HasPvFeature(KVM_FEATURE_PV_SCHED_YIELD):
                Stats.directed_yield_attempted++;
                Thread.Yield();
                return 0;
            case KVM_HC_CLOCK_PAIRING:
                return PairClocks(a0, a1);
            default:
                return -KVM_ENOSYS;
        }
    }

    /// <summary>Delivers one interrupt to the APIC ids min + bit of a 128-bit mask (64-bit in 32-bit mode).</summary>
    private long SendIpis(ulong low, ulong high, ulong min, ulong icr, bool is64)
    {
        if (Lapic is null)
            return -KVM_ENOSYS;
        var mode = (DeliveryMode)(icr >> 8 & 7);
        if (mode is not (DeliveryMode.Fixed or DeliveryMode.Nmi) || (icr & 0xffff_f800 & ~0x4000UL) != 0)
            return -KVM_EINVAL;
        long count = 0;
        int width = is64 ? 64 : 32;
        for (int word = 0; word < 2; word++)
        {
            for (ulong bits = word == 0 ? low : high; bits != 0; bits &= bits - 1)
            {
                uint id = (uint)min + (uint)(word * width + System.Numerics.BitOperations.TrailingZeroCount(bits));
                if (Vm.FindByApicId(id)?.Lapic is { } target
                    && ApicBus.DeliverTo(target, new LapicInterrupt { Vector = (byte)icr, Mode = mode, Assert = true, Dest = id }))
                    count++;
            }
        }
        return count;
    }

    private long PairClocks(ulong gpa, ulong type)
    {
        if (type != KVM_CLOCK_PAIRING_WALLCLOCK || !VmClock.IsStable)
            return -KVM_EOPNOTSUPP;
        long real = HostClock.RealtimeNs();
        kvm_clock_pairing pair = new() { sec = real / 1_000_000_000, nsec = real % 1_000_000_000, tsc = tsc.Now() };
        return Vm.Memory.TryWrite(gpa, pair) ? 0 : -KVM_EFAULT;
    }
}
