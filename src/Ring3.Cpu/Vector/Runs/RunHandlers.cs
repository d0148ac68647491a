using System.Runtime.CompilerServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Execution of runs, and the warm-up that leads to them: an op that has been executed some times tries to become the head of a run.</summary>
/// <remarks>SAFETY: ops of a block are contiguous and the last one is not a vector op, so looking ahead ends within the block.</remarks>
internal static unsafe class RunHandlers
{
    private const int Threshold = 24, CounterMask = 0xffff;

    // BENIGN-RACE: counters are shared by hash and written without synchronisation; a lost count delays a run.
    private static readonly byte* s_counters = HostMemory.Map(CounterMask + 1);

    private static byte* CounterOf(Op* op) => s_counters + ((int)((ulong)op * 0x9e3779b97f4a7c15 >> 40) & CounterMask);

    /// <summary>Executes the op alone and counts.</summary>
    public static OpResult Warm(LogicalProcessor p, CpuState* c, Op* op)
    {
        VectorForm* f = p.Forms + op->Aux;
        byte* counter = CounterOf(op);
        if (++*counter < Threshold)
            return f->Single(p, c, op);
        *counter = 0;
        return Promote(p, c, op, f);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static OpResult Promote(LogicalProcessor p, CpuState* c, Op* op, VectorForm* f)
    {
        VectorUnit.Park(c);
        delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler = f->Single;
        VectorRun* run = RunBuilder.TryBuild(p, op, out bool sse, out bool avx, out bool fp);
        if (run != null)
        {
            handler = (sse, avx) switch
            {
                (true, true) => fp ? &Execute<SseAvxGate, Yes> : &Execute<SseAvxGate, No>,
                (false, true) => fp ? &Execute<AvxGate, Yes> : &Execute<AvxGate, No>,
                _ => fp ? &Execute<SseGate, Yes> : &Execute<SseGate, No>,
            };
            // The immediate is in the form; readers of Imm take it before they see another handler than First.
            Volatile.Write(ref op->Imm, (ulong)run);
        }
        Volatile.Write(ref *(nint*)&op->Handler, (nint)handler);
        return handler(p, c, op);
    }

    private static OpResult Execute<TGate, TFp>(LogicalProcessor p, CpuState* c, Op* op) where TGate : struct, IVectorGate where TFp : struct, IFlag
    {
        VectorRun* run = (VectorRun*)op->Imm;
        if (!TGate.IsOpen(c))
            return run->Single(p, c, op);
        int done;
        if (!TFp.Value || c->MxcsrLive != 0 || MxcsrUnit.TryEnter(c))
            done = run->Entry(c, p.Paging.Level1);
        else if ((c->Mxcsr & MxcsrUnit.MaskBits) == MxcsrUnit.MaskBits)
            done = VectorSlow.Execute(p, c, run);
        else
            done = 0;
        if (c->OverwrittenBytes != 0)
            p.Paging.DropCodeOverwrittenByRun(c);
        if (done == 0)
            return run->Single(p, c, op);
        c->SkipOps = done;
        return OpResult.Skip;
    }
}

/// <summary>Both legacy SSE and VEX.</summary>
internal readonly unsafe struct SseAvxGate : IVectorGate
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsOpen(CpuState* c) => SseGate.IsOpen(c) && AvxGate.IsOpen(c);

    public static OpResult Refuse(LogicalProcessor p, CpuState* c) => SseGate.IsOpen(c) ? AvxGate.Refuse(p, c) : SseGate.Refuse(p, c);
}
