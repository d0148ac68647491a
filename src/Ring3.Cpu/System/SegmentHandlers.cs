using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>MOV, PUSH, POP and Lxx of segment registers.</summary>
/// <remarks>SAFETY: selectors come from registers or checked loads, and index only tables that <c>ReadDescriptor</c> bounds.</remarks>
internal static unsafe class SegmentHandlers
{
    public static OpResult MovFromSegment(LogicalProcessor p, CpuState* c, Op* op) =>
        Operands.Write16OrRegister(p, c, op, CpuState.SegmentAt(c, op->Reg1)->Selector);

    public static OpResult MovToSegment(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (op->Reg0 == SegmentIndex.CS)
            return Outcome.Raise(c, Vector.UD);
        if (!Operands.Read16(p, c, op, op->Reg1, out ushort selector) || !p.Events.LoadSegment(c, op->Reg0, selector))
            return OpResult.Fault;
        if (op->Reg0 == SegmentIndex.SS)
            c->InterruptShadow = 2;
        return Operands.EndBlock(c, op);
    }

    private static OpResult Push(LogicalProcessor p, CpuState* c, Op* op, int size)
    {
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Push(p.Access, c, size, CpuState.SegmentAt(c, op->Reg0)->Selector, size == 4 && p.Model.PushesSelectorAsWord ? 2 : size))
            return OpResult.Fault;
        EventUnit.CommitStack(c, stack);
        return OpResult.Next;
    }

    public static OpResult Push16(LogicalProcessor p, CpuState* c, Op* op) => Push(p, c, op, 2);
    public static OpResult Push32(LogicalProcessor p, CpuState* c, Op* op) => Push(p, c, op, 4);
    public static OpResult Push64(LogicalProcessor p, CpuState* c, Op* op) => Push(p, c, op, 8);

    private static OpResult Pop(LogicalProcessor p, CpuState* c, Op* op, int size)
    {
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Pop(p.Access, c, size, out ulong selector) || !p.Events.LoadSegment(c, op->Reg0, (ushort)selector))
            return OpResult.Fault;
        EventUnit.CommitStack(c, stack);
        if (op->Reg0 == SegmentIndex.SS)
            c->InterruptShadow = 2;
        return Operands.EndBlock(c, op);
    }

    public static OpResult Pop16(LogicalProcessor p, CpuState* c, Op* op) => Pop(p, c, op, 2);
    public static OpResult Pop32(LogicalProcessor p, CpuState* c, Op* op) => Pop(p, c, op, 4);
    public static OpResult Pop64(LogicalProcessor p, CpuState* c, Op* op) => Pop(p, c, op, 8);

    private static OpResult LoadFar(LogicalProcessor p, CpuState* c, Op* op, int segment, int size)
    {
        if (!LoadFarPointer(p, c, op, size, out ulong offset, out ushort selector) || !p.Events.LoadSegment(c, segment, selector))
            return OpResult.Fault;
        Operands.SetRegister(c, op->Reg0, size, offset);
        if (segment == SegmentIndex.SS)
            c->InterruptShadow = 2;
        return Operands.EndBlock(c, op);
    }

    /// <summary>Reads an m16:16, m16:32 or m16:64 operand.</summary>
    public static bool LoadFarPointer(LogicalProcessor p, CpuState* c, Op* op, int size, out ulong offset, out ushort selector)
    {
        offset = 0;
        selector = 0;
        if (!Addressing.LinearAddress(c, op, size + 2, AccessKind.Read, out ulong linear))
            return false;
        ulong high = CpuMode.Is64(c) ? linear + (ulong)size : (uint)(linear + (ulong)size);
        switch (size)
        {
            case 2:
                bool ok16 = p.Access.Load16(c, linear, out ushort v16);
                offset = v16;
                return ok16 && p.Access.Load16(c, high, out selector);
            case 4:
                bool ok32 = p.Access.Load32(c, linear, out uint v32);
                offset = v32;
                return ok32 && p.Access.Load16(c, high, out selector);
            default:
                return p.Access.Load64(c, linear, out offset) && p.Access.Load16(c, high, out selector);
        }
    }

    public static OpResult Les16(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.ES, 2);
    public static OpResult Les32(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.ES, 4);
    public static OpResult Lds16(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.DS, 2);
    public static OpResult Lds32(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.DS, 4);
    public static OpResult Lss16(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.SS, 2);
    public static OpResult Lss32(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.SS, 4);
    public static OpResult Lss64(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.SS, 8);
    public static OpResult Lfs16(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.FS, 2);
    public static OpResult Lfs32(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.FS, 4);
    public static OpResult Lfs64(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.FS, 8);
    public static OpResult Lgs16(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.GS, 2);
    public static OpResult Lgs32(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.GS, 4);
    public static OpResult Lgs64(LogicalProcessor p, CpuState* c, Op* op) => LoadFar(p, c, op, SegmentIndex.GS, 8);
}
