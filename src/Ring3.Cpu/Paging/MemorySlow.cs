using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Everything that misses level 1: translation, page-crossing accesses, MMIO, alignment checks, data breakpoints.</summary>
/// <remarks>SAFETY: host pointers come from translations; bounce buffers hold <see cref="MmioReplay.MaxSize"/> bytes and the sizes of the two fragments add up to at most that.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    internal readonly MmioReplay Replay = new();
    private const int BounceSlots = 4;

    /// <summary>A page-crossing or MMIO access between ReadPtr/WritePtr and EndWrite. Slots are used in turn, so that an instruction can have several operands in flight.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 128)]
    private struct Bounce
    {
        public fixed byte Data[MmioReplay.MaxSize];
        public byte* Host0, Host1;
        public ulong Gpa0, Gpa1;
        public int Size0, Size1;
        public ulong Linear;
        /// <summary>What is written depends on what was read.</summary>
        public bool IsModify;
    }

    private readonly Bounce* _bounces = (Bounce*)HostMemory.Map(BounceSlots * 128 + AlignedOperandSize);
    private int _nextBounce;

    /// <summary>Room for a copy of a misaligned operand, aligned to its size.</summary>
    internal byte* AlignedOperand => (byte*)(_bounces + BounceSlots);
    internal const int AlignedOperandSize = 64;

    private void FreeBounces() => HostMemory.Unmap(_bounces, BounceSlots * 128 + AlignedOperandSize);

    /// <summary>Finishes the access of the last <see cref="ExitReason.Mmio"/> exit: the data read, or anything for a write.</summary>
    public void CompleteMmio(ReadOnlySpan<byte> data) => Replay.Complete(data);

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal byte* ReadPtrSlow(CpuState* c, ulong linear, int size, AccessKind privilege)
    {
        AccessKind access = AccessKind.Read | privilege;
        int first = FirstFragment(linear, size);
        if (!CheckLinear(c, linear, size) || !CheckAligned(c, linear, size, privilege) || !Translate(c, linear, access, out Translation t))
            return null;
        if (first == size && t.Host != null)
            return Breakpoints.Observed(c, linear, size, false, t.Host + (linear & 0xfff));
        Translation second = default;
        if (first != size && !Translate(c, NextPage(c, linear), access, out second))
            return null;
        Bounce* b = Prepare(linear, size, first, t, second);
        return FillBounce(c, b) ? Breakpoints.Observed(c, linear, size, false, b->Data) : null;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal byte* WritePtrSlow(CpuState* c, ulong linear, int size, AccessKind privilege, bool modify)
    {
        AccessKind access = AccessKind.Write | privilege;
        int first = FirstFragment(linear, size);
        if (!CheckLinear(c, linear, size) || !CheckAligned(c, linear, size, privilege) || !Translate(c, linear, access, out Translation t))
            return null;
        if (first == size && t.Host != null)
            return Breakpoints.Observed(c, linear, size, true, t.Host + (linear & 0xfff));
        Translation second = default;
        if (first != size && !Translate(c, NextPage(c, linear), access, out second))
            return null;
        Bounce* b = Prepare(linear, size, first, t, second);
        b->IsModify = modify;
        if (modify && !FillBounce(c, b))
            return null;
        return Breakpoints.Observed(c, linear, size, true, b->Data);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal OpResult EndWriteSlow(CpuState* c, byte* ptr, ulong linear, int size)
    {
        long offset = ptr - (byte*)_bounces;
        if ((ulong)offset >= BounceSlots * 128)
        {
            CodeMayHaveChanged(ptr, size);
            return OpResult.Next;
        }
        Bounce* b = _bounces + offset / 128;
        // A device takes its half by an exit and the instruction starts again: memory keeps what was read until then.
        bool done = b->IsModify && b->Host0 != null && b->Host1 == null
            ? CommitSecond(c, b) && CommitFirst(c, b)
            : CommitFirst(c, b) && CommitSecond(c, b);
        return done ? OpResult.Next : OpResult.Fault;
    }

    private bool CommitFirst(CpuState* c, Bounce* b) => CommitFragment(c, b->Data, b->Host0, b->Gpa0, b->Size0, b->Linear);
    private bool CommitSecond(CpuState* c, Bounce* b) => CommitFragment(c, b->Data + b->Size0, b->Host1, b->Gpa1, b->Size1, b->Linear + (ulong)b->Size0);

    private bool CommitFragment(CpuState* c, byte* data, byte* host, ulong gpa, int size, ulong linear)
    {
        if (size == 0)
            return true;
        if (host == null)
            return Replay.Write(this, c, gpa, linear, data, size);
        Buffer.MemoryCopy(data, host, size, size);
        CodeMayHaveChanged(host, size);
        return true;
    }

    /// <summary>Where byte <paramref name="index"/> of the access at <paramref name="ptr"/> lies in host memory; null: it is a device's.</summary>
    private byte* HostByte(byte* ptr, int index)
    {
        long offset = ptr - (byte*)_bounces;
        if ((ulong)offset >= BounceSlots * 128)
            return ptr + index;
        Bounce* b = _bounces + offset / 128;
        if (index < b->Size0)
            return b->Host0 == null ? null : b->Host0 + index;
        return b->Host1 == null ? null : b->Host1 + (index - b->Size0);
    }

    private bool FillBounce(CpuState* c, Bounce* b) =>
        FillFragment(c, b->Data, b->Host0, b->Gpa0, b->Size0, b->Linear) && FillFragment(c, b->Data + b->Size0, b->Host1, b->Gpa1, b->Size1, b->Linear + (ulong)b->Size0);

    private bool FillFragment(CpuState* c, byte* data, byte* host, ulong gpa, int size, ulong linear)
    {
        if (size == 0)
            return true;
        if (host == null)
            return Replay.Read(this, c, gpa, linear, data, size);
        Buffer.MemoryCopy(host, data, size, size);
        return true;
    }

    private Bounce* Prepare(ulong linear, int size, int first, in Translation t, in Translation second)
    {
        Bounce* b = _bounces + (_nextBounce++ & (BounceSlots - 1));
        ulong offset = linear & 0xfff;
        b->Linear = linear;
        b->Size0 = first;
        b->Size1 = size - first;
        b->Gpa0 = t.Gpa + offset;
        b->Gpa1 = second.Gpa;
        b->Host0 = t.Host != null ? t.Host + offset : null;
        b->Host1 = second.Host;
        return b;
    }

    private static int FirstFragment(ulong linear, int size) => Math.Min(size, 0x1000 - (int)(linear & 0xfff));

    private static ulong NextPage(CpuState* c, ulong linear)
    {
        ulong next = (linear & ~0xfffUL) + 0x1000;
        return CpuMode.Is64(c) ? next : next & 0xffff_ffff;
    }

    /// <summary>
    /// Whether an address is canonical for the widest linear addresses that this guest's CPUID has, whatever CR4.LA57 says: the check of MSRs, descriptor-table registers, the bases of LDTR and TR, and INVPCID.
    /// SPEC: SDM volume 1, "Canonical Addressing", "5-Level Paging and 5-Level EPT" white paper.
    /// </summary>
    internal bool IsCanonicalForMsr(ulong linear)
    {
        int unused = CpuidFeatures.La57 ? 64 - 57 : 64 - 48;
        return (ulong)((long)(linear << unused) >> unused) == linear;
    }

    private bool CheckLinear(CpuState* c, ulong linear, int size)
    {
        if (!CpuMode.Is64(c))
        {
            // The address has been formed by segmentation, or it is a base in a 64-bit table used from compatibility mode.
            if (linear >> 32 == 0 || ((c->Efer & Efer.LMA) != 0 && CpuMode.IsCanonical(c, linear)))
                return true;
        }
        else if (CpuMode.IsCanonical(c, linear) && CpuMode.IsCanonical(c, linear + (ulong)size - 1))
            return true;
        Outcome.Raise(c, Vector.GP, 0);
        c->PendingAddress = linear;
        c->PendingNonCanonical = 1;
        return false;
    }

    /// <summary>#AC has priority over page faults of the same access, as processors do it. Vectors need 16-byte alignment whatever their size, or none by the model; 80-bit numbers 8 (measured).</summary>
    private bool CheckAligned(CpuState* c, ulong linear, int size, AccessKind privilege)
    {
        if (size >= 16 && Model.SparesVectorAlignment)
            return true;
        int alignment = size == 10 ? 8 : !int.IsPow2(size) ? 1 : Math.Min(size, 16);
        if ((linear & (ulong)(alignment - 1)) == 0 || !CpuMode.AlignmentChecked(c) || (privilege & AccessKind.User) == 0)
            return true;
        Outcome.Raise(c, Vector.AC, 0);
        return false;
    }

    /// <summary>Translates one page for an access; MMIO gives a null host pointer.</summary>
    private bool Translate(CpuState* c, ulong linear, AccessKind access, out Translation t)
    {
        Tlb.Misses++;
        TlbLevel2.Entry* e = Tlb.Level2.Find(linear >> 12, Tlb.SpaceId, Tlb.GlobalId);
        if (e != null && Permits(c, e->Flags, access) && Cached(e->Flags, access) && (Sanitizer is null || UseLevel2(c, e, linear, access)))
        {
            t = new Translation { Host = e->Host, Gpa = e->Gpa, Flags = e->Flags };
            FillLevel1(c, linear, access, t);
            return true;
        }
        switch (WalkAndFill(c, linear, access, out t))
        {
            case TranslateResult.Ok:
                FillLevel1(c, linear, access, t);
                return true;
            case TranslateResult.Mmio:
                t.Host = null;
                return true;
            default:
                return false;
        }
    }

    /// <summary>Whether a level-2 entry can serve the access without a walk: nested permission, and both D bits for a write.</summary>
    private static bool Cached(PageFlags flags, AccessKind access)
    {
        const PageFlags write = PageFlags.Dirty | PageFlags.NestedDirty | PageFlags.NestedWrite;
        if ((access & AccessKind.Execute) != 0)
            return (flags & PageFlags.NestedExecute) != 0;
        return (access & AccessKind.Write) != 0 ? (flags & write) == write : (flags & PageFlags.NestedRead) != 0;
    }

    private void FillLevel1(CpuState* c, ulong linear, AccessKind access, in Translation t)
    {
        if (Observer is not null && ((access & AccessKind.Write) != 0 || Cached(t.Flags, AccessKind.Write)))
            Observer.MayWrite(this, t.Host);
        // Checked: level 1 stays empty, so that every access comes by.
        if (Sanitizer is not null)
            return;
        ulong page = linear & ~0xfffUL;
        if ((access & AccessKind.Execute) != 0)
        {
            TlbEntry* f = Tlb.Fetch + Tlb.FetchIndex(linear);
            f->TagRead = page | c->TlbContext;
            f->Addend = (long)t.Host - (long)page;
            Tlb.MarkExecuted(linear);
            return;
        }
        PrivilegeClass privilege = PrivilegeOf(c, access);
        if (privilege == PrivilegeClass.UserAligned || Breakpoints.HasData(c, page))
            return;
        TlbEntry* e = Level1 + Tlb.Index(linear);
        ulong tag = page | Tlb.Context(privilege);
        e->Addend = (long)t.Host - (long)page;
        e->CodeBits = CodeBitsOf(t.Host);
        e->TagRead = (t.Flags & PageFlags.NestedRead) != 0 ? tag : Tlb.Invalid;
        if ((t.Flags & PageFlags.Key) != 0 && (c->Cr4 & Cr4.PKE) != 0)
            Tlb.NoteKeyed(linear, KeyOf(t.Flags));
        AccessKind write = AccessKind.Write | (access & (AccessKind.User | ImplicitAccess));
        e->TagWrite = Cached(t.Flags, write) && Permits(c, t.Flags, write) ? tag : Tlb.Invalid;
    }

    /// <summary>Host address of the instruction byte at <paramref name="linear"/>, or null with an exception or exit pending.</summary>
    internal byte* TranslateExecute(CpuState* c, ulong linear)
    {
        TlbEntry* f = Tlb.Fetch + Tlb.FetchIndex(linear);
        if (f->TagRead == ((linear & ~0xfffUL) | c->TlbContext))
            return (byte*)(linear + (ulong)f->Addend);
        if (!CheckLinear(c, linear, 1) || !Translate(c, linear, AccessKind.Execute | CpuMode.ExplicitAccess(c), out Translation t))
            return null;
        if (t.Host != null)
            return t.Host + (linear & 0xfff);
        Exit->Gpa = t.Gpa | (linear & 0xfff);
        Exit->Gva = linear;
        Outcome.Leave(c, ExitReason.EmulationFailure);
        return null;
    }
}
