using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// MOVS, STOS, LODS, CMPS and SCAS. With REP they work in bulk on host memory, a page at a time; after each chunk the registers are those of an instruction
/// that was interrupted
/// between two iterations, so a fault or a kick finds exact restart state. SPEC: SDM volume 2, "REP/REPE/REPZ/REPNE/REPNZ".
/// </summary>
/// <remarks>
/// SAFETY: a direct pointer is used for at most the bytes of its page that <see cref="StringRun"/> allows; everything else goes through the checked accessors
/// element by element.
/// </remarks>
internal static unsafe class StringHandlers
{
    private const int Rcx = 1, Rsi = 6, Rdi = 7;

    internal static void Register()
    {
        Set(Code.Movsb_m8_m8, &Movs<W8>, Code.Movsw_m16_m16, &Movs<W16>, Code.Movsd_m32_m32, &Movs<W32>, Code.Movsq_m64_m64, &Movs<W64>);
        Set(Code.Stosb_m8_AL, &Stos<W8>, Code.Stosw_m16_AX, &Stos<W16>, Code.Stosd_m32_EAX, &Stos<W32>, Code.Stosq_m64_RAX, &Stos<W64>);
        Set(Code.Lodsb_AL_m8, &Lods<W8>, Code.Lodsw_AX_m16, &Lods<W16>, Code.Lodsd_EAX_m32, &Lods<W32>, Code.Lodsq_RAX_m64, &Lods<W64>);
        Set(Code.Cmpsb_m8_m8, &Cmps<W8>, Code.Cmpsw_m16_m16, &Cmps<W16>, Code.Cmpsd_m32_m32, &Cmps<W32>, Code.Cmpsq_m64_m64, &Cmps<W64>);
        Set(Code.Scasb_AL_m8, &Scas<W8>, Code.Scasw_AX_m16, &Scas<W16>, Code.Scasd_EAX_m32, &Scas<W32>, Code.Scasq_RAX_m64, &Scas<W64>);
    }

    private static void Set(Code c1, delegate*<LogicalProcessor, CpuState*, Op*, OpResult> h1, Code c2, delegate*<LogicalProcessor, CpuState*, Op*,
        OpResult> h2,
        Code c4, delegate*<LogicalProcessor, CpuState*, Op*, OpResult> h4, Code c8, delegate*<LogicalProcessor, CpuState*, Op*, OpResult> h8)
    {
        HandlerTable.Set(c1, h1, endsBlock: true);
        HandlerTable.Set(c2, h2, endsBlock: true);
        HandlerTable.Set(c4, h4, endsBlock: true);
        HandlerTable.Set(c8, h8, endsBlock: true);
    }

    private static bool Repeats(Op* op) => (op->Flags & (OpFlags.Rep | OpFlags.Repne)) != 0;

    /// <summary>Ends the instruction, or leaves RIP at it when iterations remain.</summary>
    private static OpResult End(CpuState* c, Op* op, bool finished)
    {
        c->Rip = finished ? Addressing.NextRip(c, op) : Addressing.RipOf(c, op);
        c->BetweenIterations = finished ? (byte)0 : (byte)1;
        // The block counted it, and will again: an instruction retires once.
        if (!finished)
            c->InstructionsRetired--;
        return OpResult.EndBlock;
    }

    /// <summary>What a model may do to registers before the first iteration: with 32-bit addresses RCX and the given ones lose their upper halves.</summary>
    private static void ZeroExtend(LogicalProcessor p, CpuState* c, Op* op, ref ulong first, ref ulong second)
    {
        if (op->AddressSize != 4 || !Repeats(op) || c->BlockMode != BlockMode.Code64 || !p.Model.ZeroExtendsRepeat)
            return;
        c->Gpr[Rcx] = (uint)c->Gpr[Rcx];
        first = (uint)first;
        second = (uint)second;
    }

