using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>Segmentation, gates, virtual-8086 mode and task switches in 32-bit protected mode.</summary>
public sealed unsafe class SysProtectedModeTests
{
    private const ulong Handler = 0x2_0000;

    [Fact]
    public void InterruptToInnerRingUsesTheTss()
    {
        using SysProtectedHarness m = new(3, a => a.@int(0x80));
        m.SetGate(0x80, 0xee);
        Assert.Equal(0x80, m.RunToHandler());
        Assert.Equal(SysProtectedHarness.Esp0 - 20, m.C->Gpr[4]);
        Assert.Equal((uint)CpuHarness.CodeAddress + 2, m.Frame(0));
        Assert.Equal((uint)SysProtectedHarness.UserCode, m.Frame(1));
        Assert.Equal((uint)SysProtectedHarness.UserStack, m.Frame(3));
        Assert.Equal((uint)SysProtectedHarness.UserData, m.Frame(4));
        Assert.Equal(SysProtectedHarness.Data, m.C->Ss.Selector);
    }

    [Fact]
    public void SegmentLoadsAreChecked()
    {
        (ushort Selector, byte Vector, uint Code)[] cases =
        [
            (SysProtectedHarness.Data, Vector.GP, 0x10), // DPL 0 from CPL 3
            (0x200, Vector.GP, 0x200), // beyond the table
            (SysProtectedHarness.TssSelector | 3, Vector.GP, 0x28),
            (0x0c, Vector.GP, 0x0c), // LDT without LDTR
        ];
        foreach ((ushort selector, byte vector, uint code) in cases)
        {
            using SysProtectedHarness m = new(3, a => { a.mov(eax, selector); a.mov(ds, ax); });
            Assert.Equal(vector, m.RunToHandler());
            Assert.Equal(code, m.Frame(0));
            Assert.Equal(SysProtectedHarness.UserData, m.C->Ds.Selector);
        }
        using SysProtectedHarness absent = new(0, a => { a.mov(eax, 0x10); a.mov(es, ax); });
        absent.H.Memory[SysProtectedHarness.Gdt + 0x15] = 0x13;
        Assert.Equal(Vector.NP, absent.RunToHandler());
        using SysProtectedHarness nullStack = new(0, a => { a.xor(eax, eax); a.mov(ss, ax); });
        Assert.Equal(Vector.GP, nullStack.RunToHandler());
    }

    [Fact]
    public void NullSegmentFaultsWhenUsedAndAccessedBitIsSet()
    {
        using SysProtectedHarness m = new(0, a =>
            { a.xor(eax, eax); a.mov(ds, ax); a.mov(eax, 0x20); a.mov(es, ax); a.mov(al, __byte_ptr.es[0x100000]); a.mov(al, __byte_ptr[0x100000]); });
        m.H.Memory[SysProtectedHarness.Gdt + 0x25] = 0xf2;
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal(0xf3, m.H.Memory[SysProtectedHarness.Gdt + 0x25]);
        Assert.Equal(0u, m.Frame(0));
    }

    [Fact]
    public void CallGateCopiesParametersAndRetReleasesThem()
    {
        using SysProtectedHarness m = new(3, a =>
        {
            a.push(0x1111);
            a.push(0x2222);
            a.db(0x9a, 0, 0, 0, 0, (byte)SysProtectedHarness.Gate, 0); // call 43:0
            a.mov(ebx, esp);
            a.@int(0x80);
        });
        m.SetGate(0x80, 0xee);
        m.SetCallGate(SysProtectedHarness.Code, (uint)Handler, 2);
        m.H.Write(Handler, SysLongHarness.Assemble(32, Handler, a => { a.mov(ecx, __[esp + 8]); a.mov(edx, __[esp + 12]); a.mov(esi, esp); a.mov(edi,
            cs); a.db(0xca, 8, 0); }));
        Assert.Equal(0x80, m.RunToHandler());
        Assert.Equal(0x2222UL, m.C->Gpr[1]);
        Assert.Equal(0x1111UL, m.C->Gpr[2]);
        Assert.Equal(SysProtectedHarness.Esp0 - 24, m.C->Gpr[6]);
        Assert.Equal((ulong)SysProtectedHarness.Code, m.C->Gpr[7]);
        Assert.Equal(SysProtectedHarness.UserStack, m.C->Gpr[3]);
        Assert.Equal((uint)SysProtectedHarness.UserCode, m.Frame(1));
    }

