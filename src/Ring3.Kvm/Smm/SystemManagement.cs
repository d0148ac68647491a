using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;

// SAFETY: _s lives as long as the vCPU; register numbers are constants or loops' indices below 16.
namespace Ring3.Kvm;

/// <summary>
/// System management mode: entry on an SMI, RSM, and what either does to the rest of the vCPU. SPEC: APM volume 2, "System-Management Mode"; the choices the
/// manuals leave open follow KVM: no I/O restart, no halt restart.
/// </summary>
internal sealed partial class SystemManagement(VcpuCore core, VcpuCpuid cpuid, GuestTables tables, Translations translations) : VcpuPart(core)
{
    /// <summary>An SMI has been taken from its request, and waits for an instruction boundary outside SMM.</summary>
    public bool IsPending { get; set; }

    /// <summary>NMIs were blocked when SMM was entered: RSM leaves them blocked.</summary>
    public bool IsInsideNmi { get; set; }

    /// <summary>MSR_IA32_SMBASE: SMRAM's base, which RSM can move.</summary>
    public ulong Smbase { get; set; } = 0x30000;

    /// <summary>MSR_SMI_COUNT.</summary>
    public ulong SmiCount { get; set; }

    /// <summary>The processor is in system management mode.</summary>
    public unsafe bool IsActive => _s->InSmm != 0;

    /// <summary>Takes what was raised, by KVM_GET_VCPU_EVENTS as well: the next entry has to look at it.</summary>
    public void Collect()
    {
        if (!Requests.Check(VcpuRequest.Smi))
            return;
        IsPending = true;
        Requests.MakeSelf(VcpuRequest.Event);
    }

    /// <summary>Switches between the two address spaces. A latched INIT or SMI is looked at again after RSM.</summary>
    public unsafe void Switch(bool on)
    {
        _s->InSmm = on ? (byte)1 : (byte)0;
        if (!on)
            IsInsideNmi = false;
        translations.AddressSpaceChanged();
        Requests.MakeSelf(VcpuRequest.Event);
    }

    /// <summary>
    /// Takes the SMI: saves the state to SMRAM and starts the handler: flat real mode at SMBASE + 0x8000. The VM is dead when SMRAM cannot be written, because
    /// the old state is gone then.
    /// </summary>
    public unsafe void Enter()
    {
        CpuState* c = _s;
        IsPending = false;
        SmiCount++;
        SaveState state = default;
        if (cpuid.HasLongMode)
            Save64(ref state);
        else
            Save32(ref state);
        Switch(true);
        if (Vm.BugOn(!Vm.Memory.Write(Smbase + SaveState.Start, state.Bytes, ProcessorMode.AddressSpace(c)), "SMRAM is not writable"))
            return;
        if (c->NmiBlocked != 0)
            IsInsideNmi = true;
        c->NmiBlocked = 1;
        Cpu.RflagsValue = Rflags.Fixed1;
        c->Rip = 0x8000;
        c->InterruptShadow = 0;
        c->PendingDebug = 0;
        c->BetweenIterations = 0;
        c->Cr0 &= ~(Cr0.PE | Cr0.EM | Cr0.TS | Cr0.PG);
        c->Cr4 = c->Efer = 0;
        c->Idtr = default;
        c->Dr7 = Dr.Dr7Fixed1;
        const uint RealData = Segment.G | Segment.P | Segment.S | 3;
        c->Ds = c->Es = c->Fs = c->Gs = c->Ss = new() { Limit = uint.MaxValue, Access = RealData };
        c->Cs = new() { Limit = uint.MaxValue, Access = RealData, Base = Smbase, Selector = (ushort)(Smbase >> 4) };
        Cpu.RecomputeMode();
    }

    /// <summary>As event delivery saves it: RF between the iterations of a repeated instruction.</summary>
    private unsafe ulong SavedRflags => Cpu.RflagsValue | (_s->BetweenIterations != 0 ? Rflags.RF : 0);

