using Ring3.Abi;
using static Ring3.Abi.KvmApi;

// SAFETY: _exit and KvmRun live as long as the vCPU; 15 bytes are what both arrays of an instruction have.
namespace Ring3.Kvm;

/// <summary>KVM_INTERNAL_ERROR_EMULATION: instructions that KVM's emulator does not have, for clients that want to know.</summary>
internal sealed class EmulationFailures(VcpuCore core, Translations translations) : VcpuPart(core)
{
    /// <summary>The client gets the instruction at RIP with its bytes.</summary>
    public unsafe int Exit()
    {
        Stats.insn_emulation_fail++;
        if (translations.BeginReadingTables())
        {
            Cpu.ReportInstruction();
            Requests.LeaveGuestMode();
        }
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
        run->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
        // The flags, then 16 bytes of size and instruction.
        run->emulation_failure.ndata = 3;
        run->emulation_failure.flags = _exit->InstructionLength != 0 ? KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES : 0;
        run->emulation_failure.insn_size = _exit->InstructionLength;
        Buffer.MemoryCopy(_exit->InstructionBytes, run->emulation_failure.insn_bytes, 15, 15);
        return RunStep.ToClient;
    }

    /// <summary>The instruction at RIP accesses a device, and KVM's emulator does not have it.</summary>
    public bool IsBeyondMmio()
    {
        if (!translations.BeginReadingTables())
            return false;
        bool beyond = Cpu.IsBeyondMmioEmulation();
        Requests.LeaveGuestMode();
        return beyond;
    }
}
