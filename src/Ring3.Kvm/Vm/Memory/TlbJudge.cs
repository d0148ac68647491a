using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Memory;
using Ring3.Mmu;

namespace Ring3.Kvm;

/// <summary><see cref="VmOptions.CheckTlb"/>: what the processors of a checked VM ask. See docs/tlb.md.</summary>
internal sealed class TlbJudge(VmHealth health, MemorySlots slots, TlbJournal journal) : TlbReference
{
    public override ulong Sequence => journal.Sequence;
    public override ulong Settled => journal.Settled;

    public override string? Judge(in TlbUse use) =>
        journal.Judge(use.Root, use.Gpa, use.Host, use.Filled, (use.Access & AccessKind.Write) != 0);

    public override bool IsTable(ulong table) => TlbJournal.IsTable(table);
    public override bool TryQuiesce() => slots.MmuLock.TryEnterWrite();
    public override void Resume() => slots.MmuLock.ExitWrite();
    public override string Explain(in TlbUse use) => journal.Explain(use.Root, use.Gpa);
    public override void Violated(string report) => health.BugInGuest(report);
}
