using System.Diagnostics;
using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>
/// Exits that exist because the client asked for them: bus locks, windows for events that never open, accesses to the task priority register, addresses
/// beyond the guest's MAXPHYADDR.
/// </summary>
public sealed unsafe class ExitPolicyTests
{
    private const ulong Data = 0x20000;

    private static int Enable(Vm vm, int cap, ulong argument)
    {
        kvm_enable_cap c = new() { cap = (uint)cap };
        c.args[0] = argument;
        return vm.EnableCap(c);
    }

    // ---- Bus locks ----

    /// <summary>The instruction at rbx = Data + 60, behind it inc ecx, then hlt.</summary>
    private static TestGuest BusLockGuest(params byte[] instruction)
    {
        TestGuest g = new();
        // mov ebx, Data + 60; mov eax, 5; mov edx, 7
        g.Load([0xbb, 0x3c, 0x00, 0x02, 0x00, 0xb8, 5, 0, 0, 0, 0xba, 7, 0, 0, 0, .. instruction, 0xff, 0xc1, 0xf4]);
        return g;
    }

    public static TheoryData<string, byte[], bool> Accesses => new()
    {
        { "lock inc dword [rbx+2]", [0xf0, 0xff, 0x43, 0x02], true },
        { "lock add [rbx-3], rdx", [0xf0, 0x48, 0x01, 0x53, 0xfd], true },
        { "lock xadd [rbx+1], edx", [0xf0, 0x0f, 0xc1, 0x53, 0x01], true },
        { "lock cmpxchg [rbx+2], edx", [0xf0, 0x0f, 0xb1, 0x53, 0x02], true },
        { "lock cmpxchg8b [rbx-1]", [0xf0, 0x0f, 0xc7, 0x4b, 0xff], true },
        { "lock bts dword [rbx+1], 3", [0xf0, 0x0f, 0xba, 0x6b, 0x01, 0x03], true },
        { "xchg [rbx+2], edx", [0x87, 0x53, 0x02], true },
        { "lock not dword [rbx+3]", [0xf0, 0xf7, 0x53, 0x03], true },
        { "lock inc dword [rbx+0xfc2]: another page", [0xf0, 0xff, 0x83, 0xc2, 0x0f, 0, 0], true },
        { "xchg [rbx+0xfc2], edx: another page", [0x87, 0x93, 0xc2, 0x0f, 0, 0], true },
        { "lock inc dword [rbx]: one line", [0xf0, 0xff, 0x03], false },
        { "xchg [rbx], edx: one line", [0x87, 0x13], false },
        { "inc dword [rbx+2]: not locked", [0xff, 0x43, 0x02], false },
        { "cmpxchg8b [rbx-1]: not locked", [0x0f, 0xc7, 0x4b, 0xff], false },
    };

    [Theory]
    [MemberData(nameof(Accesses))]
    public void SplitLock_LeavesBehindTheInstruction(string name, byte[] instruction, bool isBusLock)
    {
        using TestGuest g = BusLockGuest(instruction);
        Assert.Equal(0, Enable(g.Vm, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_EXIT));
        using TestGuest off = BusLockGuest(instruction);
        Assert.Equal(KVM_EXIT_HLT, off.Run());
        Assert.Equal(0, off.Cpu.KvmRun->flags);
        if (isBusLock)
        {
            Assert.True(g.Run() == KVM_EXIT_X86_BUS_LOCK, name);
            Assert.Equal(KVM_RUN_X86_BUS_LOCK, g.Cpu.KvmRun->flags);
            Assert.Equal(TestGuest.Code + 15 + (ulong)instruction.Length, g.Regs().rip);
            Assert.Equal(0UL, g.Regs().rcx);
            Assert.Equal(4UL, g.Cpu.InstructionsRetired);
        }
        Assert.True(g.Run() == KVM_EXIT_HLT, name);
        Assert.Equal(0, g.Cpu.KvmRun->flags);
        kvm_regs a = g.Regs(), b = off.Regs();
        Assert.Equal((b.rax, b.rcx, b.rdx, b.rip, b.rflags), (a.rax, a.rcx, a.rdx, a.rip, a.rflags));
        Assert.Equal(off.Cpu.InstructionsRetired, g.Cpu.InstructionsRetired);
        byte[] x = new byte[0x1100], y = new byte[0x1100];
        Assert.True(g.Vm.Memory.Read(Data, x) && off.Vm.Memory.Read(Data, y));
        Assert.Equal(y, x);
    }

