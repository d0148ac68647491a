using System.Runtime.InteropServices;

namespace Ring3.Cpu;

/// <summary>
/// A segment that IRET has loaded, and the descriptor that it was made of. Of a selector and a descriptor nothing else can be made at the same levels, so it
/// holds as long as both are the same: nothing has to be forgotten.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ReturnSegment
{
    /// <summary>The descriptor, as it is in the GDT once it is marked as accessed.</summary>
    public ulong Raw;
    /// <summary>The selector + 1; 0: none yet.</summary>
    public uint Key;
    public Segment Value;
}

/// <summary>
/// By level returned to, what the last IRETs of 64-bit code of the kernel to 64-bit code have loaded from the GDT, for translated code, which looks whether
/// selector and descriptor are still those.
/// </summary>
/// <remarks>SAFETY: fields of the state.</remarks>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct ReturnSegments
{
    public ReturnSegment KernelCode, KernelStack, UserCode, UserStack;

    public static void Note(CpuState* c, int target, in Segment code, in Segment stack)
    {
        if (target is not (0 or 3) || (code.Access & (Segment.L | Segment.DB)) != Segment.L)
            return;
        Note(target == 0 ? &c->Returned.KernelCode : &c->Returned.UserCode, code);
        Note(target == 0 ? &c->Returned.KernelStack : &c->Returned.UserStack, stack);
    }

    private static void Note(ReturnSegment* to, in Segment value)
    {
        const int LocalTable = 4;
        if ((value.Access & Segment.Unusable) == 0 && (value.Selector & LocalTable) == 0)
            *to = new ReturnSegment { Raw = Descriptor.FromSegment(value), Key = value.Selector + 1u, Value = value };
    }
}
