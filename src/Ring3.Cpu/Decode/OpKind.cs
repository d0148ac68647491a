namespace Ring3.Cpu;

/// <summary>Case of the run loop's switch. Everything that is not listed is <see cref="Generic"/>: a call of the op's handler.</summary>
internal enum OpKind : ushort
{
    Generic,
    /// <summary>The block was invalidated: look the instruction at this op up anew.</summary>
    Stale,
    /// <summary>End of a block without a transfer: go on at the next instruction.</summary>
    FallThrough,
}
