using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>Debug traps: where they come, what keeps them back, what discards them; and the order of events in general.</summary>
public sealed unsafe class DebugTrapTests
{
    private const ulong Watched = 0x10_0000;

    private static void Watch(CpuState* c, LogicalProcessor p, int length = 3)
    {
        c->Dr0 = Watched;
        c->Dr7 = Dr.Dr7Fixed1 | 2 | 3 << 16 | (ulong)length << 18;
        p.RecomputeMode();
    }

    [Fact]
    public void OfTwoEventsTheFirstInTheTableComesFirst_WhateverElseIsBlocked()
    {
        foreach (BoundaryEvents a in Enum.GetValues<BoundaryEvents>())
            foreach (BoundaryEvents b in Enum.GetValues<BoundaryEvents>())
                for (int blocking = 0; blocking < 256; blocking++)
                {
                    bool openA = a != 0 && EventPriority.First(a, (EventBlocking)blocking) == a, openB = b != 0
                        && EventPriority.First(b, (EventBlocking)blocking) == b;
                    BoundaryEvents expected = openA && openB ? (BoundaryEvents)Math.Min((ushort)a, (ushort)b) : openA ? a : openB ? b : 0;
                    Assert.Equal(expected, EventPriority.First(a | b, (EventBlocking)blocking));
                }
    }

    [Fact]
    public void MovSs_HoldsAWatchpointBackOverOneInstruction()
    {
        int[] softwareVectors = [3, 0x40, 4];
        foreach (int vector in softwareVectors)
        {
            using SysLongHarness m = new(0, a => { a.mov(rbx, Watched); a.mov(ss, __word_ptr[rbx]); if (vector == 3) a.int3(); else a.@int((byte)vector); });
            m.H.Word(Watched) = SysLongHarness.KernelData;
            Watch(m.C, m.P);
            Assert.Equal(Vector.DB, m.RunToHandler());
            // At the first instruction of the software interrupt's handler.
            Assert.Equal(SysLongHarness.Stubs + 16 * (ulong)vector, m.Frame(0));
            Assert.Equal(1UL, m.C->Dr6 & 15);
        }
        using SysLongHarness plain = new(0, a => { a.mov(rbx, Watched); a.mov(ss, __word_ptr[rbx]); a.inc(ecx); a.inc(ecx); });
        plain.H.Word(Watched) = SysLongHarness.KernelData;
        Watch(plain.C, plain.P);
        Assert.Equal(Vector.DB, plain.RunToHandler());
        Assert.Equal(1UL, plain.C->Gpr[1]);
    }

    [Fact]
    public void MovSs_AFaultAndIcebpDiscardTheHeldTrap()
    {
        using SysLongHarness fault = new(0, a => { a.mov(rbx, Watched); a.mov(ss, __word_ptr[rbx]); a.ud2(); });
        fault.H.Word(Watched) = SysLongHarness.KernelData;
        Watch(fault.C, fault.P);
        Assert.Equal(Vector.UD, fault.RunToHandler());
        Assert.Equal((0, 0UL), (fault.C->PendingDebug, fault.C->Dr6 & 15));
        using SysLongHarness icebp = new(0, a => { a.mov(rbx, Watched); a.mov(ss, __word_ptr[rbx]); a.int1(); });
        icebp.H.Word(Watched) = SysLongHarness.KernelData;
        Watch(icebp.C, icebp.P);
        Assert.Equal(Vector.DB, icebp.RunToHandler());
        Assert.Equal((0, 0UL), (icebp.C->PendingDebug, icebp.C->Dr6 & 15));
    }

    [Fact]
    public void Sysret_ThatLoadsTheTrapFlag_TrapsBeforeTheFirstUserInstruction()
    {
        using SysLongHarness m = new(0, a => { a.mov(rcx, 0x5_0000); a.mov(r11, (ulong)(Rflags.TF | Rflags.Fixed1)); a.sysretq(); });
        m.C->Star = (ulong)(SysLongHarness.UserCode32) << 48;
        m.H.Write(0x5_0000, [0x90, 0x90]);
        Assert.Equal(Vector.DB, m.RunToHandler());
        Assert.Equal((0x5_0000UL, 0x2bUL), (m.Frame(0), m.Frame(1)));
        Assert.Equal(Dr.Dr6BS, m.C->Dr6 & Dr.Dr6BS);
    }

    [Fact]
    public void Sysret_ThatClearsTheTrapFlag_DoesNotTrap()
    {
        using SysLongHarness m = new(0, a => { a.sysretq(); });
        m.C->Star = (ulong)(SysLongHarness.UserCode32) << 48;
        m.C->Gpr[1] = 0x5_0000;
        m.C->Gpr[11] = Rflags.Fixed1;
        m.C->Rflags |= Rflags.TF;
        m.H.Write(0x5_0000, [0xcc]);
        m.SetGate(3, 0xee, 0);
        m.P.RecomputeMode();
        Assert.Equal(Vector.BP, m.RunToHandler());
    }