    /// <summary>Status flags of before a comparison, for the models that put them back when it stops before its end.</summary>
    private readonly struct StatusBefore(CpuState* c)
    {
        private readonly ulong _zero = c->FlagsZero, _sign = c->FlagsSign, _carry = c->FlagsCarry;

        public OpResult Fault(LogicalProcessor p, CpuState* c) => Stop(p, c, OpResult.Fault);

        public OpResult Stop(LogicalProcessor p, CpuState* c, OpResult result)
        {
            if (p.Model.KeepsCompareFlags)
                (c->FlagsZero, c->FlagsSign, c->FlagsCarry) = (_zero, _sign, _carry);
            return result;
        }
    }

    /// <summary>Iterations left: 1 without REP.</summary>
    private static ulong Count(CpuState* c, Op* op, ulong mask) => Repeats(op) ? c->Gpr[Rcx] & mask : 1;

    /// <summary>Whether the loop has to stop at this iteration boundary: a kick, or a trap after each iteration.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool MustStop(CpuState* c) =>
        Volatile.Read(ref c->ExitRequest) != 0 || (c->Rflags & Rflags.TF) != 0 || c->HostSingleStep != 0 || c->PendingDebug != 0 || c->TimerDeadline != 0
            && DeadlineTimer.MustLook(c);

    private static OpResult Movs<T>(LogicalProcessor p, CpuState* c, Op* op) where T : IWidth
    {
        StringRun run = new(c, op, T.Bytes);
        ZeroExtend(p, c, op, ref c->Gpr[Rsi], ref c->Gpr[Rdi]);
        for (ulong count = Count(c, op, run.Mask); count != 0;)
        {
            ulong n = 1;
            byte* source = run.Direct(p.Access, c, Rsi, op->Seg, false, count, ref n), target = source != null
                ? run.Direct(p.Access, c, Rdi, SegmentIndex.ES, true, count, ref n) : null;
            ulong moved = 0;
            if (target != null)
            {
                moved = CopyRun(source, target, n, T.Bytes, run.Step);
                run.Written(p.Access, c, target, n);
            }
            if (moved != 0)
                n = moved;
            else
            {
                // Memory that is gone is met again here, by one element.
                n = 1;
                if (!MoveOne<T>(p, c, op, ref run))
                    return OpResult.Fault;
            }
            run.Advance(c, Rsi, n);
            run.Advance(c, Rdi, n);
            count = run.CountDown(p.Access, c, op, count, n);
            if (count != 0 && MustStop(c))
                return End(c, op, false);
        }
        return End(c, op, true);
    }

    private static bool MoveOne<T>(LogicalProcessor p, CpuState* c, Op* op, ref StringRun run) where T : IWidth
    {
        // The load is complete, with the faults of its page, before the store begins.
        return LoadElement(p, c, ref run, Rsi, op->Seg, out ulong value) && run.Linear(c, Rdi, SegmentIndex.ES, AccessKind.Write, out ulong to)
            && StoreOne(p, c, to, T.Bytes, value);
    }

    private static bool StoreOne(LogicalProcessor p, CpuState* c, ulong to, int size, ulong value)
    {
        byte* target = p.Access.WritePtr(c, to, size);
        if (target == null)
            return false;
        SlowOperands.Store(target, size, value);
        return p.Access.EndWrite(c, target, to, size) == OpResult.Next;
    }

    /// <summary>
    /// Copies <paramref name="n"/> elements in the order of the instruction, which shows when the ranges overlap. Returns how many; none when a copy that can
    /// be repeated failed.
    /// </summary>
    private static ulong CopyRun(byte* source, byte* target, ulong n, int size, int step)
    {
        ulong bytes = n * (ulong)size;
        if (step > 0 && (target >= source + bytes || source >= target + bytes))
            return UserCopy.TryCopy((ulong)target, (ulong)source, (nuint)bytes) ? n : 0;
        if (step > 0 && target - source >= 32)
        {
            // The ranges overlap so that the start repeats with the period target - source: copy period by period.
            ulong period = (ulong)(target - source);
            for (ulong done = 0; done < bytes; done += period)
                if (!UserCopy.TryCopy((ulong)(target + done), (ulong)(source + done), (nuint)Math.Min(period, bytes - done)))
                    return 0;
            return n;
        }
        return n - UserCopy.MoveElements(target, source, n, size, step < 0);
    }

