using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>Exits to the client: their contents, and what the client's answer does to the guest.</summary>
public sealed unsafe class ExitTests
{
    [Fact]
    public void PortWriteAndRead_CarryDataBothWays()
    {
        using TestGuest g = new();
        // mov eax, 0x12345678; out 0x80, eax; in al, 0x81; out 0xf4, al
        g.Load(0xb8, 0x78, 0x56, 0x34, 0x12, 0xe7, 0x80, 0xe4, 0x81, 0xe6, 0xf4);
        Assert.Equal(KVM_EXIT_IO, g.Run());
        kvm_run* run = g.Cpu.KvmRun;
        Assert.Equal((1, 4, 0x80, 1u), (run->io.direction, run->io.size, run->io.port, run->io.count));
        Assert.Equal(0x12345678u, *(uint*)((byte*)run + run->io.data_offset));
        Assert.Equal(KVM_EXIT_IO, g.Run());
        Assert.Equal((0, 1, 0x81), (run->io.direction, run->io.size, run->io.port));
        *((byte*)run + run->io.data_offset) = 0x5a;
        Assert.Equal(0x5a, g.RunToEnd());
    }

    [Fact]
    public void StringOutput_ComesOneElementAnExit()
    {
        using TestGuest g = new();
        // mov esi, 0x20000; mov ecx, 5; mov dx, 0x3f8; rep outsb; hlt
        g.Load(0xbe, 0x00, 0x00, 0x02, 0x00, 0xb9, 0x05, 0x00, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e, 0xf4);
        g.LoadAt(0x20000, "hello"u8);
        kvm_run* run = g.Cpu.KvmRun;
        List<byte> output = [];
        int exits = 0;
        for (; g.Run() == KVM_EXIT_IO; exits++)
            output.AddRange(new Span<byte>((byte*)run + run->io.data_offset, (int)run->io.count * run->io.size));
        Assert.Equal(KVM_EXIT_HLT, run->exit_reason);
        Assert.Equal("hello"u8.ToArray(), output);
        Assert.Equal(5, exits);
        Assert.Equal(0UL, g.Regs().rcx);
    }

    [Fact]
    public void StringInput_FillsGuestMemory()
    {
        using TestGuest g = new();
        // mov edi, 0x20000; mov ecx, 3; mov dx, 0x100; rep insw; hlt
        g.Load(0xbf, 0x00, 0x00, 0x02, 0x00, 0xb9, 0x03, 0x00, 0x00, 0x00, 0x66, 0xba, 0x00, 0x01, 0x66, 0xf3, 0x6d, 0xf4);
        Assert.Equal(KVM_EXIT_IO, g.Run());
        kvm_run* run = g.Cpu.KvmRun;
        int done = 0;
        while (run->exit_reason == KVM_EXIT_IO)
        {
            Assert.Equal((0, 2), (run->io.direction, run->io.size));
            for (int i = 0; i < run->io.count; i++)
                ((ushort*)((byte*)run + run->io.data_offset))[i] = (ushort)(0x1111 * ++done);
            g.Run();
        }
        Assert.Equal(3, done);
        Assert.True(g.Vm.Memory.TryRead(0x20000, out ulong value));
        Assert.Equal(0x0000_3333_2222_1111UL, value);
        Assert.Equal(0x20006UL, g.Regs().rdi);
    }

    [Fact]
    public void MmioReadAndWrite_GoToTheClient()
    {
        using TestGuest g = new();
        // mov ebx, 0xd0000000; mov rax, [rbx+8]; add rax, 1; mov [rbx+0x10], eax; hlt
        g.Load(0xbb, 0x00, 0x00, 0x00, 0xd0, 0x48, 0x8b, 0x43, 0x08, 0x48, 0x83, 0xc0, 0x01, 0x89, 0x43, 0x10, 0xf4);
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        kvm_run* run = g.Cpu.KvmRun;
        Assert.Equal((0xd0000008UL, 8u, 0), (run->mmio.phys_addr, run->mmio.len, run->mmio.is_write));
        *(ulong*)run->mmio.data = 0x1122334455667788;
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Assert.Equal((0xd0000010UL, 4u, 1), (run->mmio.phys_addr, run->mmio.len, run->mmio.is_write));
        Assert.Equal(0x55667789u, *(uint*)run->mmio.data);
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        Assert.Equal(0x1122334455667789UL, g.Regs().rax);
    }

