using System.Text;
using Ring3.Abi;

namespace Ring3.Irqchip;

/// <summary>The controllers' state as text, for a person who looks for a lost interrupt. Racy while vCPUs run: a picture, not a snapshot.</summary>
public static class IrqchipDump
{
    /// <summary>Writes one line per local APIC, IOAPIC pin in use, PIC chip and PIT channel.</summary>
    public static void Dump(this VmIrqchip chip, TextWriter to)
    {
        foreach (Lapic apic in chip.Bus.Lapics)
            DumpLapic(apic, to);
        if (chip.Ioapic is { } ioapic)
            DumpIoapic(ioapic, to);
        if (chip.Pic is { } pic)
        {
            DumpPic("pic0", pic.GetState(master: true), to);
            DumpPic("pic1", pic.GetState(master: false), to);
            to.WriteLine($"pic output={pic.Output}");
        }
        if (chip.Pit is { } pit)
            DumpPit(pit.GetState(), to);
    }

    private static void DumpLapic(Lapic apic, TextWriter to)
    {
        to.WriteLine($"lapic {apic.Index}: id={apic.Id} mode={apic.Mode} base=0x{apic.Base:x} svr=0x{apic.ReadRegister(ApicRegister.SVR):x}"
            + $" tpr=0x{apic.Tpr:x} ppr=0x{apic.Ppr:x} ldr=0x{apic.ReadRegister(ApicRegister.LDR):x}"
            + $" irr={Vectors(apic, ApicRegister.IRR)} isr={Vectors(apic, ApicRegister.ISR)}"
            + $" lvtt=0x{apic.ReadRegister(ApicRegister.LVT_TIMER):x} lint0=0x{apic.ReadRegister(ApicRegister.LVT_LINT0):x}"
            + $" tmict={apic.ReadRegister(ApicRegister.TMICT)} deadline={(apic.TimerDeadlineNs == long.MaxValue ? "none" : apic.TimerDeadlineNs)}");
    }

    private static string Vectors(Lapic apic, int register)
    {
        var text = new StringBuilder();
        for (int v = 0; v < 256; v++)
            if ((apic.ReadRegister(register + (v >> 5) * 16) >> (v & 31) & 1) != 0)
                _ = text.Append(text.Length == 0 ? "" : ",").Append(v.ToString("x2"));
        return text.Length == 0 ? "-" : text.ToString();
    }

    private static void DumpIoapic(Ioapic ioapic, TextWriter to)
    {
        uint pending = ioapic.GetState().irr;
        for (int pin = 0; pin < Ioapic.PinCount; pin++)
        {
            var entry = new RedirectionEntry { Value = ioapic.Entry(pin) };
            bool isPending = (pending >> pin & 1) != 0;
            if (entry.Masked && !isPending)
                continue;
            var message = entry.ToMessage(false);
            to.WriteLine($"ioapic pin {pin}: vector=0x{entry.Vector:x2} {entry.Mode} {(entry.Level ? "level" : "edge")}"
                + $"{(entry.Masked ? " masked" : "")}{(entry.RemoteIrr ? " remote-irr" : "")}{(isPending ? " pending" : "")}"
                + $" dest=0x{message.Dest:x} {(message.Logical ? "logical" : "physical")}");
        }
    }

    private static void DumpPic(string name, in kvm_pic_state s, TextWriter to) =>
        to.WriteLine($"{name}: irr={s.irr:x2} imr={s.imr:x2} isr={s.isr:x2} elcr={s.elcr:x2} base={s.irq_base:x2} init={s.init_state} aeoi={s.auto_eoi}");

    private static void DumpPit(in kvm_pit_state2 s, TextWriter to)
    {
        for (int i = 0; i < 3; i++)
            to.WriteLine($"pit channel {i}: mode={s.channels[i].mode} count={s.channels[i].count} gate={s.channels[i].gate}");
    }
}