    private static OpResult Stos<T>(LogicalProcessor p, CpuState* c, Op* op) where T : IWidth
    {
        StringRun run = new(c, op, T.Bytes);
        ZeroExtend(p, c, op, ref c->Gpr[Rdi], ref c->Gpr[Rdi]);
        for (ulong count = Count(c, op, run.Mask); count != 0;)
        {
            ulong n = 1;
            byte* target = run.Direct(p.Access, c, Rdi, SegmentIndex.ES, true, count, ref n);
            if (target != null)
            {
                FillRun(run.Step > 0 ? target : target - ((long)n - 1) * T.Bytes, (int)n, T.Bytes, c->Gpr[0]);
                run.Written(p.Access, c, target, n);
            }
            else if (!run.Linear(c, Rdi, SegmentIndex.ES, AccessKind.Write, out ulong to) || !StoreOne(p, c, to, T.Bytes, c->Gpr[0]))
                return OpResult.Fault;
            run.Advance(c, Rdi, n);
            count = run.CountDown(p.Access, c, op, count, n);
            if (count != 0 && MustStop(c))
                return End(c, op, false);
        }
        return End(c, op, true);
    }

    private static void FillRun(byte* target, int n, int size, ulong value)
    {
        switch (size)
        {
            case 1: new Span<byte>(target, n).Fill((byte)value); break;
            case 2: new Span<ushort>(target, n).Fill((ushort)value); break;
            case 4: new Span<uint>(target, n).Fill((uint)value); break;
            default: new Span<ulong>(target, n).Fill(value); break;
        }
    }

    private static OpResult Lods<T>(LogicalProcessor p, CpuState* c, Op* op) where T : IWidth
    {
        StringRun run = new(c, op, T.Bytes);
        ZeroExtend(p, c, op, ref c->Gpr[Rcx], ref c->Gpr[Rcx]);
        for (ulong count = Count(c, op, run.Mask); count != 0;)
        {
            if (!run.Linear(c, Rsi, op->Seg, AccessKind.Read, out ulong from))
                return OpResult.Fault;
            byte* source = p.Access.ReadPtr(c, from, T.Bytes);
            if (source == null)
                return OpResult.Fault;
            T.Set((byte*)c, T.Get(source));
            run.Advance(c, Rsi, 1);
            count = run.CountDown(p.Access, c, op, count, 1);
            if (count != 0 && MustStop(c))
                return End(c, op, false);
        }
        return End(c, op, true);
    }

    /// <summary>Whether a comparison with this outcome ends a repeated instruction.</summary>
    private static bool Ends(Op* op, bool equal) => (op->Flags & OpFlags.Repne) != 0 ? equal : !equal;

    private static OpResult Cmps<T>(LogicalProcessor p, CpuState* c, Op* op) where T : IWidth
    {
        StringRun run = new(c, op, T.Bytes);
        bool repeats = Repeats(op);
        ZeroExtend(p, c, op, ref c->Gpr[Rcx], ref c->Gpr[Rcx]);
        var before = new StatusBefore(c);
        for (ulong count = Count(c, op, run.Mask); count != 0;)
        {
            ulong n = 1, a, b;
            byte* first = run.Direct(p.Access, c, Rsi, op->Seg, false, count, ref n), second = first != null
                ? run.Direct(p.Access, c, Rdi, SegmentIndex.ES, false, count, ref n) : null;
            if (second != null)
            {
                ulong done = 0;
                do
                {
                    a = T.Get(first);
                    b = T.Get(second);
                    first += run.Step;
                    second += run.Step;
                    done++;
                }
                while (done < n && !Ends(op, a == b));
                n = done;
            }
            else
            {
                n = 1;
                if (!CompareOne(p, c, op, ref run, out a, out b))
                    return before.Fault(p, c);
            }
            run.Advance(c, Rsi, n);
            run.Advance(c, Rdi, n);
            Width.FlagsSub<T>(c, a, b, (a - b) & Width.Mask<T>());
            count = run.CountDown(p.Access, c, op, count, n);
            if (repeats && Ends(op, a == b))
                break;
            if (count != 0 && MustStop(c))
                return before.Stop(p, c, End(c, op, false));
        }
        return End(c, op, true);
    }

