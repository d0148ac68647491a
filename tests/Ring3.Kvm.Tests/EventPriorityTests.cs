using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>Events that meet at one instruction boundary, and what the client sees of those that wait.</summary>
public sealed unsafe class EventPriorityTests
{
    private const ulong Handlers = 0x11000, Smbase = 0x100_0000;
    private const uint MsrSmbase = 0x9e;
    private const ulong Tf = 1 << 8, If = 1 << 9, Bs = 1 << 14;

    /// <summary>Each handler writes its letter to port 0x0e and returns; D clears TF of its frame, and sets RF there after an instruction breakpoint.</summary>
    private static void Handle(TestGuest g, int vector, char letter)
    {
        ulong at = Handlers + 0x100 * (ulong)vector;
        g.SetVector(vector, at);
        if (vector != 1)
        {
            // push rax; mov al, letter; out 0x0e, al; pop rax; iretq
            g.LoadAt(at, 0x50, 0xb0, (byte)letter, 0xe6, 0x0e, 0x58, 0x48, 0xcf);
            return;
        }
        // push rax; mov al, letter; out 0x0e, al; and dword [rsp + 24], ~TF; mov rax, dr6; test al, 1; jz +8; or dword [rsp + 24], RF; xor eax, eax;
        // mov dr6, rax; pop rax; iretq
        g.LoadAt(at, 0x50, 0xb0, (byte)letter, 0xe6, 0x0e, 0x81, 0x64, 0x24, 0x18, 0xff, 0xfe, 0xff, 0xff, 0x0f, 0x21, 0xf0, 0xa8, 1, 0x74, 8, 0x81, 0x4c, 0x24,
            0x18, 0, 0, 1, 0, 0x31, 0xc0, 0x0f, 0x23, 0xf0, 0x58, 0x48, 0xcf);
    }