    [Fact]
    public void FarReturnToOuterRingDropsInnerSegments()
    {
        using SysProtectedHarness m = new(0, a =>
        {
            Label user = a.CreateLabel();
            a.push(SysProtectedHarness.UserData);
            a.push(0x90000);
            a.push(SysProtectedHarness.UserCode);
            a.push(0x11000);
            a.db(0xcb);
        });
        m.H.Write(0x1_1000, SysLongHarness.Assemble(32, 0x1_1000, a => { a.mov(ax, ds); a.mov(ebx, cs); a.@int(0x80); }));
        m.SetGate(0x80, 0xee);
        Assert.Equal(0x80, m.RunToHandler());
        Assert.Equal(0UL, m.C->Gpr[0] & 0xffff);
        Assert.Equal((ulong)SysProtectedHarness.UserCode, m.C->Gpr[3]);
        Assert.Equal(0x9_0000u, m.Frame(3));
    }

    [Fact]
    public void VirtualModeRoundTrip()
    {
        using SysProtectedHarness m = new(0, a =>
        {
            a.push(0x5000); // GS
            a.push(0x4000); // FS
            a.push(0x3000); // DS
            a.push(0x2000); // ES
            a.push(0x7000); // SS
            a.push(0x1000); // ESP
            a.push((int)(Rflags.VM | Rflags.IF | Rflags.Fixed1));
            a.push(0x1100); // CS
            a.push(0x20); // EIP
            a.iretd();
        });
        m.H.Write(0x1_1020, SysLongHarness.Assemble(16, 0x20, a => { a.mov(ax, cs); a.mov(bx, ds); a.push(bx); a.mov(__byte_ptr[0x10], 0x5a); a.cli(); }));
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal(0x1100UL, m.C->Gpr[0] & 0xffff);
        Assert.Equal(0x3000UL, m.C->Gpr[3] & 0xffff);
        Assert.Equal(0x5a, m.H.Memory[0x3_0010]);
        Assert.Equal(0x3000, *(ushort*)(m.H.Memory + 0x7_0ffe));
        Assert.Equal(SysProtectedHarness.Esp0 - 40, m.C->Gpr[4]);
        Assert.Equal(0x1100u, m.Frame(2));
        Assert.Equal((uint)(Rflags.VM | Rflags.IF), m.Frame(3) & (uint)(Rflags.VM | Rflags.IF));
        Assert.Equal(0xffeu, m.Frame(4));
        Assert.Equal(0x7000u, m.Frame(5));
        Assert.Equal(0x2000u, m.Frame(6));
        Assert.Equal(0x5000u, m.Frame(9));
        Assert.Equal(0u, m.C->Ds.Selector);
        Assert.Equal(0UL, m.C->Rflags & Rflags.VM);
    }

    [Fact]
    public void SoftwareInterruptInVirtualModeNeedsIopl()
    {
        using SysProtectedHarness m = new(0, a =>
        {
            for (int i = 0; i < 4; i++)
                a.push(0);
            a.push(0x7000);
            a.push(0x1000);
            a.push((int)(Rflags.VM | Rflags.Fixed1));
            a.push(0x1100);
            a.push(0);
            a.iretd();
        });
        m.H.Write(0x1_1000, [0xcd, 0x80]);
        m.SetGate(0x80, 0xee);
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal(0u, m.Frame(0));
    }

