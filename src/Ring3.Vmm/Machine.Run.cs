using Ring3.Abi;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

namespace Ring3.Vmm;

// The processors' threads: KVM_RUN and the exits that the VMM serves.
public sealed partial class Machine
{
    private void RunVcpu(Vcpu vcpu)
    {
        try
        {
            try { vcpu.PrepareThread(); }
            finally { _prepared.Signal(); }
            _mayRun.Wait();
            while (!_stopping)
            {
                if (_pausing)
                {
                    Park(vcpu);
                    continue;
                }
                int r = vcpu.Run();
                if (r == -Errno.EINTR || r == -Errno.EAGAIN)
                {
                    _trace?.Sample(vcpu);
                    continue;
                }
                if (r < 0)
                {
                    End(MachineEnd.Failure, detail: _vm.IsDead ? _vm.BugMessage : $"KVM_RUN returned error {-r} at {Where(vcpu)}");
                    return;
                }
                Serve(vcpu);
            }
        }
        catch (Exception e)
        {
            // A defect in ring3, not of the guest: the machine ends in order and the terminal is restored.
            End(MachineEnd.Failure, detail: Environment.GetEnvironmentVariable("RING3_DEBUG") is null ? $"{e.GetType().Name}: {e.Message}" : e.ToString());
        }
    }

    /// <summary>Serves one exit. SAFETY: kvm_run and its data page belong to this vCPU and live as long as it.</summary>
    private unsafe void Serve(Vcpu vcpu)
    {
        kvm_run* run = vcpu.KvmRun;
        _trace?.Exit(vcpu, run->exit_reason);
        switch (run->exit_reason)
        {
            case KVM_EXIT_IO:
                ServeIo(vcpu, run);
                break;
            case KVM_EXIT_MMIO:
                ServeMmio(vcpu, run);
                break;
            case KVM_EXIT_XEN when _xen is not null:
                _xen.Serve(vcpu);
                break;
            case KVM_EXIT_INTR or KVM_EXIT_IRQ_WINDOW_OPEN:
                break;
            case KVM_EXIT_SHUTDOWN:
                End(MachineEnd.TripleFault, detail: Where(vcpu));
                break;
            case KVM_EXIT_INTERNAL_ERROR when run->@internal.suberror == KVM_INTERNAL_ERROR_EMULATION:
                var bytes = new ReadOnlySpan<byte>(run->emulation_failure.insn_bytes, Math.Min((int)run->emulation_failure.insn_size, 15));
                End(MachineEnd.Failure, detail: $"the processor cannot execute {Convert.ToHexString(bytes)} at {Where(vcpu)}");
                break;
            default:
                End(MachineEnd.Failure,
                    detail: $"KVM exit {run->exit_reason} (suberror {run->@internal.suberror}, data {run->@internal.data[0]}) at {Where(vcpu)}");
                break;
        }
    }

    /// <summary>What a read brings that no device answers.</summary>
    private const byte NobodyAnswers = 0xff;

    private unsafe void ServeIo(Vcpu vcpu, kvm_run* run)
    {
        ushort port = run->io.port;
        int size = run->io.size, count = (int)run->io.count;
        byte* data = (byte*)run + run->io.data_offset;
        bool write = run->io.direction == KVM_EXIT_IO_OUT;
        for (int i = 0; i < count; i++)
        {
            var element = new Span<byte>(data + i * size, size);
            if (write)
            {
                if (port == BiosArea.ServicePort)
                    _bios?.Serve(vcpu);
                else
                    Ports.Write(port, element);
            }
            else if (!Ports.Read(port, element))
                element.Fill(NobodyAnswers);
            _trace?.Io(vcpu, port, write, element);
        }
    }

    private unsafe void ServeMmio(Vcpu vcpu, kvm_run* run)
    {
        var data = new Span<byte>(run->mmio.data, (int)Math.Min(run->mmio.len, 8));
        bool write = run->mmio.is_write != 0;
        if (write)
            Mmio.Write(run->mmio.phys_addr, data);
        else if (!Mmio.Read(run->mmio.phys_addr, data))
            data.Fill(NobodyAnswers);
        _trace?.Mmio(vcpu, run->mmio.phys_addr, write, data);
    }

    /// <summary>Where a processor is, for messages.</summary>
    private static string Where(Vcpu vcpu)
    {
        vcpu.GetRegs(out kvm_regs r);
        vcpu.GetSregs(out kvm_sregs s);
        return $"cpu {vcpu.Id} cs:rip {s.cs.selector:x}:{r.rip:x} rsp {r.rsp:x} cr0 {s.cr0:x} cr2 {s.cr2:x} cr3 {s.cr3:x} cr4 {s.cr4:x} efer {s.efer:x}";
    }
}
