using Ring3.Abi;
using Ring3.Memory;

namespace Ring3.Kvm.Tests;

/// <summary>A VM with RAM from 0, whose vCPUs start in flat 64-bit mode.</summary>
internal sealed unsafe class TestGuest : IDisposable
{
    public const ulong RamBytes = 16 << 20, Code = 0x10000, Tables = 0x100000, Stack = 0x90000;

    public TestGuest(bool irqchip = false, int cpus = 1, VmOptions? options = null, bool cpuid = true)
    {
        Vm = Vm.Create(options);
        if (irqchip)
        {
            Assert.Equal(0, Vm.CreateIrqchip());
            Assert.Equal(0, Vm.CreatePit2());
        }
        Ram = new GuestRam(RamBytes);
        Assert.Equal(0, Vm.SetUserMemoryRegion(0, 0, 0, RamBytes, Ram.Hva));
        WriteTables();
        for (int i = 0; i < cpus; i++)
        {
            Vcpu v = Vm.CreateVcpu((uint)i);
            if (cpuid)
                Assert.Equal(0, v.SetCpuid2(v.Lapic is null ? SupportedCpuid.Of(Vm.Processor) : SupportedCpuid.WithTiming(v.TscKhz, true, Vm.Processor)));
            StartLong(v, Code, Stack - (ulong)i * 0x1000);
        }
    }

    public Vm Vm { get; }
    public GuestRam Ram { get; }
    public Vcpu Cpu => Vm.Vcpus[0];

    /// <summary>The first 4 GiB, identity-mapped with 1 GiB pages; GDT at the third page, IDT at the fourth.</summary>
    private void WriteTables()
    {
        Vm.Memory.TryWrite(Tables, Tables + 0x1000 | 7UL);
        for (ulong i = 0; i < 4; i++)
            Vm.Memory.TryWrite(Tables + 0x1000 + 8 * i, i << 30 | 0x87);
        Vm.Memory.TryWrite(Tables + 0x2008, 0x00af_9b00_0000_ffffUL);
        Vm.Memory.TryWrite(Tables + 0x2010, 0x00cf_9300_0000_ffffUL);
    }

    public static void StartLong(Vcpu v, ulong rip, ulong rsp)
    {
        v.GetSregs(out kvm_sregs s);
        kvm_segment code = new() { limit = 0xffff_ffff, selector = 8, type = 11, present = 1, s = 1, l = 1, g = 1 },
            data = new() { limit = 0xffff_ffff, selector = 16, type = 3, present = 1, s = 1, db = 1, g = 1 };
        (s.cs, s.ds, s.es, s.fs, s.gs, s.ss) = (code, data, data, data, data, data);
        s.gdt = new() { @base = Tables + 0x2000, limit = 23 };
        s.idt = new() { @base = Tables + 0x3000, limit = 0xfff };
        (s.cr3, s.cr4, s.cr0, s.efer) = (Tables, 0x620, 0x8001_0033, 0xd01);
        Assert.Equal(0, v.SetSregs(s));
        v.SetRegs(new kvm_regs { rip = rip, rsp = rsp, rflags = 2 });
        if (v.Lapic is not null)
            v.SetMpState(new kvm_mp_state { mp_state = KvmApi.KVM_MP_STATE_RUNNABLE });
    }

    /// <summary>Drops the first vCPU to CPL 3, with a TSS at the sixth page whose stack for CPL 0 is <see cref="Stack"/>.</summary>
    public TestGuest StartUser(ulong rip = Code)
    {
        Vm.Memory.TryWrite(Tables + 0x5004, Stack);
        Cpu.GetSregs(out kvm_sregs s);
        s.tr = new() { @base = Tables + 0x5000, limit = 0x67, selector = 0x28, type = 11, present = 1 };
        (s.cs.selector, s.cs.dpl) = (0x1b, 3);
        s.ds.selector = s.es.selector = s.fs.selector = s.gs.selector = s.ss.selector = 0x23;
        s.ds.dpl = s.es.dpl = s.fs.dpl = s.gs.dpl = s.ss.dpl = 3;
        Assert.Equal(0, Cpu.SetSregs(s));
        Cpu.SetRegs(new kvm_regs { rip = rip, rsp = Stack - 0x1000, rflags = 0x3002 });
        return this;
    }

    public TestGuest Load(params ReadOnlySpan<byte> code) => LoadAt(Code, code);

    public TestGuest LoadAt(ulong gpa, params ReadOnlySpan<byte> code)
    {
        Assert.True(Vm.Memory.Write(gpa, code));
        return this;
    }

    /// <summary>A 64-bit interrupt gate.</summary>
    public TestGuest SetVector(int vector, ulong handler)
    {
        ulong entry = Tables + 0x3000 + 16 * (ulong)vector;
        Vm.Memory.TryWrite(entry, handler & 0xffff | 8UL << 16 | 0x8e00UL << 32 | (handler >> 16 & 0xffff) << 48);
        Vm.Memory.TryWrite(entry + 8, handler >> 32);
        return this;
    }

    public uint Run(Vcpu? v = null)
    {
        v ??= Cpu;
        Assert.Equal(0, v.Run());
        return v.KvmRun->exit_reason;
    }

    public kvm_regs Regs(Vcpu? v = null)
    {
        (v ?? Cpu).GetRegs(out kvm_regs r);
        return r;
    }

    /// <summary>Runs until a byte is written to port 0xf4 and returns it; other port writes are collected.</summary>
    public int RunToEnd(Vcpu? v = null, List<byte>? output = null)
    {
        v ??= Cpu;
        while (true)
        {
            Assert.Equal(KvmApi.KVM_EXIT_IO, Run(v));
            byte data = *((byte*)v.KvmRun + v.KvmRun->io.data_offset);
            if (v.KvmRun->io.port == 0xf4)
                return data;
            output?.Add(data);
        }
    }

    public void Dispose()
    {
        Vm.Dispose();
        Ram.Dispose();
    }
}
