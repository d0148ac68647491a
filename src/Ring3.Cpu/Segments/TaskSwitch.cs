using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>What started a task switch.</summary>
internal enum TaskSwitchKind { Jump, Call, Gate, Return }

/// <summary>Hardware task switch between 16- and 32-bit TSSs. SPEC: SDM volume 3, "Task Switching".</summary>
/// <remarks>SAFETY: the image is a stack buffer of fixed size that the TSS limits were checked against.</remarks>
internal sealed unsafe partial class EventUnit
{
    private const int TssSize32 = 0x68, TssSize16 = 0x2c;

    /// <summary>Register part of a TSS, in either size.</summary>
    private struct TaskImage
    {
        public uint Cr3, Eip, Eflags;
        public fixed uint Gpr[8];
        /// <summary>ES, CS, SS, DS, FS, GS.</summary>
        public fixed ushort Selectors[6];
        public ushort Ldt;
        public bool DebugTrap;
    }

    /// <summary>
    /// Switches tasks. True: the new task is current, or an exception that the new task's segments caused has been delivered in it.
    /// False: an exception or exit is pending; nothing has changed, or with <see cref="_switched"/> the new task is current and the exit is its own.
    /// </summary>
    internal bool SwitchTask(CpuState* c, ushort selector, TaskSwitchKind kind, ulong resume, ulong flags, bool hasErrorCode, uint errorCode)
    {
        _switched = false;
        if (!FindTask(c, selector, kind, out ulong raw, out ulong address))
            return false;
        bool wide = (Descriptor.Type(raw) & 8) != 0;
        Segment tr = Descriptor.ToSegment(selector, raw);
        tr.Access = Descriptor.Access(raw) | 2;
        TaskImage next;
        if (!ReadTask(c, tr.Base, wide, &next) || !SaveTask(c, kind, resume, flags))
            return false;
        bool nested = kind is TaskSwitchKind.Call or TaskSwitchKind.Gate;
        if (nested && !_access.StoreSystem16(c, (uint)tr.Base, c->Tr.Selector))
            return false;
        if (kind != TaskSwitchKind.Return && !MarkDescriptor(c, address, raw, Descriptor.Busy))
            return false;
        if (!nested && (!FindDescriptor(c, c->Tr.Selector, 8, out ulong old) || !ClearBusy(c, old)))
            return false;
        if (nested)
            next.Eflags |= (uint)Rflags.NT;
        CommitTask(c, tr, wide, &next);
        return FinishTask(c, wide, &next, hasErrorCode, errorCode);
    }

    private bool FindTask(CpuState* c, ushort selector, TaskSwitchKind kind, out ulong raw, out ulong address)
    {
        byte vector = kind == TaskSwitchKind.Return ? Vector.TS : Vector.GP;
        raw = address = 0;
        if (Descriptor.IsNull(selector) || (selector & 4) != 0)
        {
            RaiseSelector(c, vector, selector);
            return false;
        }
        if (!ReadDescriptor(c, selector, vector, out raw, out address))
            return false;
        uint type = Descriptor.Type(raw);
        bool fits = kind == TaskSwitchKind.Return ? type is Descriptor.Tss32Busy or Descriptor.Tss16Busy
            : type is Descriptor.Tss32Available or Descriptor.Tss16Available;
        if (!fits)
        {
            RaiseSelector(c, vector, selector);
            return false;
        }
        if (!Descriptor.Present(raw))
        {
            RaiseSelector(c, Vector.NP, selector);
            return false;
        }
        if (Descriptor.Limit(raw) >= ((type & 8) != 0 ? TssSize32 - 1 : TssSize16 - 1))
            return true;
        RaiseSelector(c, Vector.TS, selector);
        return false;
    }

