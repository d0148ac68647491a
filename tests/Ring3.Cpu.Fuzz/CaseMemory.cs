using Ring3.Host;

namespace Ring3.Differential;

/// <summary>Where a batch lives: code slots, the data pages' initial contents, inputs and outputs, laid out as tests/native/oracle.h has them.</summary>
/// <remarks>SAFETY: the memory is mapped by the derived class for the lifetime of the object; callers keep indices below
/// <see cref="Sandbox.MaxCases"/>.</remarks>
internal abstract unsafe class CaseMemory
{
    private protected byte* Base { get; init; }

    internal byte* Code => Base + SharedFile.Code;
    internal byte* Data => Base + SharedFile.Data;
    internal CaseInput* Input(int i) => (CaseInput*)(Base + SharedFile.Inputs) + i;
    internal CaseOutput* Output(int i) => (CaseOutput*)(Base + SharedFile.Outputs) + i;
    /// <summary>Where the jump behind every instruction leads; the guest does not map it.</summary>
    internal abstract ulong ExitAddress { get; }
}

/// <summary>Memory for cases that only the machine runs.</summary>
internal sealed unsafe class LocalCaseMemory : CaseMemory, IDisposable
{
    internal LocalCaseMemory() => Base = HostMemory.Map(SharedFile.Size + 4095 & ~4095);

    /// <summary>Any address that neither side maps and that a near jump reaches.</summary>
    internal override ulong ExitAddress => 0x40_1000;

    public void Dispose() => HostMemory.Unmap(Base, SharedFile.Size + 4095 & ~4095);
}
