using Ring3.Host;

namespace Ring3.Cpu;

// Accesses that lie in two pages. Their instruction runs on a copy of the bytes, by a level-1 entry of their own. A load is done then; the look at overwritten
// code behind a store finds a page that is all code, calls back, and the bytes go to where they belong.
// SAFETY: both pages are in level 1 with the permission, as for any access; memory that is gone is met by accessors that say so.
internal sealed unsafe partial class Translator
{
    /// <summary>The store that runs on a copy, and where its bytes belong.</summary>
    private Site* _splitSite;
    private byte* _splitFirst, _splitSecond;

    /// <summary>Where an access across two pages goes on; 0: it faults, or is no plain one.</summary>
    private nint Split(CpuState* c, Site* s, ulong linear)
    {
        ulong first = 0x1000 - (linear & 0xfff), next = linear + first;
        if (first >= s->Size || s->Size > CpuState.SplitBytesCount || CpuMode.AlignmentChecked(c) || c->BlockMode != BlockMode.Code64 && next > uint.MaxValue
            || !Reach(c, linear, s->Write) || !Reach(c, next, s->Write) || !IsIn(c, linear, s->Write) || !CanGoOn())
            return 0;
        byte* a = (byte*)linear + EntryOf(linear)->Addend, b = (byte*)next + EntryOf(next)->Addend;
        if (s->Write)
        {
            _splitSite = s;
            _splitFirst = a;
            _splitSecond = b;
        }
        else if (!UserCopy.TryCopy((ulong)c->SplitBytes, (ulong)a, (nuint)first)
            || !UserCopy.TryCopy((ulong)c->SplitBytes + first, (ulong)b, s->Size - (nuint)first))
            return 0;
        c->SplitLinear = linear;
        c->SplitResume = s->Region->Code + (nint)s->Popped;
        c->SplitCode = ulong.MaxValue;
        c->SplitEntry.Addend = (long)c->SplitBytes - (long)linear;
        c->SplitEntry.CodeBits = &c->SplitCode;
        return TlbRoutines.Split;
    }

    private TlbEntry* EntryOf(ulong linear) => _p.Paging.Level1 + Tlb.Index(linear);

    private bool IsIn(CpuState* c, ulong linear, bool write)
    {
        TlbEntry* e = EntryOf(linear);
        return (linear & ~0xfffUL | c->TlbContext) == (write ? e->TagWrite : e->TagRead);
    }

    private bool Reach(CpuState* c, ulong linear, bool write) => IsIn(c, linear, write) || TryFill(c, linear, 1, write, out _);

    /// <summary>
    /// The bytes of a store to their two pages. False: memory is gone. Those of the first may have been written, which the store will be again.
    /// </summary>
    private bool StoreSplit(CpuState* c, Site* s)
    {
        int first = 0x1000 - ((int)c->SplitLinear & 0xfff), second = s->Size - first;
        if (!UserCopy.TryCopy((ulong)_splitFirst, (ulong)c->SplitBytes, (nuint)first)
            || !UserCopy.TryCopy((ulong)_splitSecond, (ulong)c->SplitBytes + (ulong)first, (nuint)second))
            return false;
        _p.Paging.CodeMayHaveChanged(_splitFirst, first);
        _p.Paging.CodeMayHaveChanged(_splitSecond, second);
        return true;
    }

    /// <summary>The store has changed nothing in the processor: the interpreter makes it again, and meets what is wrong.</summary>
    private nint LeaveBeforeSplit(CpuState* c, Site* s)
    {
        SyncFlags(c, s);
        c->InstructionsRetired -= _splitSite->Uncount;
        c->Rip = RipOf(c, _splitSite);
        InterpretOnce = true;
        return Leave(LoopExit.Lookup);
    }
}
