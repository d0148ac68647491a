using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>
/// A 64-bit guest with descriptor tables: every IDT entry leads to its own HLT, so that a run ends in the handler of the first event, whose frame the
/// test reads.
/// </summary>
internal sealed unsafe class SysLongHarness : IDisposable
{
    public const ulong Tss = 0x2000, Gdt = 0x3000, Idt = 0x4000, Stubs = 0x6000, Rsp0 = 0x6_0000, Ist1 = 0x7_0000, UserStack = 0x9_0000;
    public const ushort KernelCode = 0x08, KernelData = 0x10, UserCode32 = 0x1b, UserData = 0x23, UserCode = 0x2b, KernelCode32 = 0x30, TssSelector = 0x40;
    public readonly CpuHarness H;

    public CpuState* C => H.State;
    public LogicalProcessor P => H.Cpu;

    public SysLongHarness(int cpl, Action<Assembler> program, ProcessorModel? model = null)
    {
        H = CpuHarness.Long(Assemble(64, CpuHarness.CodeAddress, program), cpl, model: model);
        C->ExceptionIntercepts = 0;
        for (int v = 0; v < 256; v++)
            SetGate(v, 0x8e, 0);
        MakeTables(H, cpl);
    }

    /// <summary>GDT, TSS and what the registers have of them. The IDT has no gates.</summary>
    public static void MakeTables(CpuHarness h, int cpl)
    {
        CpuState* c = h.State;
        ulong[] gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_fb00_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff,
            0x00cf_9b00_0000_ffff, 0, 0x0000_8900_2000_0067, 0];
        for (int i = 0; i < gdt.Length; i++)
            h.Word(Gdt + 8 * (ulong)i) = gdt[i];
        c->Gdtr = new TableRegister { Base = Gdt, Limit = (uint)gdt.Length * 8 - 1 };
        c->Idtr = new TableRegister { Base = Idt, Limit = 0xfff };
        h.Word(Tss + 4) = Rsp0;
        h.Word(Tss + 0x24) = Ist1;
        c->Tr = new Segment { Selector = TssSelector, Base = Tss, Limit = 0x67, Access = 0x8b };
        c->Cs.Selector = cpl == 0 ? KernelCode : UserCode;
        c->Ss.Selector = cpl == 0 ? KernelData : UserData;
        if (cpl == 3)
            c->Gpr[4] = UserStack;
        h.Cpu.RecomputeMode();
    }

    /// <summary>Gate with type and DPL byte <paramref name="access"/>.</summary>
    public void SetGate(int vector, byte access, int ist, ulong offset = 0, ushort selector = KernelCode)
    {
        ulong at = offset != 0 ? offset : Stubs + 16 * (ulong)vector;
        H.Memory[Stubs + 16 * (ulong)vector] = 0xf4;
        H.Word(Idt + 16 * (ulong)vector) = (at & 0xffff) | (ulong)selector << 16 | (ulong)(uint)ist << 32 | (ulong)access << 40 | (at >> 16 & 0xffff) << 48;
        H.Word(Idt + 16 * (ulong)vector + 8) = at >> 32;
    }

    public static byte[] Assemble(int bits, ulong rip, Action<Assembler> program)
    {
        Assembler a = new(bits);
        program(a);
        using MemoryStream stream = new();
        a.Assemble(new StreamCodeWriter(stream), rip);
        return stream.ToArray();
    }

    /// <summary>Runs to the HLT of a handler and returns its vector; -1 for a HLT elsewhere.</summary>
    public int RunToHandler()
    {
        ExitReason reason = H.Run();
        Assert.True(reason == ExitReason.Hlt, $"{reason} at {C->Rip:x} gpa {H.Exit->Gpa:x} vector {H.Exit->Vector}");
        ulong at = C->Rip - 1 - Stubs;
        return at < 16 * 256 && at % 16 == 0 ? (int)(at / 16) : -1;
    }

    /// <summary>Word n of the frame at RSP.</summary>
    public ulong Frame(int n) => H.Word(C->Gpr[4] + 8 * (ulong)n);

    public void Dispose() => H.Dispose();
}