    private static bool CompareOne(LogicalProcessor p, CpuState* c, Op* op, ref StringRun run, out ulong a, out ulong b)
    {
        a = b = 0;
        // It decides which of two faults is taken.
        bool firstIsFirst = p.Model.CompareOrder switch
        {
            CompareOrder.First => true,
            CompareOrder.SecondButRepeatedBytes => run.Size == 1 && (op->Flags & OpFlags.Rep) != 0,
            _ => false,
        };
        if (firstIsFirst)
            return LoadElement(p, c, ref run, Rsi, op->Seg, out a) && LoadElement(p, c, ref run, Rdi, SegmentIndex.ES, out b);
        return LoadElement(p, c, ref run, Rdi, SegmentIndex.ES, out b) && LoadElement(p, c, ref run, Rsi, op->Seg, out a);
    }

    private static bool LoadElement(LogicalProcessor p, CpuState* c, ref StringRun run, int register, int segment, out ulong value)
    {
        value = 0;
        if (!run.Linear(c, register, segment, AccessKind.Read, out ulong linear))
            return false;
        byte* ptr = p.Access.ReadPtr(c, linear, run.Size);
        if (ptr == null)
            return false;
        value = SlowOperands.Load(ptr, run.Size);
        return true;
    }

    private static OpResult Scas<T>(LogicalProcessor p, CpuState* c, Op* op) where T : IWidth
    {
        StringRun run = new(c, op, T.Bytes);
        bool repeats = Repeats(op);
        ulong a = c->Gpr[0] & Width.Mask<T>();
        ZeroExtend(p, c, op, ref c->Gpr[Rcx], ref c->Gpr[Rcx]);
        var before = new StatusBefore(c);
        for (ulong count = Count(c, op, run.Mask); count != 0;)
        {
            ulong n = 1, b;
            byte* source = run.Direct(p.Access, c, Rdi, SegmentIndex.ES, false, count, ref n);
            if (source != null)
                b = ScanRun<T>(op, source, a, run.Step, ref n);
            else
            {
                if (!LoadElement(p, c, ref run, Rdi, SegmentIndex.ES, out b))
                    return before.Fault(p, c);
            }
            run.Advance(c, Rdi, n);
            Width.FlagsSub<T>(c, a, b, (a - b) & Width.Mask<T>());
            count = run.CountDown(p.Access, c, op, count, n);
            if (repeats && Ends(op, a == b))
                break;
            if (count != 0 && MustStop(c))
                return before.Stop(p, c, End(c, op, false));
        }
        return End(c, op, true);
    }

    /// <summary>Scans up to <paramref name="n"/> elements; returns the last one looked at and their number.</summary>
    private static ulong ScanRun<T>(Op* op, byte* source, ulong value, int step, ref ulong n) where T : IWidth
    {
        if (T.Bytes == 1 && step > 0 && n > 16)
        {
            ReadOnlySpan<byte> bytes = new(source, (int)n);
            int at = (op->Flags & OpFlags.Repne) != 0 ? bytes.IndexOf((byte)value) : bytes.IndexOfAnyExcept((byte)value);
            if (at < 0)
                return source[n - 1];
            n = (ulong)at + 1;
            return source[at];
        }
        ulong done = 0, b;
        do
        {
            b = T.Get(source);
            source += step;
            done++;
        }
        while (done < n && !Ends(op, value == b));
        n = done;
        return b;
    }
}
