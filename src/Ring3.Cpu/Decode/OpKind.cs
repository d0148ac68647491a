namespace Ring3.Cpu;

/// <summary>
/// Case of the run loop's switch. Everything that is not listed is <see cref="Generic"/>: a call of the op's handler.
/// Names: R register, M memory (64-bit address without segment base), I immediate, in operand order; then the width. Suffix B: the address is base and
/// displacement; X: base, index, displacement. Suffix Nf: the status flags it would write are overwritten before anything can see them.
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
    Nop, MovRR64, MovRR32, MovRR8, MovRI, MovzxB, MovzxW, MovsxB64, MovsxW64, MovsxD64, MovsxB32, MovsxW32, Lea64, Lea32, LeaBase64, Cqo, Cdq, AddRR64,
    AddRI64, SubRR64, SubRI64, AndRR64, AndRI64, OrRR64, OrRI64, XorRR64, XorRI64, AdcRR64, AdcRI64, SbbRR64, SbbRI64, CmpRR64, CmpRI64, TestRR64,
    TestRI64, Inc64, Dec64, Neg64, ShlRI64, ShrRI64, SarRI64, Not64, ImulRR64, ImulRRI64, AddRR32, AddRI32, SubRR32, SubRI32, AndRR32, AndRI32, OrRR32,
    OrRI32, XorRR32, XorRI32, CmpRR32, CmpRI32, TestRR32, TestRI32, Inc32, Dec32, Neg32, ShlRI32, ShrRI32, SarRI32, Not32, ImulRR32, ImulRRI32, CmpRR8,
    CmpRI8, TestRR8, TestRI8, AddRR64Nf, AddRI64Nf, SubRR64Nf, SubRI64Nf, AndRR64Nf, AndRI64Nf, OrRR64Nf, OrRI64Nf, XorRR64Nf, XorRI64Nf, ShlRI64Nf,
    ShrRI64Nf, SarRI64Nf, ShlCl64Nf, ShrCl64Nf, SarCl64Nf, ImulRR64Nf, ImulRRI64Nf, Neg64Nf, RolRI64, RolRI64Nf, RorRI64, RorRI64Nf, ShlCl64, ShrCl64,
    SarCl64, AddRR32Nf, AddRI32Nf, SubRR32Nf, SubRI32Nf, AndRR32Nf, AndRI32Nf, OrRR32Nf, OrRI32Nf, XorRR32Nf, XorRI32Nf, ShlRI32Nf, ShrRI32Nf, SarRI32Nf,
    ShlCl32Nf, ShrCl32Nf, SarCl32Nf, ImulRR32Nf, ImulRRI32Nf, Neg32Nf, RolRI32, RolRI32Nf, RorRI32, RorRI32Nf, ShlCl32, ShrCl32, SarCl32,
    MulR64, MulxRR64, AdcxRR64, AdoxRR64, Load64B, Load32B, LoadzxWB, LoadzxBB, Load8B, LoadsxD64B, Store64B, Store32B, Store16B, Store8B, StoreI64B,
    StoreI32B, StoreI8B, Load64X, Load32X, LoadzxWX, LoadzxBX, Load8X, LoadsxD64X, Store64X, Store32X, Store16X, Store8X, StoreI64X, StoreI32X, StoreI8X,
    AddRM64, SubRM64, AndRM64, OrRM64, AdcRM64, SbbRM64, CmpRM64, CmpMR64, CmpMI64, AddMR64, AddMI64, AdcMR64, IncM64, DecM64, AddRM32, SubRM32, AndRM32,
    OrRM32, XorRM32, CmpRM32, CmpMR32, TestMR32, CmpMI32, TestMI32, AddMR32, AddMI32, IncM32, DecM32, ImulRM32, CmpMI8, CmpMR8, CmpRM8, TestMI8, MulM64,
    MulxRM64, AdcxRM64, AdoxRM64, LoadsxB64, LoadsxW64, LoadsxB32, LoadsxW32, Push64, Pop64, Push32, Pop32, Jmp, JO, JNo, JB, JAe, JZ, JNz, JBe, JA, JS,
    JNs, JP, JNp, JL, JGe, JLe, JG, Call64, Ret64, JmpR64, JmpM64, CallR64, CallM64, Call32, Ret32, JmpR32, JmpM32, CallR32, CallM32,
    /// <summary>Number of kinds.</summary>
    Last,
}