    /// <summary>
    /// S: SMI, D: single step, N: NMI, I: interrupt, B: instruction breakpoint, whose letter is D. An NMI that comes second is taken at the first
    /// instruction of the #DB's handler, before that writes.
    /// </summary>
    [Theory]
    [InlineData("SD", "SD")]
    [InlineData("SN", "SN")]
    [InlineData("SI", "SI")]
    [InlineData("SB", "SD")]
    [InlineData("DN", "ND")]
    [InlineData("DI", "DI")]
    [InlineData("DB", "DD")]
    [InlineData("NI", "NI")]
    [InlineData("NB", "ND")]
    [InlineData("IB", "ID")]
    [InlineData("SDNIB", "SNDID")]
    public void AtOneBoundary_EventsComeInTheOrderOfTheManual(string all, string expected)
    {
        using TestGuest g = new(irqchip: true);
        using GuestRam smram = new(0x10000);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1 << 16, 0, Smbase, 0x10000, smram.Hva));
        // mov al, 'S'; out 0x0e, al; rsm
        Assert.True(g.Vm.Memory.Write(Smbase + 0x8000, [0xb0, (byte)'S', 0xe6, 0x0e, 0x0f, 0xaa], 1));
        Assert.Equal(1, g.Cpu.SetMsrs([new kvm_msr_entry { index = MsrSmbase, data = Smbase }]));
        Assert.Equal(0, g.Cpu.GetLapic(out kvm_lapic_state lapic));
        lapic.regs[0xf1] |= 1;
        Assert.Equal(0, g.Cpu.SetLapic(lapic));
        Handle(g, 1, 'D');
        Handle(g, 2, 'N');
        Handle(g, 0x40, 'I');
        // in al, 0x80; nop; mov al, 0; out 0xf4, al
        g.Load(0xe4, 0x80, 0x90, 0xb0, 0, 0xe6, 0xf4);
        for (int round = 0; round < 200; round++)
        {
            g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 | If | (all.Contains('D') ? Tf : 0) });
            kvm_debugregs d = new() { dr6 = 0xffff_0ff0, dr7 = all.Contains('B') ? 0x402u : 0x400u };
            d.db[0] = TestGuest.Code + 2;
            Assert.Equal(0, g.Cpu.SetDebugRegs(d));
            Assert.Equal(KVM_EXIT_IO, g.Run());
            if (all.Contains('S'))
                g.Cpu.InjectSmi();
            if (all.Contains('N'))
                g.Cpu.InjectNmi();
            if (all.Contains('I') && round == 0)
                Assert.Equal(1, g.Vm.SignalMsi(new kvm_msi { address_lo = 0xfee0_0000, data = 0x40 }));
            List<byte> seen = [];
            Assert.Equal(0, g.RunToEnd(output: seen));
            string order = new([.. seen.Select(b => (char)b)]);
            // The interrupt's handler does no EOI, so that it comes once.
            Assert.Equal(round == 0 ? expected : expected.Replace("I", ""), order);
        }
    }

    private static kvm_vcpu_events Events(Vcpu v)
    {
        v.GetVcpuEvents(out kvm_vcpu_events e);
        return e;
    }

    [Fact]
    public void HaltWithTheTrapFlag_TrapsAtOnce()
    {
        using TestGuest g = new(irqchip: true);
        Handle(g, 1, 'D');
        // hlt; mov al, 3; out 0xf4, al
        g.Load(0xf4, 0xb0, 3, 0xe6, 0xf4);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 | Tf });
        List<byte> seen = [];
        Assert.Equal(3, g.RunToEnd(output: seen));
        Assert.Equal("D"u8.ToArray(), seen);
    }

    [Fact]
    public void TrapOfAnOut_ComesUnlessTheClientMovesRip()
    {
        using TestGuest g = new();
        Handle(g, 1, 'D');
        // out 0x80, al; mov al, 3; out 0xf4, al
        g.Load(0xe6, 0x80, 0xb0, 3, 0xe6, 0xf4);
        foreach (bool move in (bool[])[false, true])
        {
            g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 | Tf });
            Assert.Equal(KVM_EXIT_IO, g.Run());
            kvm_regs r = g.Regs();
            r.rip = TestGuest.Code + 2;
            if (move)
                (r.rip, r.rflags) = (TestGuest.Code + 4, 2);
            g.Cpu.SetRegs(r);
            List<byte> seen = [];
            g.RunToEnd(output: seen);
            Assert.Equal(move ? [] : "D"u8.ToArray(), seen);
        }
    }

    [Fact]
    public void PendingTrap_IsVisible_ReplacedAndCancelled()
    {
        using TestGuest g = new();
        kvm_enable_cap cap = new() { cap = KVM_CAP_EXCEPTION_PAYLOAD };
        cap.args[0] = 1;
        Assert.Equal(0, g.Vm.EnableCap(cap));
        Handle(g, 1, 'D');
        // out 0x80, al; mov al, 3; out 0xf4, al
        g.Load(0xe6, 0x80, 0xb0, 3, 0xe6, 0xf4);
        void ToTrap()
        {
            g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 | Tf });
            Assert.Equal(KVM_EXIT_IO, g.Run());
            g.Cpu.KvmRun->immediate_exit = 1;
            Assert.Equal(-Errno.EINTR, g.Cpu.Run());
            g.Cpu.KvmRun->immediate_exit = 0;
            kvm_vcpu_events e = Events(g.Cpu);
            Assert.Equal((1, 1, 1, Bs), (e.exception.pending, e.exception.nr, e.exception_has_payload, e.exception_payload));
        }
        string Rest()
        {
            List<byte> seen = [];
            g.RunToEnd(output: seen);
            return new([.. seen.Select(b => (char)b)]);
        }
        ToTrap();
        Assert.Equal("D", Rest());
        ToTrap();
        kvm_regs r = g.Regs();
        r.rflags = 2;
        g.Cpu.SetRegs(r);
        Assert.Equal(0, Events(g.Cpu).exception.pending);
        Assert.Equal("", Rest());
        ToTrap();
        kvm_vcpu_events saved = Events(g.Cpu), none = saved;
        (none.exception.pending, none.exception_has_payload) = (0, 0);
        Assert.Equal(0, g.Cpu.SetVcpuEvents(none));
        Assert.Equal(0, Events(g.Cpu).exception.pending);
        Assert.Equal(0, g.Cpu.SetVcpuEvents(saved));
        Assert.Equal((1, Bs), (Events(g.Cpu).exception.pending, Events(g.Cpu).exception_payload));
        Assert.Equal("D", Rest());
        // Held back by MOV SS it comes behind the next instruction, the one that ends the run.
        ToTrap();
        r = g.Regs();
        r.rflags = 2;
        g.Cpu.SetRegs(r);
        saved.interrupt.shadow = KVM_X86_SHADOW_INT_MOV_SS;
        Assert.Equal(0, g.Cpu.SetVcpuEvents(saved));
        Assert.Equal((1, Bs, (byte)KVM_X86_SHADOW_INT_MOV_SS), (Events(g.Cpu).exception.pending, Events(g.Cpu).exception_payload,
            Events(g.Cpu).interrupt.shadow));
        Assert.Equal("D", Rest());
    }

    [Fact]
    public void QueuedInterrupt_IsVisible_ReplacedAndCancelled()
    {
        using TestGuest g = new();
        Handle(g, 0x21, 'I');
        // sti; nop; nop; mov al, 3; out 0xf4, al
        g.Load(0xfb, 0x90, 0x90, 0xb0, 3, 0xe6, 0xf4);
        Assert.Equal(0, g.Cpu.Interrupt(0x22));
        Assert.Equal(0, g.Cpu.Interrupt(0x21));
        Assert.Equal((1, 0x21, 0), (Events(g.Cpu).interrupt.injected, Events(g.Cpu).interrupt.nr, Events(g.Cpu).interrupt.soft));
        g.Cpu.GetSregs(out kvm_sregs s);
        Assert.Equal(1UL << 0x21, s.interrupt_bitmap[0]);
        kvm_vcpu_events with = Events(g.Cpu), without = with;
        without.interrupt.injected = 0;
        Assert.Equal(0, g.Cpu.SetVcpuEvents(without));
        g.Cpu.GetSregs(out s);
        Assert.Equal((0, 0UL), (Events(g.Cpu).interrupt.injected, s.interrupt_bitmap[0]));
        Assert.Equal(0, g.Cpu.SetVcpuEvents(with));
        List<byte> seen = [];
        Assert.Equal(3, g.RunToEnd(output: seen));
        Assert.Equal("I"u8.ToArray(), seen);
    }

    [Fact]
    public void GuestAndHostSingleStep_AreOneDebugExit()
    {
        using TestGuest g = new();
        // nop; mov eax, 1; cpuid; nop; nop
        g.Load(0x90, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x90, 0x90);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 | Tf });
        Assert.Equal(0, g.Cpu.SetGuestDebug(new kvm_guest_debug { control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP }));
        foreach (ulong offset in (ulong[])[1, 6, 8, 9])
        {
            Assert.Equal(KVM_EXIT_DEBUG, g.Run());
            Assert.Equal((TestGuest.Code + offset, 0xffff_0ff0 | Bs), (g.Cpu.KvmRun->debug.pc, g.Cpu.KvmRun->debug.dr6));
        }
    }

    [Fact]
    public void StringInput_ToADevice_ReachesIt()
    {
        using TestGuest g = new();
        // mov edi, 0x2000000 (no memory); mov ecx, 3; mov edx, 0x99; rep insw; hlt
        g.Load(0xbf, 0, 0, 0, 2, 0xb9, 3, 0, 0, 0, 0xba, 0x99, 0, 0, 0, 0x66, 0xf3, 0x6d, 0xf4);
        kvm_run* run = g.Cpu.KvmRun;
        List<(ulong, ushort)> written = [];
        ushort next = 0x1111;
        for (; ; )
        {
            uint exit = g.Run();
            if (exit == KVM_EXIT_IO)
                for (int i = 0; i < run->io.count; i++, next += 0x1111)
                    ((ushort*)((byte*)run + run->io.data_offset))[i] = next;
            else if (exit == KVM_EXIT_MMIO)
            {
                Assert.Equal((1, 2u), (run->mmio.is_write, run->mmio.len));
                written.Add((run->mmio.phys_addr, *(ushort*)run->mmio.data));
            }
            else
                break;
        }
        Assert.Equal(KVM_EXIT_HLT, run->exit_reason);
        Assert.Equal([(0x200_0000UL, (ushort)0x1111), (0x200_0002UL, (ushort)0x2222), (0x200_0004UL, (ushort)0x3333)], written);
        Assert.Equal((0UL, 0x200_0006UL), (g.Regs().rcx, g.Regs().rdi));
    }
}