    [Fact]
    public void SplitLockInALoop_LeavesEachTime()
    {
        using TestGuest g = new();
        // mov ebx, Data + 62; mov ecx, 100; l: lock inc dword [rbx]; dec ecx; jnz l; hlt
        g.Load(0xbb, 0x3e, 0x00, 0x02, 0x00, 0xb9, 100, 0, 0, 0, 0xf0, 0xff, 0x03, 0xff, 0xc9, 0x75, 0xf9, 0xf4);
        Assert.Equal(0, Enable(g.Vm, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_EXIT));
        for (ulong left = 100; left > 0; left--)
        {
            Assert.Equal(KVM_EXIT_X86_BUS_LOCK, g.Run());
            Assert.Equal(left, g.Regs().rcx);
        }
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        Assert.True(g.Vm.Memory.TryRead(Data + 62, out uint count));
        Assert.Equal(100u, count);
    }

    [Fact]
    public void AccessedBitOfASplitDescriptor_IsABusLock()
    {
        using TestGuest g = new();
        g.Cpu.GetSregs(out kvm_sregs s);
        // A GDT whose third descriptor (not accessed yet) lies at 60 bytes from a line's begin.
        ulong gdt = Data + 60 - 16;
        s.gdt = new() { @base = gdt, limit = 23 };
        Assert.Equal(0, g.Cpu.SetSregs(s));
        g.Vm.Memory.TryWrite(gdt + 8, 0x00af_9b00_0000_ffffUL);
        g.Vm.Memory.TryWrite(gdt + 16, 0x00cf_9200_0000_ffffUL);
        // mov eax, 16; mov ds, eax; mov ds, eax; jmp +0; hlt
        g.Load(0xb8, 16, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xd8, 0xeb, 0x00, 0xf4);
        Assert.Equal(0, Enable(g.Vm, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_EXIT));
        Assert.Equal(KVM_EXIT_X86_BUS_LOCK, g.Run());
        Assert.Equal(KVM_RUN_X86_BUS_LOCK, g.Cpu.KvmRun->flags);
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        Assert.Equal(0, g.Cpu.KvmRun->flags);
    }

    [Fact]
    public void BusLockModes_ExcludeEachOther()
    {
        using TestGuest g = new();
        Assert.Equal((int)(KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT), g.Vm.CheckExtension(KVM_CAP_X86_BUS_LOCK_EXIT));
        Assert.Equal(-Errno.EINVAL, Enable(g.Vm, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT));
        Assert.Equal(-Errno.EINVAL, Enable(g.Vm, KVM_CAP_X86_BUS_LOCK_EXIT, 4));
        Assert.Equal(0, Enable(g.Vm, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_EXIT));
        Assert.Equal(0, Enable(g.Vm, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_OFF));
        // lock inc dword [Data + 62]; hlt
        g.Load(0xf0, 0xff, 0x04, 0x25, 0x3e, 0x00, 0x02, 0x00, 0xf4);
        Assert.Equal(KVM_EXIT_HLT, g.Run());
    }

    // ---- No window for events ----

    private const ulong UserStack = 0x30001;