    private bool ReadTask(CpuState* c, ulong tss, bool wide, TaskImage* t)
    {
        *t = default;
        uint* words = stackalloc uint[TssSize32 / 4];
        int size = wide ? TssSize32 : TssSize16;
        for (int i = 0; i < size / 4; i++)
            if (!_access.LoadSystem32(c, (uint)(tss + (ulong)(4 * i)), out words[i]))
                return false;
        ushort* half = (ushort*)words;
        for (int i = 0; i < 8; i++)
            t->Gpr[i] = wide ? words[10 + i] : half[9 + i];
        for (int i = 0; i < (wide ? 6 : 4); i++)
            t->Selectors[i] = wide ? (ushort)words[18 + i] : half[17 + i];
        t->Eip = wide ? words[8] : half[7];
        t->Eflags = wide ? words[9] : half[8];
        t->Cr3 = wide ? words[7] : (uint)c->Cr3;
        t->Ldt = wide ? (ushort)words[24] : half[21];
        t->DebugTrap = wide && (words[25] & 1) != 0;
        return true;
    }

    private bool SaveTask(CpuState* c, TaskSwitchKind kind, ulong resume, ulong flags)
    {
        bool wide = (c->Tr.Access & 8) != 0;
        if (kind == TaskSwitchKind.Return)
            flags &= ~Rflags.NT;
        ulong tss = c->Tr.Base;
        int size = wide ? 4 : 2;
        uint at = wide ? 0x20u : 0x0eu;
        // Both ends first: a fault must come before the first byte is written.
        if (_access.WritePtrSlow(c, (uint)(tss + at), size, AccessKind.Implicit, false) == null
            || _access.WritePtrSlow(c, (uint)(tss + (wide ? 0x5cu : 0x28u)), size, AccessKind.Implicit, false) == null)
            return false;
        bool ok = _access.StoreSystem(c, (uint)(tss + at), size, resume) && _access.StoreSystem(c, (uint)(tss + at + (uint)size), size, flags);
        at += 2 * (uint)size;
        for (int i = 0; ok && i < 8; i++, at += (uint)size)
            ok = _access.StoreSystem(c, (uint)(tss + at), size, c->Gpr[i]);
        for (int i = 0; ok && i < (wide ? 6 : 4); i++, at += (uint)size)
            ok = _access.StoreSystem16(c, (uint)(tss + at), CpuState.SegmentAt(c, i)->Selector);
        return ok;
    }

    private void CommitTask(CpuState* c, Segment tr, bool wide, TaskImage* t)
    {
        _switched = true;
        c->Tr = tr;
        c->Cr0 |= Cr0.TS;
        if (wide && (c->Cr0 & Cr0.PG) != 0 && t->Cr3 != c->Cr3)
            LoadTaskCr3(c, t->Cr3);
        c->Rip = t->Eip;
        ulong flags = (t->Eflags & (wide ? 0x3f_7fd5u : 0x7fd5u)) | Rflags.Fixed1;
        Flags.Set(c, flags);
        for (int i = 0; i < 8; i++)
            c->Gpr[i] = wide ? t->Gpr[i] : (c->Gpr[i] & 0xffff_0000) | t->Gpr[i];
        for (int i = 0; i < 6; i++)
            *CpuState.SegmentAt(c, i) = NullSegment(t->Selectors[i]);
        c->Ldtr = NullSegment(t->Ldt);
        c->Cpl = CpuMode.Virtual8086(c) ? 3u : (uint)(t->Selectors[SegmentIndex.CS] & 3);
        c->Ss.Access |= c->Cpl << 5;
        c->Dr7 &= ~0x155UL;
        _paging.DebugRegistersChanged(c);
        _paging.UpdateContext(c);
    }

    private void LoadTaskCr3(CpuState* c, uint cr3)
    {
        c->Cr3 = cr3;
        _paging.CachedCr3 = cr3;
        _paging.FlushCurrentPcid(GuestFlush.Cr3);
        if (CpuMode.PagingModeOf(c) == PagingMode.Pae && _paging.ReadPdptrs(c, cr3, out PagingUnit.Pdptrs pdptrs) == TranslateResult.Ok)
            PagingUnit.SetPdptrs(c, pdptrs);
    }

    /// <summary>
    /// A switch whose new task is committed but whose segments are not loaded, because an exit came in between. The next entry goes on with it.
    /// </summary>
    private struct UnfinishedTask
    {
        public bool Valid, Wide, HasErrorCode;
        public uint ErrorCode, External;
        public TaskImage Image;
    }

    private UnfinishedTask _unfinishedTask;