    [Fact]
    public void TaskSwitchTrapAndSingleStep_AreOneException_InTheNewTask()
    {
        using SysProtectedHarness m = new(0, a => { a.jmp(SysProtectedHarness.Tss2Selector, 0u); });
        ulong t = SysProtectedHarness.Tss2;
        m.Word32(t + 0x20) = 0x5_0000;
        m.Word32(t + 0x24) = 2;
        m.Word32(t + 0x38) = 0x7_0000;
        foreach (int at in (int[])[0x48, 0x50, 0x54, 0x58, 0x5c])
            m.Word32(t + (ulong)at) = SysProtectedHarness.Data;
        m.Word32(t + 0x4c) = SysProtectedHarness.Code;
        m.Word32(t + 0x64) = 1;
        m.C->Rflags |= Rflags.TF;
        m.P.RecomputeMode();
        Assert.Equal(Vector.DB, m.RunToHandler());
        Assert.Equal(0x5_0000u, m.Frame(0));
        Assert.Equal(Dr.Dr6BT | Dr.Dr6BS, m.C->Dr6 & (Dr.Dr6BT | Dr.Dr6BS));
        Assert.Equal(0, m.C->PendingDebug);
    }

    [Theory]
    [InlineData(Code.Movsb_m8_m8)]
    [InlineData(Code.Stosb_m8_AL)]
    [InlineData(Code.Lodsb_AL_m8)]
    [InlineData(Code.Scasb_AL_m8)]
    [InlineData(Code.Cmpsb_m8_m8)]
    public void RepeatedString_TrapsAfterTheIterationThatHits(Code code)
    {
        byte op = code switch { Code.Movsb_m8_m8 => 0xa4, Code.Stosb_m8_AL => 0xaa, Code.Lodsb_AL_m8 => 0xac, Code.Scasb_AL_m8 => 0xae, _ => 0xa6 };
        using SysLongHarness m = new(0, a => { a.db(0xf3, op); a.hlt(); });
        bool source = code is Code.Lodsb_AL_m8;
        m.C->Gpr[1] = 100;
        m.C->Gpr[6] = source ? Watched - 3 : 0x20_0000;
        m.C->Gpr[7] = source ? 0x20_0000 : Watched - 3;
        Watch(m.C, m.P, length: 0);
        Assert.Equal(Vector.DB, m.RunToHandler());
        Assert.Equal((96UL, CpuHarness.CodeAddress), (m.C->Gpr[1], m.Frame(0)));
        Assert.Equal(Rflags.RF, m.Frame(2) & Rflags.RF);
    }

    [Fact]
    public void Movs_FaultsOnTheSourcePageBeforeTheDestinationSegment()
    {
        using SysLongHarness m = new(0, a => { a.movsb(); });
        m.C->Gpr[6] = 0x4000_0000;
        m.C->Gpr[7] = 0x8000_0000_0000_0000;
        Assert.Equal(Vector.PF, m.RunToHandler());
    }

    [Fact]
    public void ReturnToAnOuterRing_NullsTheSelectorAndKeepsTheHiddenBase()
    {
        foreach (bool far in (bool[])[false, true])
        {
            using SysLongHarness m = new(0, a => { if (far) a.db(0x48, 0xcb); else a.iretq(); });
            ulong sp = m.C->Gpr[4] - 0x100;
            m.C->Gpr[4] = sp;
            ulong[] frame = far ? [0x5_0000, SysLongHarness.UserCode, SysLongHarness.UserStack, SysLongHarness.UserData]
                : [0x5_0000, SysLongHarness.UserCode, Rflags.Fixed1, SysLongHarness.UserStack, SysLongHarness.UserData];
            for (int i = 0; i < frame.Length; i++)
                m.H.Word(sp + 8 * (ulong)i) = frame[i];
            m.C->Gs.Base = 0x1234_5000;
            m.C->Fs.Base = 0x9999_0000;
            m.H.Write(0x5_0000, [0xcc]);
            m.SetGate(3, 0xee, 0);
            Assert.Equal(Vector.BP, m.RunToHandler());
            Assert.Equal((0, 0x1234_5000UL, 0x9999_0000UL), (m.C->Gs.Selector, m.C->Gs.Base, m.C->Fs.Base));
            Assert.NotEqual(0u, m.C->Gs.Access & Segment.Unusable);
        }
    }

    [Fact]
    public void WatchpointInALoop_IsNeverLost()
    {
        using SysLongHarness m = new(0, a =>
        {
            Label again = a.CreateLabel();
            a.mov(ebx, (int)Watched);
            a.mov(ecx, 10_000);
            a.Label(ref again);
            a.inc(__dword_ptr[rbx]);
            a.dec(ecx);
            a.jnz(again);
            a.hlt();
        });
        m.H.Write(0x2_0000, SysLongHarness.Assemble(64, 0x2_0000, a => { a.inc(r15d); a.iretq(); }));
        m.SetGate(Vector.DB, 0x8e, 0, 0x2_0000);
        m.C->Dr7 = Dr.Dr7Fixed1;
        Watch(m.C, m.P);
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(10_000UL, m.C->Gpr[15]);
    }
}
