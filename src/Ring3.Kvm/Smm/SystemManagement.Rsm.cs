using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;

// SAFETY: _s lives as long as the vCPU; register numbers are constants or loops' indices below 16.
namespace Ring3.Kvm;

// RSM: the state-save area back into the processor.
internal sealed partial class SystemManagement
{
    /// <summary>What RSM restores and has to be checked before any of it is believed.</summary>
    private ref struct SavedControls
    {
        public ulong Cr0, Cr3, Cr4, Efer, Dr6, Dr7;
    }

    /// <summary>
    /// RSM in system management mode; outside it the processor raises #UD itself. False: a state that no processor can be in, a triple fault as on hardware and
    /// in KVM.
    /// </summary>
    public unsafe bool TryLeave()
    {
        SaveState state = default;
        if (!Vm.Memory.Read(Smbase + SaveState.Start, state.Bytes, ProcessorMode.AddressSpace(_s)))
            return false;
        if (!IsInsideNmi)
            _s->NmiBlocked = 0;
        Switch(false);
        return cpuid.HasLongMode ? Restore64(ref state) : Restore32(ref state);
    }

    private unsafe bool Restore64(ref SaveState s)
    {
        CpuState* c = _s;
        SavedControls saved = new()
        {
            Cr0 = s.At<ulong>(SaveState.Map64.Cr0), Cr3 = s.At<ulong>(SaveState.Map64.Cr3), Cr4 = s.At<ulong>(SaveState.Map64.Cr4),
            Efer = s.At<ulong>(SaveState.Map64.Efer), Dr6 = s.At<ulong>(SaveState.Map64.Dr6), Dr7 = s.At<ulong>(SaveState.Map64.Dr7),
        };
        Smbase = s.At<uint>(SaveState.Map64.Smbase);
        if (!TryRestore(saved))
            return false;
        for (int i = 0; i < 16; i++)
            c->Gpr[i] = s.At<ulong>(SaveState.Map64.Gpr15 + 8 * (15 - i));
        c->Es = s.Load64(SaveState.Map64.Es);
        c->Cs = s.Load64(SaveState.Map64.Cs);
        c->Ss = s.Load64(SaveState.Map64.Ss);
        c->Ds = s.Load64(SaveState.Map64.Ds);
        c->Fs = s.Load64(SaveState.Map64.Fs);
        c->Gs = s.Load64(SaveState.Map64.Gs);
        c->Ldtr = s.Load64(SaveState.Map64.Ldtr);
        c->Tr = s.Load64(SaveState.Map64.Tr);
        c->Gdtr = s.LoadTable64(SaveState.Map64.Gdtr);
        c->Idtr = s.LoadTable64(SaveState.Map64.Idtr);
        Resume(s.At<ulong>(SaveState.Map64.Rip), s.At<ulong>(SaveState.Map64.Rflags), s.At<byte>(SaveState.Map64.InterruptShadow),
            s.At<ushort>(SaveState.Map64.PendingDebug));
        return true;
    }

    private unsafe bool Restore32(ref SaveState s)
    {
        CpuState* c = _s;
        SavedControls saved = new()
        {
            Cr0 = s.At<uint>(SaveState.Map32.Cr0), Cr3 = s.At<uint>(SaveState.Map32.Cr3), Cr4 = s.At<uint>(SaveState.Map32.Cr4), Efer = c->Efer,
            Dr6 = s.At<uint>(SaveState.Map32.Dr6), Dr7 = s.At<uint>(SaveState.Map32.Dr7),
        };
        Smbase = s.At<uint>(SaveState.Map32.Smbase);
        if (!TryRestore(saved))
            return false;
        for (int i = 0; i < 8; i++)
            c->Gpr[i] = s.At<uint>(SaveState.Map32.Eax + 4 * i);
        c->Es = s.Load32(SaveState.Map32.Es, SaveState.Map32.EsSelector);
        c->Cs = s.Load32(SaveState.Map32.Cs, SaveState.Map32.CsSelector);
        c->Ss = s.Load32(SaveState.Map32.Ss, SaveState.Map32.SsSelector);
        c->Ds = s.Load32(SaveState.Map32.Ds, SaveState.Map32.DsSelector);
        c->Fs = s.Load32(SaveState.Map32.Fs, SaveState.Map32.FsSelector);
        c->Gs = s.Load32(SaveState.Map32.Gs, SaveState.Map32.GsSelector);
        c->Ldtr = s.Load32(SaveState.Map32.Ldtr, SaveState.Map32.LdtrSelector);
        c->Tr = s.Load32(SaveState.Map32.Tr, SaveState.Map32.TrSelector);
        c->Gdtr = s.LoadTable32(SaveState.Map32.Gdtr);
        c->Idtr = s.LoadTable32(SaveState.Map32.Idtr);
        Resume(s.At<uint>(SaveState.Map32.Eip), s.At<uint>(SaveState.Map32.Eflags), s.At<byte>(SaveState.Map32.InterruptShadow),
            s.At<ushort>(SaveState.Map32.PendingDebug));
        return true;
    }

    /// <summary>Control and debug registers, if the processor could have got into this state by the instructions that load them one by one.</summary>
    private unsafe bool TryRestore(in SavedControls s)
    {
        CpuState* c = _s;
        bool longMode = (s.Efer & Efer.LME) != 0 && (s.Cr0 & Arch.Cr0.PG) != 0;
        ulong efer = s.Efer & ~Efer.LMA;
        if (s.Dr6 >> 32 != 0 || s.Dr7 >> 32 != 0 || !Cpu.IsValidEfer(efer) || !Cpu.IsValidCr4(s.Cr4) || !ProcessorMode.IsValidCr0(s.Cr0))
            return false;
        if (longMode && (s.Cr4 & Arch.Cr4.PAE) == 0 || !longMode && (s.Cr4 & Arch.Cr4.PCIDE) != 0 || s.Cr3 >> Cpu.CpuidFeatures.PhysicalAddressBits != 0)
            return false;
        c->Cr0 = s.Cr0 | Arch.Cr0.ET;
        c->Cr3 = s.Cr3;
        c->Cr4 = s.Cr4;
        c->Efer = longMode ? efer | Efer.LMA : efer;
        c->Dr6 = s.Dr6 & ProcessorMode.Dr6Writable | Dr.Dr6Fixed1;
        c->Dr7 = s.Dr7 | Dr.Dr7Fixed1;
        return !ProcessorMode.IsPaePaging(c->Cr0, c->Cr4, c->Efer) || tables.LoadPdptrs();
    }

    private unsafe void Resume(ulong rip, ulong rflags, byte shadow, ushort debugTraps)
    {
        _s->Rip = rip;
        Cpu.RflagsValue = rflags & ProcessorMode.RflagsWritable | Rflags.Fixed1;
        ProcessorMode.SetKvmShadow(_s, shadow);
        _s->PendingDebug = (ushort)(debugTraps & (15 | Dr.Dr6BS | Dr.Dr6BT));
    }
}
