using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu.Tests;

/// <summary>A 32-bit protected-mode guest without paging: GDT with rings 0 and 3, two TSSs, an IDT whose entries each lead to their own HLT.</summary>
internal sealed unsafe class SysProtectedHarness : IDisposable
{
    public const ulong Tss = 0x2000, Tss2 = 0x2100, Tss16 = 0x2200, Gdt = 0x3000, Idt = 0x4000, Stubs = 0x6000, Esp0 = 0x6_0000, UserStack = 0x9_0000;
    public const ushort Code = 0x08, Data = 0x10, UserCode = 0x1b, UserData = 0x23, TssSelector = 0x28, Tss2Selector = 0x30, Tss16Selector = 0x38, Gate = 0x43,
        TaskGate = 0x4b, Conforming = 0x50, Code16 = 0x58, Ldt = 0x60;
    public readonly CpuHarness H;

    public CpuState* C => H.State;
    public LogicalProcessor P => H.Cpu;

    public SysProtectedHarness(int cpl, Action<Assembler> program)
    {
        H = CpuHarness.Protected32(SysLongHarness.Assemble(32, CpuHarness.CodeAddress, program), cpl);
        C->ExceptionIntercepts = 0;
        ulong[] gdt =
        [
            0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_fb00_0000_ffff, 0x00cf_f300_0000_ffff, 0x0000_8b00_2000_0067, 0x0000_8900_2100_0067,
                0x0000_8100_2200_002b,
            0, 0x0000_e500_0030_0000, 0x00cf_9f00_0000_ffff, 0x000f_9b00_0000_ffff, 0x0000_8200_5000_001f,
        ];
        for (int i = 0; i < gdt.Length; i++)
            H.Word(Gdt + 8 * (ulong)i) = gdt[i];
        C->Gdtr = new TableRegister { Base = Gdt, Limit = (uint)gdt.Length * 8 - 1 };
        C->Idtr = new TableRegister { Base = Idt, Limit = 0x7ff };
        Word32(Tss + 4) = (uint)Esp0;
        Word32(Tss + 8) = Data;
        C->Tr = new Segment { Selector = TssSelector, Base = Tss, Limit = 0x67, Access = 0x8b };
        for (int v = 0; v < 256; v++)
            SetGate(v, 0x8e);
        C->Cs.Selector = cpl == 0 ? Code : UserCode;
        for (int i = 0; i < 6; i++)
            if (i != SegmentIndex.CS)
                CpuState.SegmentAt(C, i)->Selector = cpl == 0 ? Data : UserData;
        if (cpl == 3)
            C->Gpr[4] = UserStack;
        P.RecomputeMode();
    }

    public ref uint Word32(ulong at) => ref *(uint*)(H.Memory + at);

    public void SetGate(int vector, byte access, ushort selector = Code, ulong offset = 0)
    {
        ulong at = offset != 0 ? offset : Stubs + 16 * (ulong)vector;
        H.Memory[Stubs + 16 * (ulong)vector] = 0xf4;
        H.Word(Idt + 8 * (ulong)vector) = (at & 0xffff) | (ulong)selector << 16 | (ulong)access << 40 | (at >> 16 & 0xffff) << 48;
    }

    /// <summary>A call gate at <see cref="Gate"/>.</summary>
    public void SetCallGate(ushort selector, uint offset, int parameters, byte access = 0xec) =>
        H.Word(Gdt + 0x40) = (offset & 0xffff) | (ulong)selector << 16 | (ulong)(uint)parameters << 32 | (ulong)access << 40 | (ulong)(offset >> 16) << 48;

    public int RunToHandler()
    {
        ExitReason reason = H.Run();
        Assert.True(reason == ExitReason.Hlt, $"{reason} at {C->Rip:x} gpa {H.Exit->Gpa:x}");
        ulong at = C->Rip - 1 - Stubs;
        return at < 16 * 256 && at % 16 == 0 ? (int)(at / 16) : -1;
    }

    public uint Frame(int n) => Word32(C->Ss.Base + (uint)C->Gpr[4] + 4 * (ulong)n);

    public void Dispose() => H.Dispose();
}
