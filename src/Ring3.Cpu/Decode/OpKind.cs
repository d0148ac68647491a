namespace Ring3.Cpu;

/// <summary>
/// Case of the run loop's switch. Everything that is not listed is <see cref="Generic"/>: a call of the op's handler.
/// Names: R register, M memory (64-bit address without segment base), I immediate, in operand order; then the width. Suffix B: the address is base and displacement; X: base, index, displacement.
/// Suffix Nf: the status flags it would write are overwritten before anything can see them. Suffix J and a condition: fused with the conditional branch that follows.
/// </summary>
internal enum OpKind : ushort
{
    Generic,
    /// <summary>The block was invalidated: look the instruction at this op up anew.</summary>
    Stale,
    /// <summary>End of a block without a transfer: go on at the next instruction.</summary>
    FallThrough,
    /// <summary>The same outside 64-bit mode.</summary>
    FallThroughNarrow,
    Nop, MovRR64, MovRR32, MovRR8, MovRI, MovzxB, MovzxW, MovsxB64, MovsxW64, MovsxD64, MovsxB32, MovsxW32, Lea64, Lea32, LeaBase64, Cqo, Cdq, AddRR64, AddRI64, SubRR64, SubRI64,
    AndRR64, AndRI64, OrRR64, OrRI64, XorRR64, XorRI64, AdcRR64, AdcRI64, SbbRR64, SbbRI64, CmpRR64, CmpRI64, TestRR64, TestRI64, Inc64, Dec64, Neg64, ShlRI64, ShrRI64, SarRI64,
    Not64, ImulRR64, ImulRRI64, AddRR32, AddRI32, SubRR32, SubRI32, AndRR32, AndRI32, OrRR32, OrRI32, XorRR32, XorRI32, AdcRR32, AdcRI32, SbbRR32, SbbRI32, CmpRR32, CmpRI32,
    TestRR32, TestRI32, Inc32, Dec32, Neg32, ShlRI32, ShrRI32, SarRI32, Not32, ImulRR32, ImulRRI32, CmpRR8, CmpRI8, TestRR8, TestRI8, AddRR64Nf, AddRI64Nf, SubRR64Nf, SubRI64Nf,
    AndRR64Nf, AndRI64Nf, OrRR64Nf, OrRI64Nf, XorRR64Nf, XorRI64Nf, ShlRI64Nf, ShrRI64Nf, SarRI64Nf, ImulRR64Nf, ImulRRI64Nf, Neg64Nf, AddRR32Nf, AddRI32Nf, SubRR32Nf, SubRI32Nf,
    AndRR32Nf, AndRI32Nf, OrRR32Nf, OrRI32Nf, XorRR32Nf, XorRI32Nf, ShlRI32Nf, ShrRI32Nf, SarRI32Nf, ImulRR32Nf, ImulRRI32Nf, Neg32Nf, MulR64, MulxRR64, AdcxRR64, AdoxRR64, Load64B,
    Load32B, LoadzxWB, LoadzxBB, Load8B, LoadsxD64B, Store64B, Store32B, Store16B, Store8B, StoreI64B, StoreI32B, StoreI8B, Load64X, Load32X, LoadzxWX, LoadzxBX, Load8X, LoadsxD64X,
    Store64X, Store32X, Store16X, Store8X, StoreI64X, StoreI32X, StoreI8X, AddRM64, SubRM64, AndRM64, OrRM64, XorRM64, AdcRM64, SbbRM64, CmpRM64, CmpMR64, CmpMI64, TestMR64,
    TestMI64, AddMR64, AddMI64, SubMR64, SubMI64, AndMR64, AndMI64, OrMR64, OrMI64, XorMR64, XorMI64, AdcMR64, AdcMI64, SbbMR64, SbbMI64, IncM64, DecM64, ImulRM64, AddRM32, SubRM32,
    AndRM32, OrRM32, XorRM32, AdcRM32, SbbRM32, CmpRM32, CmpMR32, CmpMI32, TestMR32, TestMI32, AddMR32, AddMI32, SubMR32, SubMI32, AndMR32, AndMI32, OrMR32, OrMI32, XorMR32, XorMI32,
    AdcMR32, AdcMI32, SbbMR32, SbbMI32, IncM32, DecM32, ImulRM32, CmpMI8, CmpMR8, CmpRM8, TestMI8, MulM64, MulxRM64, AdcxRM64, AdoxRM64, Push64, Pop64, Jmp, JO, JNo, JB, JAe, JZ,
    JNz, JBe, JA, JS, JNs, JP, JNp, JL, JGe, JLe, JG, CmpRR64JZ, CmpRR64JNz, CmpRR64JB, CmpRR64JAe, CmpRR64JBe, CmpRR64JA, CmpRR64JL, CmpRR64JGe, CmpRR64JLe, CmpRR64JG, TestRR64JZ,
    TestRR64JNz, TestRR64JS, TestRR64JNs, TestRR64JLe, TestRR64JG, CmpRI64JZ, CmpRI64JNz, CmpRI64JB, CmpRI64JAe, CmpRI64JBe, CmpRI64JA, CmpRI64JL, CmpRI64JGe, CmpRI64JLe, CmpRI64JG,
    TestRI64JZ, TestRI64JNz, TestRI64JS, TestRI64JNs, TestRI64JLe, TestRI64JG, Dec64JZ, SubRI64JZ, AddRI64JZ, Dec64JNz, SubRI64JNz, AddRI64JNz, CmpRR32JZ, CmpRR32JNz, CmpRR32JB,
    CmpRR32JAe, CmpRR32JBe, CmpRR32JA, CmpRR32JL, CmpRR32JGe, CmpRR32JLe, CmpRR32JG, TestRR32JZ, TestRR32JNz, TestRR32JS, TestRR32JNs, TestRR32JLe, TestRR32JG, CmpRI32JZ, CmpRI32JNz,
    CmpRI32JB, CmpRI32JAe, CmpRI32JBe, CmpRI32JA, CmpRI32JL, CmpRI32JGe, CmpRI32JLe, CmpRI32JG, TestRI32JZ, TestRI32JNz, TestRI32JS, TestRI32JNs, TestRI32JLe, TestRI32JG, Dec32JZ,
    SubRI32JZ, AddRI32JZ, Dec32JNz, SubRI32JNz, AddRI32JNz, TestRR8JZ, TestRI8JZ, CmpRI8JZ, TestRR8JNz, TestRI8JNz, CmpRI8JNz, Call64, Ret64, JmpR64, JmpM64, CallR64,
    /// <summary>Number of kinds.</summary>
    Last,
}
