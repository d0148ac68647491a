using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>System management mode: entry, the two address spaces, RSM and what is blocked meanwhile.</summary>
public sealed unsafe class SmmTests
{
    private const ulong Smbase = 0x100_0000, SmramBytes = 0x10000;
    private const uint Msr_SMBASE = 0x9e;

    /// <summary>A guest whose SMRAM is a slot of address space 1 only, outside its RAM.</summary>
    private sealed class SmmGuest : IDisposable
    {
        public SmmGuest(params ReadOnlySpan<byte> handler)
        {
            Guest = new TestGuest(irqchip: true);
            Smram = new GuestRam(SmramBytes);
            Assert.Equal(0, Guest.Vm.SetUserMemoryRegion(1 << 16, 0, Smbase, SmramBytes, Smram.Hva));
            Assert.True(Guest.Vm.Memory.Write(Smbase + 0x8000, handler, 1));
            Assert.Equal(1, Guest.Cpu.SetMsrs([new kvm_msr_entry { index = Msr_SMBASE, data = Smbase }]));
        }

        public TestGuest Guest { get; }
        public GuestRam Smram { get; }
        public Vcpu Cpu => Guest.Cpu;

        public T Saved<T>(ulong offset) where T : unmanaged
        {
            Assert.True(Guest.Vm.Memory.TryRead(Smbase + offset, out T v, 1));
            return v;
        }

        public void Dispose()
        {
            Guest.Dispose();
            Smram.Dispose();
        }
    }

    private static kvm_vcpu_events Events(Vcpu v)
    {
        v.GetVcpuEvents(out kvm_vcpu_events e);
        return e;
    }

    [Fact]
    public void Smi_SavesTheState_RunsTheHandlerInTheOtherAddressSpace_AndRsmRestoresAll()
    {
        // mov al, 0xfe; out 0xe, al; rsm
        using SmmGuest g = new(0xb0, 0xfe, 0xe6, 0x0e, 0x0f, 0xaa);
        // mov eax, 0x1234; inc eax; out 0xf4, al
        g.Guest.Load(0xb8, 0x34, 0x12, 0, 0, 0xff, 0xc0, 0xe6, 0xf4);
        kvm_regs before = g.Guest.Regs();
        g.Cpu.GetSregs(out kvm_sregs sregs);
        g.Cpu.InjectSmi();
        Assert.Equal(KVM_EXIT_IO, g.Guest.Run());
        Assert.Equal(0x0e, g.Cpu.KvmRun->io.port);
        Assert.Equal(KVM_RUN_X86_SMM, g.Cpu.KvmRun->flags);
        Assert.Equal((1, 1), (Events(g.Cpu).smi.smm, Events(g.Cpu).nmi.masked));
        g.Cpu.GetSregs(out kvm_sregs inside);
        Assert.Equal((0UL, 0UL, Smbase, unchecked((ushort)(Smbase >> 4))), (inside.cr0 & 0x8000_0001, inside.efer, inside.cs.@base, inside.cs.selector));
        Assert.Equal((before.rip, 0x0002_0064u, sregs.cr3, sregs.efer), (g.Saved<ulong>(0xff78), g.Saved<uint>(0xfefc), g.Saved<ulong>(0xff50),
            g.Saved<ulong>(0xfed0)));
        Assert.Equal((8, 0xa09b), (g.Saved<ushort>(0xfe10), g.Saved<ushort>(0xfe12)));

        Assert.Equal(0x35, g.Guest.RunToEnd());
        Assert.Equal(0, g.Cpu.KvmRun->flags);
        g.Cpu.GetSregs(out kvm_sregs after);
        Assert.Equal((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, sregs.cs.l, sregs.gdt.@base), (after.cr0, after.cr3, after.cr4, after.efer, after.cs.l,
            after.gdt.@base));
        Assert.Equal((0, 0), (Events(g.Cpu).smi.smm, Events(g.Cpu).nmi.masked));
    }