    /// <summary>
    /// A guest at privilege 3 in 32-bit mode with alignment checks, whose stack is misaligned and whose #AC handler runs at privilege 3: the delivery
    /// of #AC gives #AC.
    /// </summary>
    private static TestGuest EndlessDelivery(ulong? notify = null)
    {
        Vm.Create().Dispose();
        TestGuest g = new(cpus: 0);
        if (notify is { } n)
            Assert.Equal(0, Enable(g.Vm, KVM_CAP_X86_NOTIFY_VMEXIT, n));
        Vcpu v = g.Vm.CreateVcpu(0);
        Assert.Equal(0, v.SetCpuid2(SupportedCpuid.Entries));
        v.GetSregs(out kvm_sregs s);
        kvm_segment code = new() { limit = 0xffff_ffff, selector = 11, type = 11, present = 1, s = 1, db = 1, g = 1, dpl = 3 },
            data = new() { limit = 0xffff_ffff, selector = 19, type = 3, present = 1, s = 1, db = 1, g = 1, dpl = 3 };
        (s.cs, s.ds, s.es, s.fs, s.gs, s.ss) = (code, data, data, data, data, data);
        ulong gdt = TestGuest.Tables + 0x2000, idt = TestGuest.Tables + 0x3000;
        s.gdt = new() { @base = gdt, limit = 23 };
        s.idt = new() { @base = idt, limit = 0x7ff };
        (s.cr3, s.cr4, s.cr0, s.efer) = (0, 0x620, 0x0004_0033, 0);
        Assert.Equal(0, v.SetSregs(s));
        g.Vm.Memory.TryWrite(gdt + 8, 0x00cf_fb00_0000_ffffUL);
        g.Vm.Memory.TryWrite(gdt + 16, 0x00cf_f300_0000_ffffUL);
        // A 32-bit trap gate of privilege 3 for vector 17.
        g.Vm.Memory.TryWrite(idt + 8 * 17, TestGuest.Code | 11UL << 16 | 0xef00UL << 32);
        v.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = UserStack, rflags = 2 | 1 << 18 });
        // push eax
        g.Load(0x50, 0xf4);
        return g;
    }

    [Fact]
    public void EndlessDelivery_IsReportedAndTheStateIsExact()
    {
        using TestGuest g = EndlessDelivery((ulong)1000 << 32 | KVM_X86_NOTIFY_VMEXIT_ENABLED | KVM_X86_NOTIFY_VMEXIT_USER);
        for (ulong i = 1; i <= 3; i++)
        {
            Assert.Equal(KVM_EXIT_NOTIFY, g.Run());
            Assert.Equal(0u, g.Cpu.KvmRun->notify.flags);
            Assert.Equal((TestGuest.Code, UserStack), (g.Regs().rip, g.Regs().rsp));
            Assert.Equal(i, g.Cpu.Stats.notify_window_exits);
        }
        g.Cpu.GetVcpuEvents(out kvm_vcpu_events e);
        Assert.Equal((1, 17), (e.exception.injected, e.exception.nr));
        // The client can end it: an aligned stack lets the delivery through, and the handler is the same PUSH.
        kvm_regs r = g.Regs();
        r.rsp = UserStack - 1;
        g.Cpu.SetRegs(r);
        // HLT at privilege 3 is #GP, whose gate is absent, and so on down to the triple fault.
        Assert.Equal(KVM_EXIT_SHUTDOWN, g.Run());
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(KVM_X86_NOTIFY_VMEXIT_ENABLED)]
    public void EndlessDelivery_DoesNotKeepAKickOut(ulong notify)
    {
        using TestGuest g = EndlessDelivery(notify == 0 ? null : notify);
        int result = 1;
        Thread t = new(() => result = g.Cpu.Run());
        t.Start();
        SpinWait.SpinUntil(() => g.Cpu.Requests.Mode == VcpuMode.InGuestMode, 10_000);
        long begin = Stopwatch.GetTimestamp();
        if (notify != 0)
            Assert.True(SpinWait.SpinUntil(() => g.Cpu.Stats.notify_window_exits > 2, 60_000));
        g.Cpu.Kick();
        Assert.True(t.Join(60_000), $"the kick has no effect after {Stopwatch.GetElapsedTime(begin)}");
        Assert.Equal(-Errno.EINTR, result);
        Assert.Equal((TestGuest.Code, UserStack), (g.Regs().rip, g.Regs().rsp));
    }

    [Fact]
    public void NotifyWindow_IsSetBeforeTheFirstVcpu()
    {
        using TestGuest g = new(cpus: 0);
        Assert.Equal(1, g.Vm.CheckExtension(KVM_CAP_X86_NOTIFY_VMEXIT));
        Assert.Equal(-Errno.EINVAL, Enable(g.Vm, KVM_CAP_X86_NOTIFY_VMEXIT, 0));
        Assert.Equal(-Errno.EINVAL, Enable(g.Vm, KVM_CAP_X86_NOTIFY_VMEXIT, KVM_X86_NOTIFY_VMEXIT_USER));
        Assert.Equal(-Errno.EINVAL, Enable(g.Vm, KVM_CAP_X86_NOTIFY_VMEXIT, KVM_X86_NOTIFY_VMEXIT_ENABLED | 4));
        Assert.Equal(0, Enable(g.Vm, KVM_CAP_X86_NOTIFY_VMEXIT, KVM_X86_NOTIFY_VMEXIT_ENABLED));
        g.Vm.CreateVcpu(0);
        Assert.Equal(-Errno.EINVAL, Enable(g.Vm, KVM_CAP_X86_NOTIFY_VMEXIT, KVM_X86_NOTIFY_VMEXIT_ENABLED));
    }

    // ---- The task priority register ----

    [Fact]
    public void TprAccesses_AreReportedBehindTheirInstruction()
    {
        using TestGuest g = new(irqchip: true);
        Assert.Equal(1, g.Vm.CheckExtension(KVM_CAP_VAPIC));
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetTprAccessReporting(new kvm_tpr_access_ctl { enabled = 1, flags = 1 }));
        Assert.Equal(0, g.Cpu.SetTprAccessReporting(new kvm_tpr_access_ctl { enabled = 1 }));
        // mov ebx, 0xfee00080; mov dword [rbx], 0x30; mov eax, [rbx]; mov ecx, [rbx-0x60]; out 0xf4, al
        g.Load(0xbb, 0x80, 0x00, 0xe0, 0xfe, 0xc7, 0x03, 0x30, 0, 0, 0, 0x8b, 0x03, 0x8b, 0x4b, 0xa0, 0xe6, 0xf4);
        kvm_run* run = g.Cpu.KvmRun;
        Assert.Equal(KVM_EXIT_TPR_ACCESS, g.Run());
        Assert.Equal((TestGuest.Code + 5, 1u), (run->tpr_access.rip, run->tpr_access.is_write));
        Assert.Equal(TestGuest.Code + 11, g.Regs().rip);
        Assert.Equal(3UL, run->cr8);
        Assert.Equal(KVM_EXIT_TPR_ACCESS, g.Run());
        Assert.Equal((TestGuest.Code + 11, 0u), (run->tpr_access.rip, run->tpr_access.is_write));
        Assert.Equal((TestGuest.Code + 13, 0x30UL), (g.Regs().rip, g.Regs().rax));
        Assert.Equal(0, g.Cpu.SetTprAccessReporting(default));
        Assert.Equal(0x30, g.RunToEnd());
    }

    [Fact]
    public void VapicWord_CarriesPrioritiesBothWays()
    {
        using TestGuest g = new(irqchip: true);
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetVapicAddress(1UL << 40));
        Assert.Equal(0, g.Cpu.SetVapicAddress(Data));
        // mov ebx, 0xfee00080; mov dword [rbx], 0x40; out 0x80, al; mov byte [Data], 0x70; out 0x80, al; mov eax, [rbx]; out 0xf4, al
        g.Load(0xbb, 0x80, 0x00, 0xe0, 0xfe, 0xc7, 0x03, 0x40, 0, 0, 0, 0xe6, 0x80, 0xc6, 0x04, 0x25, 0x00, 0x00, 0x02, 0x00, 0x70, 0xe6, 0x80, 0x8b, 0x03,
            0xe6, 0xf4);
        Assert.Equal(KVM_EXIT_IO, g.Run());
        Assert.True(g.Vm.Memory.TryRead(Data, out uint word));
        Assert.Equal(0x40u, word & 0xff);
        Assert.Equal(4UL, g.Cpu.KvmRun->cr8);
        Assert.Equal(KVM_EXIT_IO, g.Run());
        Assert.Equal(7UL, g.Cpu.KvmRun->cr8);
        // Switched off, the word is memory like any other.
        Assert.Equal(0, g.Cpu.SetVapicAddress(0));
        g.Vm.Memory.TryWrite(Data, 0u);
        Assert.Equal(0x70, g.RunToEnd());
    }

    // ---- MAXPHYADDR ----

    private static TestGuest NarrowGuest(params byte[] instruction)
    {
        TestGuest g = new();
        kvm_cpuid_entry2[] cpuid = [.. SupportedCpuid.Entries];
        for (int i = 0; i < cpuid.Length; i++)
            if (cpuid[i].function == 0x8000_0008)
                cpuid[i].eax = cpuid[i].eax & ~0xffu | 36;
        Assert.Equal(0, g.Cpu.SetCpuid2(cpuid));
        // The second GiB has an address bit that the guest's MAXPHYADDR forbids; mov eax, 0x40000000.
        g.Vm.Memory.TryWrite(TestGuest.Tables + 0x1008, 1UL << 30 | 1UL << 36 | 0x87);
        g.SetVector(14, 0x12000).LoadAt(0x12000, 0x58, 0xe6, 0xf4);
        g.Load([0xb8, 0, 0, 0, 0x40, .. instruction, 0xf4]);
        return g;
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void AddressBeyondTheGuestsMaxphyaddr_IsAReservedBitFault(bool exitOnFailure)
    {
        // mov ecx, [rax]: KVM's emulator has it, so the guest gets its fault in any case.
        using TestGuest g = NarrowGuest(0x8b, 0x08);
        if (exitOnFailure)
            Assert.Equal(0, Enable(g.Vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1));
        Assert.Equal(1, g.Vm.CheckExtension(KVM_CAP_SMALLER_MAXPHYADDR));
        Assert.Equal(9, g.RunToEnd());
        g.Cpu.GetSregs(out kvm_sregs s);
        Assert.Equal(0x4000_0000UL, s.cr2);
    }

    [Fact]
    public void AddressBeyondTheGuestsMaxphyaddr_CanBeAnEmulationFailure()
    {
        // fld dword [rax]
        using TestGuest g = NarrowGuest(0xd9, 0x00);
        Assert.Equal(0, Enable(g.Vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1));
        Assert.Equal(KVM_EXIT_INTERNAL_ERROR, g.Run());
        Assert.Equal(KVM_INTERNAL_ERROR_EMULATION, g.Cpu.KvmRun->emulation_failure.suberror);
        Assert.Equal((0xd9, 0x00), (g.Cpu.KvmRun->emulation_failure.insn_bytes[0], g.Cpu.KvmRun->emulation_failure.insn_bytes[1]));
        Assert.Equal(TestGuest.Code + 5, g.Regs().rip);
        using TestGuest plain = NarrowGuest(0xd9, 0x00);
        Assert.Equal(9, plain.RunToEnd());
    }
}
