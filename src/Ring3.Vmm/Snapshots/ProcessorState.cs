using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>A vCPU in a snapshot: what KVM's clients save of one, in the order of giving it back. It does not run, and owes no exit an answer.</summary>
internal static class ProcessorState
{
    /// <summary>CPUID and the TSC's frequency, before anything else and before the VM's other vCPUs.</summary>
    public static void TransferCpuid(StateTransfer state, Vcpu vcpu)
    {
        var entries = new kvm_cpuid_entry2[Vcpu.MaxCpuidEntries];
        int count = state.Keep(state.IsLoading ? 0 : vcpu.GetCpuid2(entries));
        if (count is < 0 or > Vcpu.MaxCpuidEntries)
            throw new InvalidDataException("CPUID has too many leaves");
        state.Bytes(System.Runtime.InteropServices.MemoryMarshal.AsBytes(entries.AsSpan(0, count)));
        uint khz = state.Keep(vcpu.TscKhz);
        if (!state.IsLoading)
            return;
        Accept(vcpu.SetCpuid2(entries.AsSpan(0, count)), "CPUID");
        // As KVM: what may be a difference of two measurements is none.
        const ulong Million = 1_000_000, Tolerance = 250;
        if (Math.Max(khz, vcpu.TscKhz) - Math.Min(khz, vcpu.TscKhz) > khz * Tolerance / Million)
            Accept(vcpu.SetTscKhz(khz), "TSC frequency");
    }

    public static void Transfer(StateTransfer state, Vcpu vcpu, ProcessorModel model)
    {
        state.Section($"vcpu {vcpu.Id}");
        kvm_sregs2 sregs = default;
        kvm_regs regs = default;
        kvm_xcrs xcrs = default;
        kvm_xsave xsave = default;
        kvm_debugregs debug = default;
        kvm_lapic_state lapic = default;
        kvm_vcpu_events events = default;
        kvm_mp_state activity = default;
        kvm_msr_entry[] msrs = [];
        if (!state.IsLoading)
        {
            vcpu.GetSregs2(out sregs);
            vcpu.GetRegs(out regs);
            vcpu.GetXcrs(out xcrs);
            vcpu.GetXsave(out xsave);
            vcpu.GetDebugRegs(out debug);
            Accept(vcpu.GetLapic(out lapic), "local APIC");
            vcpu.GetVcpuEvents(out events);
            activity = vcpu.GetMpState();
            msrs = ReadMsrs(vcpu, model);
        }
        state.Value(ref sregs);
        state.Value(ref regs);
        state.Value(ref xcrs);
        state.Value(ref xsave);
        state.Value(ref debug);
        state.Value(ref lapic);
        state.Value(ref events);
        state.Value(ref activity);
        int count = state.Keep(msrs.Length);
        if (state.IsLoading)
            msrs = new kvm_msr_entry[Math.Clamp(count, 0, ushort.MaxValue)];
        state.Bytes(System.Runtime.InteropServices.MemoryMarshal.AsBytes(msrs.AsSpan()));
        if (!state.IsLoading)
            return;
        // The APIC's base comes with the system registers, its page after that, the deadline with the clocks.
        Accept(vcpu.SetSregs2(sregs), "system registers");
        Accept(vcpu.SetXcrs(xcrs), "XCR0");
        Accept(vcpu.SetXsave(xsave), "vector registers");
        vcpu.SetRegs(regs);
        Accept(vcpu.SetDebugRegs(debug), "debug registers");
        Accept(vcpu.SetLapic(lapic), "local APIC");
        WriteMsrs(vcpu, msrs);
        Accept(vcpu.SetMpState(activity), "activity");
        Accept(vcpu.SetVcpuEvents(events), "events");
    }

    private static kvm_msr_entry[] ReadMsrs(Vcpu vcpu, ProcessorModel model)
    {
        var found = new List<kvm_msr_entry>();
        foreach (uint index in KvmSystem.MsrIndexListOf(model))
        {
            Span<kvm_msr_entry> one = [new kvm_msr_entry { index = index }];
            if (!IsOfClocks(index) && vcpu.GetMsrs(one) == 1)
                found.Add(one[0]);
        }
        return [.. found];
    }

    /// <summary>A register that refuses what it has anyway is one that cannot be written.</summary>
    private static void WriteMsrs(Vcpu vcpu, ReadOnlySpan<kvm_msr_entry> msrs)
    {
        foreach (kvm_msr_entry msr in msrs)
        {
            if (vcpu.SetMsrs([msr]) == 1)
                continue;
            Span<kvm_msr_entry> now = [new kvm_msr_entry { index = msr.index }];
            if (vcpu.GetMsrs(now) != 1 || now[0].data != msr.data)
                throw new InvalidDataException($"the processor does not take {msr.data:x} for MSR {msr.index:x}");
        }
    }

    /// <summary>Goes by the TSC, whose offset comes with the clocks.</summary>
    private static bool IsOfClocks(uint msr) => msr is Msr.TSC or Msr.TSC_DEADLINE;

    /// <summary>The TSC, and what it is compared with. <paramref name="now"/>: the clocks of this moment.</summary>
    /// <param name="state">Where to, or from.</param>
    /// <param name="vcpu">Whose.</param>
    /// <param name="now">The VM's clocks.</param>
    /// <param name="hostKhz">Frequency of the host's TSC.</param>
    /// <param name="elapsedNs">How long ago the snapshot was made.</param>
    public static void TransferTsc(StateTransfer state, Vcpu vcpu, in kvm_clock_data now, uint hostKhz, long elapsedNs)
    {
        Span<kvm_msr_entry> deadline = [new kvm_msr_entry { index = Msr.TSC_DEADLINE }];
        if (!state.IsLoading && vcpu.GetMsrs(deadline) != 1)
            deadline[0].data = 0;
        ulong tsc = state.Keep(HostTicks(now, vcpu, hostKhz) + vcpu.TscOffset);
        ulong due = state.Keep(deadline[0].data);
        if (!state.IsLoading)
            return;
        ulong ticks = (ulong)((UInt128)(ulong)Math.Max(0, elapsedNs) * vcpu.TscKhz / 1_000_000);
        vcpu.TscOffset = tsc + ticks - HostTicks(now, vcpu, hostKhz);
        deadline[0].data = due;
        if (due != 0 && vcpu.SetMsrs(deadline) != 1)
            throw new InvalidDataException("the processor does not take the deadline of its timer");
    }

    /// <summary>The host's TSC as the vCPU counts it.</summary>
    private static ulong HostTicks(in kvm_clock_data now, Vcpu vcpu, uint hostKhz) =>
        hostKhz == vcpu.TscKhz ? now.host_tsc : (ulong)((UInt128)now.host_tsc * vcpu.TscKhz / hostKhz);

    internal static void Accept(int result, string what)
    {
        if (result < 0)
            throw new InvalidDataException($"the machine does not take its {what} (error {-result})");
    }
}
