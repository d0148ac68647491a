using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>Where memory writes meet decoded code.</summary>
/// <remarks>SAFETY: the bitmap words live as long as the machine.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>Code bitmap of a host page, for level-1 entries.</summary>
    private ulong* CodeBitsOf(byte* hostPage) => Machine.Blocks.CodeMap.BitsFor(hostPage);

    /// <summary>After a write that did not go through a level-1 hit: drops decoded code in the range, which lies in one page.</summary>
    private void CodeMayHaveChanged(byte* host, int size)
    {
        int first = (int)((nuint)host >> 6) & 63, last = (int)(((nuint)host + (nuint)size - 1) >> 6) & 63;
        ulong written = (2UL << last) - (1UL << first);
        if ((Volatile.Read(ref *CodeBitsOf(host)) & written) != 0)
            CodeOverwritten(host, size);
    }

    /// <summary>A run has left behind a store to decoded code: drops the code.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal void DropCodeOverwrittenByRun(CpuState* c)
    {
        int size = c->OverwrittenBytes;
        c->OverwrittenBytes = 0;
        CodeMayHaveChanged(c->OverwrittenHost, size);
    }

    /// <summary>Hook of the block cache: bytes that may belong to decoded blocks were written by this processor.</summary>
    partial void CodeOverwritten(byte* host, int size);
}
