using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>MMIO accesses: a device sees each access of an instruction exactly once, whatever else the instruction does.</summary>
public sealed unsafe class SysMmioTests
{
    private const ulong Device = 0xe0_0000;

    private static SysLongHarness Create(Action<Iced.Intel.Assembler> program)
    {
        SysLongHarness m = new(0, program);
        m.H.NestedEntry(Device) = NestedPte.MmioValue;
        m.C->Gpr[3] = Device;
        return m;
    }

    private static void Expect(SysLongHarness m, bool write, int size, ulong gpa, ulong data)
    {
        Assert.Equal(ExitReason.Mmio, m.H.Run());
        ExitInfo* e = m.H.Exit;
        Assert.Equal(write, e->IsWrite != 0);
        Assert.Equal(size, e->Size);
        Assert.Equal(gpa, e->Gpa);
        Span<byte> bytes = stackalloc byte[8];
        if (write)
        {
            ulong value = 0;
            for (int i = 0; i < size && i < 8; i++)
                value |= (ulong)e->Data[i] << (8 * i);
            Assert.Equal(data, value);
        }
        BitConverter.TryWriteBytes(bytes, data);
        m.P.CompleteMmio(bytes[..Math.Min(size, 8)]);
    }

    [Fact]
    public void ReadModifyWriteReadsAndWritesOnce()
    {
        using SysLongHarness m = Create(a => { a.add(__dword_ptr[rbx + 4], 5); a.hlt(); });
        Expect(m, false, 4, Device + 4, 100);
        Expect(m, true, 4, Device + 4, 105);
        Assert.Equal(-1, m.RunToHandler());
    }

    /// <summary>Half of the operand is memory, which must not take part twice because the device's half takes two exits.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ReadModifyWriteAcrossMemoryAndDeviceIsDoneOnce(bool locked)
    {
        using SysLongHarness m = Create(a => { (locked ? a.@lock : a).add(__dword_ptr[rbx - 1], 0x102); a.hlt(); });
        m.H.Memory[Device - 1] = 0xff;
        Expect(m, false, 3, Device, 0x10);
        Assert.Equal(ExitReason.Mmio, m.H.Run());
        Assert.Equal((3, 0x12), (m.H.Exit->Size, m.H.Exit->Data[0]));
        m.P.CompleteMmio([]);
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(1, m.H.Memory[Device - 1]);
    }

    [Fact]
    public void CopyFromDeviceToDevice()
    {
        using SysLongHarness m = Create(a => { a.mov(rsi, rbx); a.lea(rdi, __[rbx + 0x100]); a.mov(ecx, 2); a.cld(); a.rep.movsd(); a.hlt(); });
        Expect(m, false, 4, Device, 11);
        Expect(m, true, 4, Device + 0x100, 11);
        Expect(m, false, 4, Device + 4, 22);
        Expect(m, true, 4, Device + 0x104, 22);
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(0UL, m.C->Gpr[1]);
        Assert.Equal(Device + 8, m.C->Gpr[6]);
    }

    [Fact]
    public void LoopReadsTheDeviceEachTime()
    {
        using SysLongHarness m = Create(a =>
        {
            Iced.Intel.Label again = a.CreateLabel();
            a.Label(ref again);
            a.mov(eax, __dword_ptr[rbx]);
            a.test(eax, eax);
            a.jnz(again);
            a.hlt();
        });
        Expect(m, false, 4, Device, 3);
        Expect(m, false, 4, Device, 2);
        Expect(m, false, 4, Device, 0);
        Assert.Equal(-1, m.RunToHandler());
    }

    [Fact]
    public void InjectedInterruptWaitsForTheInstruction()
    {
        using SysLongHarness m = Create(a => { a.mov(__dword_ptr[rbx], 7); a.nop(); a.hlt(); });
        Expect(m, true, 4, Device, 7);
        m.C->Inject = new EventInjection { Valid = 1, Vector = 0x50, Type = EventType.External };
        Assert.Equal(0x50, m.RunToHandler());
        Assert.Equal(CpuHarness.CodeAddress + 6, m.Frame(0));
    }

    [Fact]
    public void FaultAfterAReadReportsTheFaultAndReadsAgainLater()
    {
        using SysLongHarness m = Create(a => { a.mov(rsi, rbx); a.mov(edi, 0x40000000); a.movsd(); a.hlt(); });
        m.C->ExceptionIntercepts = 1u << Vector.PF;
        Expect(m, false, 4, Device, 1);
        Assert.Equal(ExitReason.Exception, m.H.Run());
        Assert.Equal(0x4000_0000UL, m.H.Exit->Payload);
        Assert.Equal(Device, m.C->Gpr[6]);
        m.C->Gpr[7] = 0x10_0000;
        Expect(m, false, 4, Device, 2);
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(2UL, m.H.Word(0x10_0000));
    }

    [Fact]
    public void AccessHalfInRamHalfInDevice()
    {
        using SysLongHarness m = Create(a => { a.mov(rax, 0x1122334455667788); a.mov(__qword_ptr[rbx - 4], rax); a.mov(rcx, __qword_ptr[rbx - 4]); a.hlt(); });
        Expect(m, true, 4, Device, 0x1122_3344);
        Expect(m, false, 4, Device, 0x99);
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(0x99_5566_7788UL, m.C->Gpr[1]);
    }
}