    private static void FillTss(SysProtectedHarness m, ulong tss, uint eip, uint flags = 2)
    {
        m.Word32(tss + 0x20) = eip;
        m.Word32(tss + 0x24) = flags;
        m.Word32(tss + 0x38) = 0x5_0000; // ESP
        m.Word32(tss + 0x34) = 0x77; // EBX
        m.Word32(tss + 0x48) = m.Word32(tss + 0x50) = m.Word32(tss + 0x54) = m.Word32(tss + 0x58) = m.Word32(tss + 0x5c) = SysProtectedHarness.Data;
        m.Word32(tss + 0x4c) = SysProtectedHarness.Code;
    }

    [Fact]
    public void TaskCallAndReturn()
    {
        using SysProtectedHarness m = new(0, a =>
        {
            a.mov(esi, 0x1234);
            a.db(0x9a, 0, 0, 0, 0, (byte)SysProtectedHarness.Tss2Selector, 0);
            a.mov(edi, 0x55);
            a.hlt();
        });
        FillTss(m, SysProtectedHarness.Tss2, (uint)Handler);
        m.H.Write(Handler, SysLongHarness.Assemble(32, Handler, a =>
            { a.mov(__dword_ptr[0x100000], ebx); a.str(ax); a.mov(__word_ptr[0x100004], ax); a.pushfd(); a.pop(__dword_ptr[0x100008]); a.iretd(); }));
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(0x77u, m.Word32(0x10_0000));
        Assert.Equal(SysProtectedHarness.Tss2Selector, (ushort)m.Word32(0x10_0004));
        Assert.Equal((uint)Rflags.NT, m.Word32(0x10_0008) & (uint)Rflags.NT);
        Assert.Equal(0x1234UL, m.C->Gpr[6]);
        Assert.Equal(0x55UL, m.C->Gpr[7]);
        Assert.Equal(SysProtectedHarness.TssSelector, m.C->Tr.Selector);
        Assert.Equal((uint)SysProtectedHarness.TssSelector, m.Word32(SysProtectedHarness.Tss2));
        Assert.Equal(0x89, m.H.Memory[SysProtectedHarness.Gdt + 0x35]);
        Assert.Equal(0x8b, m.H.Memory[SysProtectedHarness.Gdt + 0x2d]);
        Assert.Equal(Cr0.TS, m.C->Cr0 & Cr0.TS);
        Assert.Equal(0UL, m.C->Rflags & Rflags.NT);
    }

    [Fact]
    public void TaskGateHandlesDoubleFaultWithErrorCode()
    {
        using SysProtectedHarness m = new(0, a => { a.xor(eax, eax); a.div(eax); });
        m.SetGate(Vector.DE, 0x0e);
        m.H.Word(SysProtectedHarness.Idt + 8 * 8) = (ulong)SysProtectedHarness.Tss2Selector << 16 | 0x8500UL << 32;
        FillTss(m, SysProtectedHarness.Tss2, (uint)Handler);
        m.H.Write(Handler, [0xf4]);
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(Handler + 1, m.C->Rip);
        Assert.Equal(0x5_0000UL - 4, m.C->Gpr[4]);
        Assert.Equal(0u, m.Frame(0));
        Assert.Equal((uint)CpuHarness.CodeAddress + 2, m.Word32(SysProtectedHarness.Tss + 0x20));
    }

