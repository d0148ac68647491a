using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;
using static Ring3.Abi.KvmPara;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants.
namespace Ring3.Kvm;

// VMCALL and VMMCALL: which of them the guest may use, and the calls that the client handles. KVM: Documentation/virt/kvm/x86/hypercalls.rst.
public sealed unsafe partial class Vcpu
{
    private const ulong HcMapGpaRange = 12;
    private static readonly byte[] s_vmcall = [0x0f, 0x01, 0xc1], s_vmmcall = [0x0f, 0x01, 0xd9];

    private int HandleHypercall()
    {
        if (_exit->Payload != (IsAmd ? 1u : 0) && !AcceptForeignHypercall())
            return KeepRunning;
        Stats.hypercalls++;
        bool is64 = ProcessorMode.Is64BitCode(_s);
        ulong mask = is64 ? ulong.MaxValue : uint.MaxValue;
        ulong nr = _s->Gpr[0] & mask, a0 = _s->Gpr[3] & mask, a1 = _s->Gpr[1] & mask, a2 = _s->Gpr[2] & mask, a3 = _s->Gpr[6] & mask;
        if (nr == HcMapGpaRange && _s->Cpl == 0 && (Vm.HypercallExits >> (int)HcMapGpaRange & 1) != 0 && IsPageRange(a0, a1))
            return ExitHypercall(nr, a0, a1, a2, is64);
        long result = _s->Cpl != 0 ? -KVM_EPERM : nr == HcMapGpaRange && Vm.HypercallExits != 0 ? -KVM_EINVAL : Hypercall(nr, a0, a1, a2, a3, is64);
        FinishHypercall((ulong)result, is64);
        return KeepRunning;
    }

    /// <summary>
    /// The instruction of the other vendor. KVM rewrites it unless the client has turned that off, and then it is undefined. Where the guest's own page tables forbid the write, KVM has nothing better than a page fault for a guest that
    /// wrote nothing; here the call is carried out, as both instructions can be.
    /// </summary>
    /// <returns>True: carry it out; false: the guest goes on at the instruction.</returns>
    private bool AcceptForeignHypercall()
    {
        if ((Vm.DisabledQuirks & KVM_X86_QUIRK_FIX_HYPERCALL_INSN) != 0)
        {
            _events.Queue(Vector.UD);
            return false;
        }
        byte[] native = IsAmd ? s_vmmcall : s_vmcall;
        ulong last = ProcessorMode.LinearRip(_s) + _exit->InstructionLength - 1;
        return !_tables.TryTranslate(last, out ulong gpa, out bool writable) || !writable || !Vm.Memory.TryWrite(gpa, native[2], ProcessorMode.AddressSpace(_s));
    }

    private static bool IsPageRange(ulong gpa, ulong pages) => (gpa & Page.OffsetMask) == 0 && pages != 0 && (gpa >> Page.Shift) + pages > gpa >> Page.Shift;

    private int ExitHypercall(ulong nr, ulong a0, ulong a1, ulong a2, bool is64)
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
        _completion = Completion.Hypercall;
        return ToClient;
    }

    private void FinishHypercall(ulong result, bool is64)
    {
        _s->Gpr[0] = is64 ? result : (uint)result;
        Cpu.SkipInstruction();
    }
}