    [Fact]
    public void SmramOfTheOtherAddressSpace_IsNotTheGuestsMemory()
    {
        using SmmGuest g = new(0x0f, 0xaa);
        // mov eax, [0x1008000]
        g.Guest.Load(0x8b, 0x04, 0x25, 0x00, 0x80, 0x00, 0x01);
        Assert.Equal(KVM_EXIT_MMIO, g.Guest.Run());
        Assert.Equal(Smbase + 0x8000, g.Cpu.KvmRun->mmio.phys_addr);
    }

    [Fact]
    public void SmiInSmm_IsLatched_AndTakenAfterRsm()
    {
        // in al, 0xe; rsm
        using SmmGuest g = new(0xe4, 0x0e, 0x0f, 0xaa);
        g.Guest.Load(0xb0, 0x07, 0xe6, 0xf4);
        g.Cpu.InjectSmi();
        Assert.Equal(KVM_EXIT_IO, g.Guest.Run());
        g.Cpu.InjectSmi();
        Assert.Equal((1, 1), (Events(g.Cpu).smi.smm, Events(g.Cpu).smi.pending));
        Assert.Equal(KVM_EXIT_IO, g.Guest.Run());
        Assert.Equal((0x0e, 1, 0), (g.Cpu.KvmRun->io.port, Events(g.Cpu).smi.smm, Events(g.Cpu).smi.pending));
        Assert.Equal(7, g.Guest.RunToEnd());
        kvm_msr_entry[] count = [new() { index = 0x34 }];
        Assert.Equal(1, g.Cpu.GetMsrs(count));
        Assert.Equal(2UL, count[0].data);
    }

    [Fact]
    public void SmiWhileAnMmioReadIsAnswered_IsTakenBehindTheInstruction()
    {
        // in al, 0xe; rsm
        using SmmGuest g = new(0xe4, 0x0e, 0x0f, 0xaa);
        // mov eax, [0x1800000]; out 0xf4, al
        g.Guest.Load(0x8b, 0x04, 0x25, 0x00, 0x00, 0x80, 0x01, 0xe6, 0xf4);
        Assert.Equal(KVM_EXIT_MMIO, g.Guest.Run());
        g.Cpu.KvmRun->mmio.data[0] = 0x29;
        g.Cpu.InjectSmi();
        Assert.Equal(1, Events(g.Cpu).smi.pending);
        uint exit = 0;
        Thread run = new(() => exit = g.Guest.Run()) { IsBackground = true };
        run.Start();
        Assert.True(run.Join(20_000), "KVM_RUN does not come back");
        Assert.Equal(KVM_EXIT_IO, exit);
        Assert.Equal((0x0e, 1, 0), (g.Cpu.KvmRun->io.port, Events(g.Cpu).smi.smm, Events(g.Cpu).smi.pending));
        Assert.Equal(0x29UL, g.Saved<ulong>(0xfff8));
        Assert.Equal(0x29, g.Guest.RunToEnd());
    }

    [Fact]
    public void SmiAndAnEventToInjectWhileAnMmioReadIsAnswered_AreTakenBehindTheInstruction()
    {
        // mov al, 'S'; out 0xe, al; rsm
        using SmmGuest g = new(0xb0, (byte)'S', 0xe6, 0x0e, 0x0f, 0xaa);
        const ulong Handler = 0x11000;
        // push rax; mov al, 'I'; out 0xe, al; pop rax; iretq
        g.Guest.SetVector(0x40, Handler).LoadAt(Handler, 0x50, 0xb0, (byte)'I', 0xe6, 0x0e, 0x58, 0x48, 0xcf);
        // mov eax, [0x1800000]; out 0xf4, al
        g.Guest.Load(0x8b, 0x04, 0x25, 0x00, 0x00, 0x80, 0x01, 0xe6, 0xf4);
        Assert.Equal(KVM_EXIT_MMIO, g.Guest.Run());
        g.Cpu.KvmRun->mmio.data[0] = 0x29;
        kvm_vcpu_events e = Events(g.Cpu);
        (e.interrupt.injected, e.interrupt.nr) = (1, 0x40);
        Assert.Equal(0, g.Cpu.SetVcpuEvents(e));
        g.Cpu.InjectSmi();
        Assert.Equal(1, Events(g.Cpu).smi.pending);
        // Waking evaluates what is to be injected, though the instruction has not ended.
        Assert.Equal(0, g.Cpu.SetMpState(new kvm_mp_state { mp_state = KVM_MP_STATE_HALTED }));
        List<byte> seen = [];
        int last = 0;
        Thread run = new(() => last = g.Guest.RunToEnd(output: seen)) { IsBackground = true };
        run.Start();
        Assert.True(run.Join(20_000), "KVM_RUN does not come back");
        Assert.Equal((0x29, "SI"), (last, string.Concat(seen.Select(b => (char)b))));
    }