    [Fact]
    public void WideMmio_ArrivesInFragmentsOfEightBytes()
    {
        using TestGuest g = new();
        // mov ebx, 0xd0000000; movups xmm0, [rbx]; movups [rbx+0x20], xmm0; hlt
        g.Load(0xbb, 0x00, 0x00, 0x00, 0xd0, 0x0f, 0x10, 0x03, 0x0f, 0x11, 0x43, 0x20, 0xf4);
        kvm_run* run = g.Cpu.KvmRun;
        ulong[] values = [0x0706050403020100, 0x0f0e0d0c0b0a0908];
        for (int i = 0; i < 2; i++)
        {
            Assert.Equal(KVM_EXIT_MMIO, g.Run());
            Assert.Equal((0xd0000000UL + 8UL * (uint)i, 8u, 0), (run->mmio.phys_addr, run->mmio.len, run->mmio.is_write));
            *(ulong*)run->mmio.data = values[i];
        }
        for (int i = 0; i < 2; i++)
        {
            Assert.Equal(KVM_EXIT_MMIO, g.Run());
            Assert.Equal((0xd0000020UL + 8UL * (uint)i, 8u, 1), (run->mmio.phys_addr, run->mmio.len, run->mmio.is_write));
            Assert.Equal(values[i], *(ulong*)run->mmio.data);
        }
        Assert.Equal(KVM_EXIT_HLT, g.Run());
    }

    [Fact]
    public void TripleFault_IsShutdown()
    {
        using TestGuest g = new();
        g.Cpu.GetSregs(out kvm_sregs s);
        s.idt = new() { limit = 0 };
        Assert.Equal(0, g.Cpu.SetSregs(s));
        g.Load(0x0f, 0x0b);
        Assert.Equal(KVM_EXIT_SHUTDOWN, g.Run());
    }

    [Fact]
    public void Kick_BeforeAndDuringTheRun_ReturnsEintrOnce()
    {
        using TestGuest g = new();
        g.Load(0xeb, 0xfe);
        g.Cpu.Kick();
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        Assert.Equal(KVM_EXIT_INTR, g.Cpu.KvmRun->exit_reason);
        using Timer t = new(_ => g.Cpu.Kick(), null, 20, Timeout.Infinite);
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        // With immediate_exit nothing is run, and the last exit stays readable.
        g.Cpu.KvmRun->exit_reason = KVM_EXIT_IO;
        g.Cpu.KvmRun->immediate_exit = 1;
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        Assert.Equal(KVM_EXIT_IO, g.Cpu.KvmRun->exit_reason);
    }

    [Fact]
    public void ImmediateExit_FinishesTheAccessFirst()
    {
        using TestGuest g = new();
        // in al, 0x81; hlt
        g.Load(0xe4, 0x81, 0xf4);
        g.Run();
        *((byte*)g.Cpu.KvmRun + g.Cpu.KvmRun->io.data_offset) = 0x77;
        g.Cpu.KvmRun->immediate_exit = 1;
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        Assert.Equal((0x77UL, TestGuest.Code + 2), (g.Regs().rax & 0xff, g.Regs().rip));
    }

    [Fact]
    public void DeadVm_RefusesToRun_AndOthersLive()
    {
        using TestGuest dead = new(), alive = new();
        dead.Load(0xeb, 0xfe);
        alive.Load(0xf4);
        using Timer t = new(_ => dead.Vm.BugOn(true, "test"), null, 20, Timeout.Infinite);
        Assert.Equal(-Errno.EIO, dead.Cpu.Run());
        Assert.Equal(-Errno.EIO, dead.Cpu.Run());
        Assert.Equal(-Errno.EIO, dead.Vm.SetUserMemoryRegion(1, 0, 1 << 30, 4096, 0));
        Assert.Equal(KVM_EXIT_HLT, alive.Run());
    }