    [Fact]
    public void JumpToSixteenBitTask()
    {
        using SysProtectedHarness m = new(0, a => a.db(0xea, 0, 0, 0, 0, (byte)SysProtectedHarness.Tss16Selector, 0));
        ushort* t = (ushort*)(m.H.Memory + SysProtectedHarness.Tss16);
        t[7] = 0x8000; // IP
        t[8] = 2;
        t[12] = 0x99; // BX
        t[13] = 0x4000; // SP
        t[17] = t[19] = t[20] = SysProtectedHarness.Data;
        t[18] = SysProtectedHarness.Code16;
        m.H.Write(0x8000, [0x53, 0xf4]); // push bx; hlt
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(0x8002UL, m.C->Rip);
        Assert.Equal(0x99UL, m.C->Gpr[3] & 0xffff);
        Assert.Equal(SysProtectedHarness.Tss16Selector, m.C->Tr.Selector);
        Assert.Equal(0x89, m.H.Memory[SysProtectedHarness.Gdt + 0x2d]);
        Assert.Equal(0x83, m.H.Memory[SysProtectedHarness.Gdt + 0x3d]);
    }

    [Fact]
    public void InvalidSegmentOfNewTaskFaultsInTheNewTask()
    {
        using SysProtectedHarness m = new(0, a => a.db(0xea, 0, 0, 0, 0, (byte)SysProtectedHarness.Tss2Selector, 0));
        FillTss(m, SysProtectedHarness.Tss2, (uint)Handler);
        m.Word32(SysProtectedHarness.Tss2 + 0x54) = SysProtectedHarness.TssSelector;
        m.SetGate(Vector.TS, 0x85, SysProtectedHarness.TaskGate & 0xfff8);
        m.SetGate(Vector.TS, 0x8e);
        Assert.Equal(Vector.TS, m.RunToHandler());
        Assert.Equal((uint)SysProtectedHarness.TssSelector, m.Frame(0));
        Assert.Equal((uint)Handler, m.Frame(1));
        Assert.Equal(SysProtectedHarness.Tss2Selector, m.C->Tr.Selector);
    }

    [Fact]
    public void LarLslVerrArpl()
    {
        using SysProtectedHarness m = new(3, a =>
        {
            a.mov(eax, SysProtectedHarness.UserCode);
            a.lar(ebx, eax);
            a.lsl(ecx, eax);
            a.mov(edx, SysProtectedHarness.Data);
            a.mov(esi, 0x77);
            a.lar(esi, edx);
            a.setz(dl);
            a.mov(edi, 0x20);
            a.arpl(di, ax);
            a.verw(ax);
            a.setz(dh);
            a.@int(0x80);
        });
        m.SetGate(0x80, 0xee);
        Assert.Equal(0x80, m.RunToHandler());
        Assert.Equal(0x00cf_fb00UL, m.C->Gpr[3]);
        Assert.Equal(0xffff_ffffUL, m.C->Gpr[1]);
        Assert.Equal(0x77UL, m.C->Gpr[6]);
        Assert.Equal(0UL, m.C->Gpr[2] & 0xffff);
        Assert.Equal(0x23UL, m.C->Gpr[7]);
    }

    [Fact]
    public void PaePagingLoadsPointersWithCr3()
    {
        using SysProtectedHarness m = new(0, a =>
        {
            a.mov(eax, 0x20000);
            a.mov(cr3, eax);
            a.mov(eax, (int)Cr4.PAE);
            a.mov(cr4, eax);
            a.mov(eax, cr0);
            a.or(eax, unchecked((int)Cr0.PG));
            a.mov(cr0, eax);
            a.mov(ebx, __dword_ptr[0x40100000]);
            a.mov(ecx, unchecked((int)0x80000000));
            a.mov(eax, __dword_ptr[ecx]);
        });
        ulong root = 0x2_0000;
        m.H.Word(root) = (root + 0x1000) | 1;
        m.H.Word(root + 8) = (root + 0x1000) | 1;
        for (ulong i = 0; i < 8; i++)
            m.H.Word(root + 0x1000 + 8 * i) = i << 21 | 0x83;
        m.Word32(0x10_0000) = 0xabcd;
        Assert.Equal(Vector.PF, m.RunToHandler());
        Assert.Equal(0xabcdUL, m.C->Gpr[3]);
        Assert.Equal(0x8000_0000UL, m.C->Cr2);
        Assert.Equal(0u, m.Frame(0));
    }
}