    /// <summary>A new task is committed, and its segments are not loaded.</summary>
    internal bool HasUnfinishedTask => _unfinishedTask.Valid;

    /// <summary>The owner has written another state: there is nothing to go on with.</summary>
    internal void ForgetTask() => _unfinishedTask.Valid = false;

    /// <summary>The last event delivery or far transfer has committed a new task: what failed after that belongs to the new task.</summary>
    private bool _switched;

    /// <summary>Goes on with a switch that an exit interrupted. False: an exit is pending.</summary>
    internal bool ResumeTask(CpuState* c)
    {
        UnfinishedTask u = _unfinishedTask;
        _unfinishedTask.Valid = false;
        _externalEvent = u.External;
        bool done = FinishTask(c, u.Wide, &u.Image, u.HasErrorCode, u.ErrorCode);
        _externalEvent = 0;
        ModeChanged(c);
        Breakpoints.UpdateStep(c);
        return done;
    }

    private bool FinishTask(CpuState* c, bool wide, TaskImage* t, bool hasErrorCode, uint errorCode)
    {
        bool ok = LoadTaskGuarded(c, wide, t, hasErrorCode, errorCode);
        if (ok)
        {
            if (t->DebugTrap)
                c->PendingDebug |= (ushort)Dr.Dr6BT;
            return true;
        }
        if (c->ExitPending == 0)
        {
            bool delivered = Deliver(c, TakePending(c), true);
            _switched = true;
            return delivered;
        }
        _unfinishedTask = new UnfinishedTask { Valid = true, Wide = wide, HasErrorCode = hasErrorCode, ErrorCode = errorCode, External = _externalEvent,
            Image = *t };
        return false;
    }

    /// <summary>Loads the segments of the new task and pushes the error code.</summary>
    private bool LoadTask(CpuState* c, bool wide, TaskImage* t, bool hasErrorCode, uint errorCode)
    {
        bool ok = LoadTaskSegments(c, t);
        ModeChanged(c);
        if (ok && c->Rip > c->Cs.Limit)
        {
            Outcome.Raise(c, Vector.GP, _externalEvent);
            ok = false;
        }
        if (ok && hasErrorCode)
        {
            StackCursor stack = StackCursor.Current(c);
            ok = stack.Push(_access, c, wide ? 4 : 2, errorCode);
            if (ok)
                CommitStack(c, stack);
        }
        return ok;
    }

    private bool LoadTaskSegments(CpuState* c, TaskImage* t)
    {
        if (!Descriptor.IsNull(t->Ldt) && !LoadLdt(c, t->Ldt, Vector.TS))
            return false;
        if (CpuMode.Virtual8086(c))
        {
            for (int i = 0; i < 6; i++)
                LoadRealSegment(c, i, t->Selectors[i]);
            return true;
        }
        int cpl = (int)c->Cpl;
        if (!CheckTaskCode(c, t->Selectors[SegmentIndex.CS], out Segment cs)
            || !CheckStackSegment(c, t->Selectors[SegmentIndex.SS], cpl, Vector.TS, false, out Segment ss))
            return false;
        c->Cs = cs;
        c->Ss = ss;
        for (int i = 0; i < 6; i++)
        {
            if (i is SegmentIndex.CS or SegmentIndex.SS)
                continue;
            if (!CheckSegment(c, i, t->Selectors[i], cpl, Vector.TS, out Segment s))
                return false;
            *CpuState.SegmentAt(c, i) = s;
        }
        return true;
    }

    private bool CheckTaskCode(CpuState* c, ushort selector, out Segment cs)
    {
        cs = default;
        if (Descriptor.IsNull(selector))
        {
            RaiseSelector(c, Vector.TS, 0);
            return false;
        }
        if (!ReadDescriptor(c, selector, Vector.TS, out ulong raw, out ulong address))
            return false;
        int rpl = selector & 3, dpl = Descriptor.Dpl(raw);
        if (!Descriptor.IsCode(raw) || (Descriptor.IsConforming(raw) ? dpl > rpl : dpl != rpl))
        {
            RaiseSelector(c, Vector.TS, selector);
            return false;
        }
        return FinishLoad(c, selector, Vector.NP, raw, address, out cs);
    }
}