    private unsafe void Save64(ref SaveState s)
    {
        CpuState* c = _s;
        for (int i = 0; i < 16; i++)
            s.At<ulong>(SaveState.Map64.Gpr15 + 8 * (15 - i)) = c->Gpr[i];
        s.At<ulong>(SaveState.Map64.Rip) = c->Rip;
        s.At<ulong>(SaveState.Map64.Rflags) = SavedRflags;
        s.At<ulong>(SaveState.Map64.Dr6) = c->Dr6;
        s.At<ulong>(SaveState.Map64.Dr7) = c->Dr7;
        s.At<ulong>(SaveState.Map64.Cr0) = c->Cr0;
        s.At<ulong>(SaveState.Map64.Cr3) = c->Cr3;
        s.At<ulong>(SaveState.Map64.Cr4) = c->Cr4;
        s.At<ulong>(SaveState.Map64.Efer) = c->Efer;
        s.At<uint>(SaveState.Map64.Smbase) = (uint)Smbase;
        s.At<uint>(SaveState.Map64.Revision) = SaveState.Revision64;
        s.At<byte>(SaveState.Map64.InterruptShadow) = ProcessorMode.KvmShadow(c);
        s.At<ushort>(SaveState.Map64.PendingDebug) = c->PendingDebug;
        s.Store64(SaveState.Map64.Es, c->Es);
        s.Store64(SaveState.Map64.Cs, c->Cs);
        s.Store64(SaveState.Map64.Ss, c->Ss);
        s.Store64(SaveState.Map64.Ds, c->Ds);
        s.Store64(SaveState.Map64.Fs, c->Fs);
        s.Store64(SaveState.Map64.Gs, c->Gs);
        s.Store64(SaveState.Map64.Ldtr, c->Ldtr);
        s.Store64(SaveState.Map64.Tr, c->Tr);
        s.Store64(SaveState.Map64.Gdtr, c->Gdtr);
        s.Store64(SaveState.Map64.Idtr, c->Idtr);
    }

    private unsafe void Save32(ref SaveState s)
    {
        CpuState* c = _s;
        for (int i = 0; i < 8; i++)
            s.At<uint>(SaveState.Map32.Eax + 4 * i) = (uint)c->Gpr[i];
        s.At<uint>(SaveState.Map32.Eip) = (uint)c->Rip;
        s.At<uint>(SaveState.Map32.Eflags) = (uint)SavedRflags;
        s.At<uint>(SaveState.Map32.Dr6) = (uint)c->Dr6;
        s.At<uint>(SaveState.Map32.Dr7) = (uint)c->Dr7;
        s.At<uint>(SaveState.Map32.Cr0) = (uint)c->Cr0;
        s.At<uint>(SaveState.Map32.Cr3) = (uint)c->Cr3;
        s.At<uint>(SaveState.Map32.Cr4) = (uint)c->Cr4;
        s.At<uint>(SaveState.Map32.Smbase) = (uint)Smbase;
        s.At<uint>(SaveState.Map32.Revision) = SaveState.Revision32;
        s.At<byte>(SaveState.Map32.InterruptShadow) = ProcessorMode.KvmShadow(c);
        s.At<ushort>(SaveState.Map32.PendingDebug) = c->PendingDebug;
        s.Store32(SaveState.Map32.Es, SaveState.Map32.EsSelector, c->Es);
        s.Store32(SaveState.Map32.Cs, SaveState.Map32.CsSelector, c->Cs);
        s.Store32(SaveState.Map32.Ss, SaveState.Map32.SsSelector, c->Ss);
        s.Store32(SaveState.Map32.Ds, SaveState.Map32.DsSelector, c->Ds);
        s.Store32(SaveState.Map32.Fs, SaveState.Map32.FsSelector, c->Fs);
        s.Store32(SaveState.Map32.Gs, SaveState.Map32.GsSelector, c->Gs);
        s.Store32(SaveState.Map32.Ldtr, SaveState.Map32.LdtrSelector, c->Ldtr);
        s.Store32(SaveState.Map32.Tr, SaveState.Map32.TrSelector, c->Tr);
        s.Store32(SaveState.Map32.Gdtr, c->Gdtr);
        s.Store32(SaveState.Map32.Idtr, c->Idtr);
    }
}
