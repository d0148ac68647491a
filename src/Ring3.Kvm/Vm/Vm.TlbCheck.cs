using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Mmu;

namespace Ring3.Kvm;

// VmOptions.CheckTlb: the TLB sanitizer. See docs/tlb.md.
public sealed partial class Vm
{
    private readonly TlbJudge? _tlbJudge;

    /// <summary>What the processors of a checked VM ask; null: off.</summary>
    internal TlbReference? TlbReference => _tlbJudge;

    /// <summary>Uses of cached translations that were checked, with <see cref="VmOptions.CheckTlb"/>.</summary>
    public ulong TranslationChecks
    {
        get
        {
            ulong sum = 0;
            foreach (Vcpu v in Vcpus)
                sum += v.Cpu.TranslationChecks;
            return sum;
        }
    }

    private static TlbJournal? NewJournal(VmOptions options) => options.CheckTlb ? new TlbJournal() : null;

    /// <summary>Marks the VM dead from inside the guest, where nothing may be waited for: the processors find the request at their next exit.</summary>
    private void DieOf(string report)
    {
        Interlocked.CompareExchange(ref _bugMessage, report, null);
        if (Interlocked.Exchange(ref _dead, 1) == 0)
            MakeAllRequest(new VcpuRequest(VcpuRequest.VmDead.Value & VcpuRequest.NumberMask | VcpuRequest.WhenInGuest));
    }

    private sealed class TlbJudge(Vm vm, TlbJournal journal) : TlbReference
    {
        public override ulong Sequence => journal.Sequence;
        public override ulong Settled => journal.Settled;
        public override string? Judge(in TlbUse use) => journal.Judge(use.Root, use.Gpa, use.Host, use.Filled, (use.Access & AccessKind.Write) != 0);
        public override bool IsTable(ulong table) => TlbJournal.IsTable(table);
        public override bool TryQuiesce() => vm.Slots.MmuLock.TryEnterWrite();
        public override void Resume() => vm.Slots.MmuLock.ExitWrite();
        public override string Explain(in TlbUse use) => journal.Explain(use.Root, use.Gpa);
        public override void Violated(string report) => vm.DieOf(report);
    }
}