    [Fact]
    public void NmiInSmm_WaitsForRsm()
    {
        using SmmGuest g = new(0xe4, 0x0e, 0x0f, 0xaa);
        g.Guest.SetVector(2, 0x11000).LoadAt(0x11000, 0xb0, 0x09, 0xe6, 0xf4).Load(0xb0, 0x07, 0xe6, 0xf4);
        g.Cpu.InjectSmi();
        Assert.Equal(KVM_EXIT_IO, g.Guest.Run());
        g.Cpu.InjectNmi();
        Assert.Equal(9, g.Guest.RunToEnd());
    }

    [Fact]
    public void InitInSmm_IsLatched_AndReported()
    {
        using SmmGuest g = new(0xe4, 0x0e, 0x0f, 0xaa);
        g.Guest.Load(0xb0, 0x07, 0xe6, 0xf4);
        g.Cpu.InjectSmi();
        Assert.Equal(KVM_EXIT_IO, g.Guest.Run());
        g.Cpu.Inbox.RaiseInit();
        Assert.Equal(1, Events(g.Cpu).smi.latched_init);
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetMpState(new kvm_mp_state { mp_state = KVM_MP_STATE_INIT_RECEIVED }));
        g.Cpu.KvmRun->immediate_exit = 1;
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        Assert.Equal(1, Events(g.Cpu).smi.smm);
        // After RSM the boot processor starts at the reset vector, where this guest has no memory: the fetch cannot be emulated.
        g.Cpu.KvmRun->immediate_exit = 0;
        Assert.Equal(KVM_EXIT_INTERNAL_ERROR, g.Guest.Run());
        Assert.Equal(0xfff0UL, g.Guest.Regs().rip);
        Assert.Equal((0, 0), (Events(g.Cpu).smi.smm, Events(g.Cpu).smi.latched_init));
    }

    [Theory]
    [InlineData(0xff58, 0x8000_0000UL)] // CR0: paging without protection
    [InlineData(0xff48, 1UL << 30)] // CR4: a bit nobody has
    [InlineData(0xff60, 1UL << 32)] // DR7: high half
    [InlineData(0xfed0, 1UL << 40)] // EFER: a bit nobody has
    public void RsmToAnImpossibleState_IsATripleFault(int offset, ulong value)
    {
        using SmmGuest g = new(0xe4, 0x0e, 0x0f, 0xaa);
        g.Guest.Load(0xb0, 0x07, 0xe6, 0xf4);
        g.Cpu.InjectSmi();
        Assert.Equal(KVM_EXIT_IO, g.Guest.Run());
        Assert.True(g.Guest.Vm.Memory.TryWrite(Smbase + (ulong)offset, value, 1));
        Assert.Equal(KVM_EXIT_SHUTDOWN, g.Guest.Run());
    }

    [Fact]
    public void HandlerMovesSmbase_AndTheNextSmiUsesIt()
    {
        // mov dword [cs:0xff00], 0x1001000 (with operand size prefix); rsm
        using SmmGuest g = new(0x2e, 0x66, 0xc7, 0x06, 0x00, 0xff, 0x00, 0x10, 0x00, 0x01, 0x0f, 0xaa);
        g.Guest.Load(0xb0, 0x07, 0xe6, 0xf4);
        g.Cpu.InjectSmi();
        Assert.Equal(7, g.Guest.RunToEnd());
        kvm_msr_entry[] msr = [new() { index = Msr_SMBASE }];
        Assert.Equal(1, g.Cpu.GetMsrs(msr));
        Assert.Equal(0x100_1000UL, msr[0].data);
    }

    [Fact]
    public void GuestWithoutLongMode_UsesThe32BitMap()
    {
        using SmmGuest g = new(0xe4, 0x0e, 0x0f, 0xaa);
        kvm_cpuid_entry2[] cpuid = SupportedCpuid.Entries.ToArray();
        for (int i = 0; i < cpuid.Length; i++)
            if (cpuid[i].function == 0x8000_0001)
                cpuid[i].edx &= ~(1u << 29);
        Assert.Equal(0, g.Cpu.SetCpuid2(cpuid));
        kvm_segment code = new() { limit = 0xffff_ffff, selector = 8, type = 11, present = 1, s = 1, db = 1, g = 1 },
            data = new() { limit = 0xffff_ffff, selector = 16, type = 3, present = 1, s = 1, db = 1, g = 1 };
        g.Cpu.GetSregs(out kvm_sregs s);
        (s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.cr0, s.cr3, s.cr4, s.efer) = (code, data, data, data, data, data, 0x33, 0, 0, 0);
        Assert.Equal(0, g.Cpu.SetSregs(s));
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rbx = 0x1122_3344, rflags = 2 });
        // mov al, bl; out 0xf4, al
        g.Guest.Load(0x88, 0xd8, 0xe6, 0xf4);
        g.Cpu.InjectSmi();
        Assert.Equal(KVM_EXIT_IO, g.Guest.Run());
        Assert.Equal((0x0002_0000u, (uint)TestGuest.Code, 0x1122_3344u, 0x33u, 8u, 0xc09b00u), (g.Saved<uint>(0xfefc), g.Saved<uint>(0xfff0),
            g.Saved<uint>(0xffdc), g.Saved<uint>(0xfffc), g.Saved<uint>(0xffac), g.Saved<uint>(0xff90)));
        Assert.Equal(0x44, g.Guest.RunToEnd());
    }

    [Fact]
    public void StateSavedInSmm_GoesOnInAnotherVm()
    {
        using SmmGuest g = new(0xe4, 0x0e, 0x0f, 0xaa);
        g.Guest.Load(0xb0, 0x07, 0xe6, 0xf4);
        g.Cpu.InjectSmi();
        Assert.Equal(KVM_EXIT_IO, g.Guest.Run());
        g.Cpu.KvmRun->immediate_exit = 1;
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        kvm_vcpu_events e = Events(g.Cpu);
        kvm_regs regs = g.Guest.Regs();
        g.Cpu.GetSregs(out kvm_sregs sregs);

        using SmmGuest h = new(0xe4, 0x0e, 0x0f, 0xaa);
        h.Guest.Load(0xb0, 0x07, 0xe6, 0xf4);
        byte[] area = new byte[512];
        Assert.True(g.Guest.Vm.Memory.Read(Smbase + 0xfe00, area, 1) && h.Guest.Vm.Memory.Write(Smbase + 0xfe00, area, 1));
        Assert.Equal(0, h.Cpu.SetSregs(sregs));
        h.Cpu.SetRegs(regs);
        Assert.Equal(0, h.Cpu.SetVcpuEvents(e));
        Assert.Equal(7, h.Guest.RunToEnd());
    }

    [Fact]
    public void SmiWakesAHaltedProcessor_WhichStaysAwakeBehindItsHlt()
    {
        using SmmGuest g = new(0x0f, 0xaa);
        // hlt; mov al, 7; out 0xf4, al
        g.Guest.Load(0xf4, 0xb0, 0x07, 0xe6, 0xf4);
        g.Cpu.KvmRun->immediate_exit = 0;
        var thread = new Thread(() => Assert.Equal(7, g.Guest.RunToEnd()));
        thread.Start();
        SpinWait.SpinUntil(() => g.Cpu.Requests.IsBlocked, 5000);
        g.Cpu.InjectSmi();
        Assert.True(thread.Join(5000));
    }

    [Fact]
    public void RsmOutsideSmm_IsUndefined()
    {
        using TestGuest g = new();
        g.SetVector(6, 0x11000).LoadAt(0x11000, 0xb0, 0x06, 0xe6, 0xf4).Load(0x0f, 0xaa);
        Assert.Equal(6, g.RunToEnd());
    }
}