    [Fact]
    public void HardwareBreakpointAndSingleStep_AreDebugExits()
    {
        using TestGuest g = new();
        g.Load(0x90, 0x90, 0x90, 0xf4);
        kvm_guest_debug d = new() { control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
        Assert.Equal(0, g.Cpu.SetGuestDebug(d));
        Assert.Equal(KVM_EXIT_DEBUG, g.Run());
        Assert.Equal((1u, TestGuest.Code + 1), (g.Cpu.KvmRun->debug.exception, g.Cpu.KvmRun->debug.pc));
        d = new() { control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP };
        d.arch.debugreg[0] = TestGuest.Code + 2;
        d.arch.debugreg[7] = 0x401;
        Assert.Equal(0, g.Cpu.SetGuestDebug(d));
        Assert.Equal(KVM_EXIT_DEBUG, g.Run());
        Assert.Equal((TestGuest.Code + 2, 1UL), (g.Cpu.KvmRun->debug.pc, g.Cpu.KvmRun->debug.dr6 & 15));
        d = default;
        Assert.Equal(0, g.Cpu.SetGuestDebug(d));
        Assert.Equal(KVM_EXIT_HLT, g.Run());
    }

    [Fact]
    public void UserSpaceMsr_ExitsWithTheClientsAnswer()
    {
        using TestGuest g = new();
        kvm_enable_cap cap = new() { cap = KVM_CAP_X86_USER_SPACE_MSR };
        cap.args[0] = KVM_MSR_EXIT_REASON_UNKNOWN;
        Assert.Equal(0, g.Vm.EnableCap(cap));
        // mov ecx, 0x12345; rdmsr; hlt
        g.Load(0xb9, 0x45, 0x23, 0x01, 0x00, 0x0f, 0x32, 0xf4);
        Assert.Equal(KVM_EXIT_X86_RDMSR, g.Run());
        Assert.Equal(0x12345u, g.Cpu.KvmRun->msr.index);
        g.Cpu.KvmRun->msr.data = 0x1_0000_0002;
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        Assert.Equal((2UL, 1UL), (g.Regs().rax, g.Regs().rdx));
    }

    [Fact]
    public void ReadOnlySlot_WriteIsMmio()
    {
        using TestGuest g = new();
        using Memory.GuestRam rom = new(4096);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, KVM_MEM_READONLY, 0x4000_0000, 4096, rom.Hva));
        *rom.Pointer = 0x42;
        // mov ebx, 0x40000000; mov al, [rbx]; inc al; mov [rbx+1], al; hlt
        g.Load(0xbb, 0x00, 0x00, 0x00, 0x40, 0x8a, 0x03, 0xfe, 0xc0, 0x88, 0x43, 0x01, 0xf4);
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        kvm_run* run = g.Cpu.KvmRun;
        Assert.Equal((0x40000001UL, 1u, 1, 0x43), (run->mmio.phys_addr, run->mmio.len, run->mmio.is_write, run->mmio.data[0]));
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        Assert.Equal(0, rom.Pointer[1]);
    }

    [Fact]
    public void SyncRegs_AreReadAndWrittenThroughTheRunArea()
    {
        using TestGuest g = new();
        // inc rax; hlt
        g.Load(0x48, 0xff, 0xc0, 0xf4);
        kvm_run* run = g.Cpu.KvmRun;
        run->kvm_valid_regs = KVM_SYNC_X86_REGS;
        run->s.regs = g.Regs();
        run->s.regs.rax = 41;
        run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        Assert.Equal((42UL, 0UL), (run->s.regs.rax, run->kvm_dirty_regs));
    }

    [Fact]
    public void CoalescedWrites_AreQueued()
    {
        using TestGuest g = new();
        Assert.Equal(0, g.Vm.RegisterCoalescedMmio(new kvm_coalesced_mmio_zone { addr = 0xd0000000, size = 0x1000 }));
        // mov ebx, 0xd0000000; mov byte [rbx], 1; mov byte [rbx+1], 2; hlt
        g.Load(0xbb, 0x00, 0x00, 0x00, 0xd0, 0xc6, 0x03, 0x01, 0xc6, 0x43, 0x01, 0x02, 0xf4);
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        kvm_coalesced_mmio_ring* ring = (kvm_coalesced_mmio_ring*)((byte*)g.Cpu.KvmRun + 2 * 4096);
        kvm_coalesced_mmio* e = (kvm_coalesced_mmio*)(ring + 1);
        Assert.Equal((0u, 2u), (ring->first, ring->last));
        Assert.Equal((0xd0000001UL, 1u, 2), (e[1].phys_addr, e[1].len, e[1].data[0]));
    }

    [Fact]
    public void SixteenBitCodeAbove64K_KeepsItsInstructionPointer()
    {
        using TestGuest g = new();
        g.Cpu.GetSregs(out kvm_sregs s);
        kvm_segment code = new() { limit = 0xffff_ffff, selector = 0x2000, @base = 0x20000, type = 11, present = 1, s = 1, g = 1 };
        (s.cs, s.cr0, s.cr4, s.efer) = (code, 0x10, 0, 0);
        Assert.Equal(0, g.Cpu.SetSregs(s));
        // jmp far away with an operand of 32 bits, as firmware does behind an SMI; there cpuid, rdmsr (EFER) and in, which the hypervisor completes;
        // out 0xf4, al.
        g.LoadAt(0x20000 + 0x100, 0x66, 0xbd, 0x00, 0x00, 0x05, 0x00, 0x66, 0xff, 0xe5);
        g.LoadAt(0x20000 + 0x50000, 0x0f, 0xa2, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0xe4, 0x81, 0xe6, 0xf4);
        g.Cpu.SetRegs(new kvm_regs { rip = 0x100, rsp = 0x8000, rflags = 2 });
        Assert.Equal(KVM_EXIT_IO, g.Run());
        Assert.Equal(0x81, g.Cpu.KvmRun->io.port);
        *((byte*)g.Cpu.KvmRun + g.Cpu.KvmRun->io.data_offset) = 0x33;
        Assert.Equal(0x33, g.RunToEnd());
        Assert.Equal(0x5000cUL, g.Regs().rip);
    }
}
