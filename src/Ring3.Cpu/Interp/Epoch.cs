namespace Ring3.Cpu;

/// <summary>Which generation of decoded blocks this processor may hold pointers into.</summary>
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>Machine epoch seen at the last entry; <see cref="long.MaxValue"/> outside the guest.</summary>
    internal long ActiveEpoch = long.MaxValue;

    partial void CodeOverwritten(byte* host, int size) => Machine.CodeWritten(host, (nuint)size);
}
