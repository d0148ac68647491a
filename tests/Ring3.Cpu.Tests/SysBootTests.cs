using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>A start-up IPI's way from real mode through protected mode to long mode, with nothing set by the test but CS:IP and memory.</summary>
public sealed unsafe class SysBootTests
{
    private const ulong Trampoline = 0x8000, Gdt = 0x9000, Gdtr = 0x9100, Idtr = 0x9110, Idt = 0xb000, Code32 = 0xa000, Code64 = 0xa800, Root = 0x2_0000,
        Tss = 0x9200;

    [Fact]
    public void RealModeToLongMode()
    {
        using CpuHarness h = CpuHarness.Real16([]);
        CpuState* c = h.State;
        c->ExceptionIntercepts = 0;
        h.Cpu.Reset(true);
        c->Cs.Selector = (ushort)(Trampoline >> 4);
        c->Cs.Base = Trampoline;
        c->Rip = 0;
        h.Cpu.RecomputeMode();
        Tables(h);
        h.Write(Trampoline, SysLongHarness.Assemble(16, 0, a =>
        {
            a.cli();
            a.mov(ax, cs);
            a.mov(ds, ax);
            a.db(0x66);
            a.lgdt(__[(short)(Gdtr - Trampoline)]);
            a.mov(eax, cr0);
            a.or(eax, 1);
            a.mov(cr0, eax);
            a.db(0x66, 0xea, 0x00, 0xa0, 0x00, 0x00, 0x08, 0x00); // jmp 08:0000a000
        }));
        h.Write(Code32, SysLongHarness.Assemble(32, Code32, a =>
        {
            a.mov(eax, 0x10);
            a.mov(ds, ax);
            a.mov(ss, ax);
            a.mov(es, ax);
            a.mov(esp, 0x7000);
            a.push(0x1234);
            a.pop(edi);
            a.mov(eax, cr4);
            a.or(eax, (int)(Cr4.PAE | Cr4.PGE));
            a.mov(cr4, eax);
            a.mov(eax, (int)Root);
            a.mov(cr3, eax);
            a.mov(ecx, unchecked((int)Msr.EFER));
            a.rdmsr();
            a.or(eax, (int)(Efer.LME | Efer.NXE | Efer.SCE));
            a.wrmsr();
            a.mov(eax, cr0);
            a.or(eax, unchecked((int)(Cr0.PG | Cr0.WP)));
            a.mov(cr0, eax);
            a.db(0xea, 0x00, 0xa8, 0x00, 0x00, 0x18, 0x00); // jmp 18:0000a800
        }));
        h.Write(Code64, SysLongHarness.Assemble(64, Code64, a =>
        {
            Label next = a.CreateLabel();
            a.mov(eax, 0x28);
            a.ltr(ax);
            a.str(r8d);
            a.lidt(__[Idtr]);
            a.sgdt(__[0xc000]);
            a.xor(eax, eax);
            a.mov(ss, ax);
            a.mov(fs, ax);
            a.mov(ecx, unchecked((int)Msr.GS_BASE));
            a.mov(eax, 0xc000);
            a.xor(edx, edx);
            a.wrmsr();
            a.mov(r9w, __word_ptr.gs[0]);
            // Far return to the same segment.
            a.push(0x18);
            a.lea(rax, __[next]);
            a.push(rax);
            a.db(0x48, 0xcb); // retfq
            a.hlt();
            a.Label(ref next);
            a.mov(rax, 0x7fff_0000_0000UL);
            a.ud2();
        }));
        h.RunToHlt();
        Assert.Equal(0xc801UL, c->Rip);
        Assert.Equal(0x1234UL, c->Gpr[7]);
        Assert.Equal(0x28UL, c->Gpr[8]);
        Assert.Equal(0x37UL, c->Gpr[9]);
        Assert.Equal(Efer.LME | Efer.LMA | Efer.NXE | Efer.SCE, c->Efer);
        Assert.Equal(BlockMode.Code64, c->BlockMode);
        Assert.Equal(0x8b00UL, h.Word(Gdt + 0x28) >> 32 & 0xff00);
        Assert.Equal(0x20UL, h.Word(Root + 0x2000) & 0x20);
    }

    private static void Tables(CpuHarness h)
    {
        ulong[] gdt = [0, 0x00cf_9a00_0000_ffff, 0x00cf_9200_0000_ffff, 0x00af_9a00_0000_ffff, 0, 0x0000_8900_9200_0067, 0];
        for (int i = 0; i < gdt.Length; i++)
            h.Word(Gdt + 8 * (ulong)i) = gdt[i];
        h.Word(Gdtr) = 0x37 | Gdt << 16;
        h.Word(Idtr) = 0xfff | Idt << 16;
        h.Word(Idt + 16 * 6) = 0xc800 | 0x18 << 16 | 0x8e00UL << 32;
        h.Write(0xc800, [0xf4]);
        h.Word(Root) = (Root + 0x1000) | 3;
        h.Word(Root + 0x1000) = (Root + 0x2000) | 3;
        for (ulong i = 0; i < 8; i++)
            h.Word(Root + 0x2000 + 8 * i) = i << 21 | 0x83;
    }

    [Fact]
    public void PowerOnState()
    {
        using CpuHarness h = CpuHarness.Real16([]);
        h.Cpu.Reset(false);
        CpuState* c = h.State;
        Assert.Equal(0xffff_0000UL, c->Cs.Base);
        Assert.Equal(0xf000, c->Cs.Selector);
        Assert.Equal(0xfff0UL, c->Rip);
        Assert.Equal(0x6000_0010UL, c->Cr0);
        Assert.Equal(2UL, Flags.Get(c));
        Assert.Equal(0x1f80u, c->Mxcsr);
        Assert.Equal(BlockMode.Code16, c->BlockMode);
        Assert.Equal(h.Cpu.CpuidFeatures.Signature, (uint)c->Gpr[2]);
    }
}
