using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>Prints what --trace asks for, one event a line.</summary>
internal sealed class MachineTrace(TraceCategories categories, TextWriter messages)
{
    /// <summary>Milliseconds between the samples of category blocks.</summary>
    public const int SampleMs = 100;

    public bool Samples => (categories & TraceCategories.Blocks) != 0;

    /// <summary>Gets every region of translated code; null when they are not wanted.</summary>
    public Action<string>? Regions => (categories & TraceCategories.Translate) == 0 ? null : text => messages.WriteLine($"translate: {text.TrimEnd()}");

    /// <summary>Where a kicked processor is.</summary>
    public void Sample(Vcpu vcpu)
    {
        if (!Samples)
            return;
        vcpu.GetRegs(out kvm_regs r);
        vcpu.GetSregs(out kvm_sregs s);
        messages.WriteLine($"sample: cpu {vcpu.Id} rip {s.cs.selector:x}:{r.rip:x} rsp {r.rsp:x} rflags {r.rflags:x}"
            + $" rax {r.rax:x} rbx {r.rbx:x} rcx {r.rcx:x} rdx {r.rdx:x} rsi {r.rsi:x} rdi {r.rdi:x} cr3 {s.cr3:x} instructions {vcpu.InstructionsRetired}");
    }

    /// <summary>Hooks a processor when exceptions or interrupts are wanted.</summary>
    public void Attach(Vcpu vcpu)
    {
        if ((categories & (TraceCategories.Exceptions | TraceCategories.Interrupts)) == 0)
            return;
        vcpu.EventObserver = e =>
        {
            bool interrupt = e.Type is EventType.External or EventType.Nmi;
            if ((categories & (interrupt ? TraceCategories.Interrupts : TraceCategories.Exceptions)) != 0)
                Print(vcpu, e.Rip, $"{(interrupt ? "interrupt" : "exception")} {e.Vector}"
                    + $"{(e.HasErrorCode ? $" error {e.ErrorCode:x}" : "")}{(e.Payload != 0 ? $" address {e.Payload:x}" : "")}");
        };
    }

    /// <summary>An exit that reached the VMM.</summary>
    public void Exit(Vcpu vcpu, uint reason)
    {
        if ((categories & TraceCategories.Exits) != 0)
            Line(vcpu, $"exit {reason}");
    }

    public void Io(Vcpu vcpu, ushort port, bool write, ReadOnlySpan<byte> data)
    {
        if ((categories & TraceCategories.Io) != 0)
            Line(vcpu, $"{(write ? "out" : "in ")} 0x{port:x}/{data.Length} 0x{BusData.Get(data):x}");
    }

    public void Mmio(Vcpu vcpu, ulong gpa, bool write, ReadOnlySpan<byte> data)
    {
        if ((categories & TraceCategories.Mmio) != 0)
            Line(vcpu, $"mmio {(write ? "write" : "read ")} 0x{gpa:x}/{data.Length} 0x{BusData.Get(data):x}");
    }

    private void Line(Vcpu vcpu, string text)
    {
        vcpu.GetRegs(out kvm_regs r);
        Print(vcpu, r.rip, text);
    }

    private void Print(Vcpu vcpu, ulong rip, string text) => messages.WriteLine($"trace: cpu {vcpu.Id} rip {rip:x}: {text}");
}
