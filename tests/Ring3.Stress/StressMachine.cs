using System.Diagnostics;
using Ring3.Abi;
using Ring3.Kvm;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Stress;

/// <summary>
/// One round's machine: memory, vCPU threads, and the checks at the end. What the host does to it is in StressMachine.Host.cs and
/// StressMachine.Resident.cs.
/// </summary>
/// <remarks>SAFETY: pointers go into guest memory that lives until Dispose, after the VM.</remarks>
internal sealed unsafe partial class StressMachine : IDisposable
{
    private readonly Settings _settings;
    private readonly Vm _vm;
    private readonly GuestRam _fixed = new(Layout.FixedBytes);
    private readonly GuestRam[] _regions = new GuestRam[Layout.Regions];
    private readonly Vcpu[] _vcpus;
    private readonly Thread?[] _threads;
    private readonly bool[] _leave;
    private readonly ulong _faultHandler;
    private volatile bool _stop;
    private string? _failure;
    private long _operations, _mmio, _ringsFull;

    public StressMachine(Settings settings)
    {
        _settings = settings;
        _vm = Vm.Create(new VmOptions { CheckTlb = settings.Check, DirtyTracking = settings.Tracking });
        _vm.Mmu.SlotZapAll = settings.ZapAll;
        _vm.Mmu.RangeFlushes = settings.Ranges;
        if (settings.Rings)
            Enable(KVM_CAP_DIRTY_LOG_RING, RingEntries * 16);
        if (settings.ManualProtect)
            Enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, settings.Seed % 2 == 0 ? 1u : 3u);
        Check(_vm.SetUserMemoryRegion(0, 0, 0, Layout.FixedBytes, _fixed.Hva));
        for (int i = 0; i < Layout.Regions; i++)
        {
            _regions[i] = new GuestRam(Layout.RegionBytes);
            for (ulong p = 0; p < Layout.RegionPages; p++)
                *(ulong*)(_regions[i].Hva + p * Layout.Page) = Layout.Tag | (ulong)i * Layout.RegionPages + p;
            CreateRegion(i);
        }
        (byte[] code, _faultHandler) = GuestCode.Assemble();
        code.CopyTo(new Span<byte>(_fixed.Pointer + Layout.Code, (int)Layout.Page));
        WriteIdentity();
        _vcpus = new Vcpu[settings.Cpus];
        _threads = new Thread?[settings.Cpus];
        _leave = new bool[settings.Cpus];
        _fetch = new uint[settings.Cpus];
        for (int i = 0; i < settings.Cpus; i++)
            _vcpus[i] = CreateVcpu(i);
    }

    private void Enable(int cap, ulong value)
    {
        var enable = new kvm_enable_cap { cap = (uint)cap };
        enable.args[0] = value;
        Check(_vm.EnableCap(enable));
    }

    private static void Check(int result)
    {
        if (result < 0)
            throw new InvalidOperationException($"call failed: {result}");
    }

    private ulong* At(ulong gpa) => (ulong*)(_fixed.Pointer + gpa);

    private void WriteIdentity()
    {
        At(Layout.Gdt)[1] = 0x00af_9b00_0000_ffff;
        At(Layout.Gdt)[2] = 0x00cf_9300_0000_ffff;
        At(Layout.Idt)[2 * 14] = _faultHandler & 0xffff | 8UL << 16 | 0x8e00UL << 32 | (_faultHandler >> 16 & 0xffff) << 48;
        for (ulong i = 0; i < 512; i++)
            At(Layout.Identity)[i] = i << 21 | 0x183;
    }

    private Vcpu CreateVcpu(int cpu)
    {
        Vcpu v = _vm.CreateVcpu((uint)cpu);
        Check(v.SetCpuid2(SupportedCpuid.Entries));
        ulong* scratch = At(Layout.PrivateOf(cpu));
        var random = new Random(_settings.Seed + cpu);
        for (int p = 0; p < Layout.Pcids; p++)
        {
            ulong t = Layout.TablesOf(cpu, p);
            At(t)[0] = t + 0x1003;
            At(t + 0x1000)[0] = Layout.Identity | 3;
            At(t + 0x1000)[1] = t + 0x2003;
            At(t + 0x2000)[0] = t + 0x3003;
            for (int i = 0; i < Layout.WindowPages; i++)
                At(t + 0x3000)[i] = Layout.GpaOf((ulong)i) | (i < Layout.WindowPages / 2 ? 3u : 0x103u);
            scratch[2 + p] = t | (uint)p;
            scratch[6 + p] = t + 0x3000;
        }
        v.GetSregs(out kvm_sregs s);
        kvm_segment code = new() { limit = 0xffff_ffff, selector = 8, type = 11, present = 1, s = 1, l = 1, g = 1 },
            data = new() { limit = 0xffff_ffff, selector = 16, type = 3, present = 1, s = 1, db = 1, g = 1 };
        (s.cs, s.ds, s.es, s.fs, s.gs, s.ss) = (code, data, data, data, data, data);
        s.gdt = new() { @base = Layout.Gdt, limit = 23 };
        s.idt = new() { @base = Layout.Idt, limit = 0xfff };
        (s.cr3, s.cr4, s.cr0, s.efer) = (Layout.TablesOf(cpu, 0), 0x2_06a0, 0x8001_0033, 0xd01);
        Check(v.SetSregs(s));
        v.SetRegs(StartRegs(cpu, (ulong)random.NextInt64() | 1));
        return v;
    }

    private static kvm_regs StartRegs(int cpu, ulong random) => new()
    {
        rip = Layout.Code, rflags = 2, rsp = Layout.PrivateOf(cpu) + 0xff0, r8 = random, r12 = Layout.CountersOf(cpu), r13 = Layout.CellOf(cpu),
            r14 = Layout.TablesOf(cpu, 0) + 0x3000, r15 = Layout.PrivateOf(cpu),
    };

    /// <summary>What the round did.</summary>
    public string Summary
    {
        get
        {
            VmStats s = _vm.Stats;
            return $"{Iterations} iterations, {_mmio} MMIO, {_ringsFull} full rings, {_operations} host operations,"
                + $" flushes {s.remote_tlb_flush_requests} ({s.remote_tlb_flush_ranges} of ranges, {s.tlb_flush_coalesced} coalesced,"
                + $" {s.tlb_flush_elided} elided), {_vm.TranslationChecks} checks, {s.mmu_table_pages} table pages{ResidentSummary}";
        }
    }

    private long Iterations
    {
        get
        {
            long sum = 0;
            for (int i = 0; i < _vcpus.Length; i++)
                sum += (long)*At(Layout.PrivateOf(i));
            return sum;
        }
    }

    /// <summary>Runs the round. A failure, or null.</summary>
    public string? Run(double seconds, Tally total)
    {
        for (int i = 0; i < _vcpus.Length; i++)
            Start(i);
        var harvester = new Thread(() => Guard(Harvest));
        var ager = new Thread(() => Guard(Age));
        var squeezer = new Thread(() => Guard(Squeeze));
        harvester.Start();
        ager.Start();
        if (_settings.Resident)
        {
            // The guests run: their memory becomes a mapping of the store under them.
            Guard(StartLimit);
            squeezer.Start();
        }
        Guard(() => Disturb(seconds));
        _stop = true;
        for (int i = 0; i < _vcpus.Length; i++)
            Stop(i);
        harvester.Join();
        ager.Join();
        if (_settings.Resident)
            squeezer.Join();
        if (_failure is null)
            Guard(Verify);
        total.Iterations += Iterations;
        total.HostOperations += _operations;
        total.Checks += (long)_vm.TranslationChecks;
        total.Flushes += _vm.Stats.remote_tlb_flush_requests;
        return _failure;
    }

    private void Fail(string what)
    {
        Interlocked.CompareExchange(ref _failure, what, null);
        _stop = true;
        foreach (Vcpu v in _vcpus)
            v.Kick();
    }

    private void Guard(Action body)
    {
        try { body(); }
        catch (Exception e) { Fail(e.ToString()); }
    }

    // ---- vCPUs ----

    private void Start(int cpu)
    {
        Volatile.Write(ref _leave[cpu], false);
        _threads[cpu] = new Thread(() => Guard(() => RunVcpu(cpu)));
        _threads[cpu]!.Start();
    }

    private void Stop(int cpu)
    {
        Volatile.Write(ref _leave[cpu], true);
        _vcpus[cpu].Kick();
        _threads[cpu]!.Join();
    }

    private void RunVcpu(int cpu)
    {
        Vcpu v = _vcpus[cpu];
        while (!_stop && !Volatile.Read(ref _leave[cpu]))
        {
            int r = v.Run();
            if (r == -Errno.EINTR)
                continue;
            if (r < 0)
                Fail(_vm.IsDead ? _vm.BugMessage! : $"KVM_RUN of vCPU {cpu}: {r}, exit {v.KvmRun->exit_reason}");
            else
                Serve(cpu, v);
        }
    }

    private void Serve(int cpu, Vcpu v)
    {
        kvm_run* run = v.KvmRun;
        switch (run->exit_reason)
        {
            case KVM_EXIT_MMIO:
                ServeMmio(run);
                break;
            case KVM_EXIT_DIRTY_RING_FULL:
                _ringsFull++;
                CollectRings();
                break;
            case KVM_EXIT_INTERNAL_ERROR:
                // Garbage led beyond what can be mapped: on with the next iteration.
                v.GetRegs(out kvm_regs regs);
                regs.rip = Layout.Code;
                v.SetRegs(regs);
                break;
            case KVM_EXIT_IO when run->io.port == 0xf4:
                v.GetRegs(out regs);
                v.GetSregs(out kvm_sregs s);
                string what = regs.rax == GuestCode.TagMismatch
                    ? $"window page {regs.rbx} at 0x{regs.rdi:x}, PCID {regs.rbp}: has not the tag of data page {regs.r9}, but {Read(regs.r9)}"
                    : $"page fault at 0x{s.cr2:x}";
                Fail($"vCPU {cpu}: {what}");
                break;
            default:
                v.GetRegs(out regs);
                Fail($"vCPU {cpu}: exit {run->exit_reason} at 0x{regs.rip:x}");
                break;
        }
    }

    private string Read(ulong page) => page < Layout.DataPages && _vm.Memory.TryRead(Layout.GpaOf(page), out ulong tag) ? $"0x{tag:x} is there now"
        : "nothing is there";

    /// <summary>A data page whose slot is away: waits until it is back, and does the access as the guest would have. Anything else reads as zero.</summary>
    private void ServeMmio(kvm_run* run)
    {
        _mmio++;
        ulong gpa = run->mmio.phys_addr;
        int size = (int)run->mmio.len;
        var data = new Span<byte>(run->mmio.data, size);
        if (gpa < Layout.DataGpa || gpa >= Layout.DataGpa + Layout.DataPages * Layout.Page)
        {
            if (run->mmio.is_write != 0)
                Fail($"write to 0x{gpa:x}, which is no memory");
            data.Clear();
            return;
        }
        _layout.EnterReadLock();
        try
        {
            bool done = run->mmio.is_write != 0 ? _vm.Memory.Write(gpa, data) : _vm.Memory.Read(gpa, data);
            if (!done)
                Fail($"data at 0x{gpa:x} is gone");
            if (run->mmio.is_write != 0)
                NoteHostWrite((gpa - Layout.DataGpa) / Layout.Page);
        }
        finally { _layout.ExitReadLock(); }
    }

    // ---- At the end ----

    private void Verify()
    {
        HarvestOnce();
        EvictEverything();
        for (ulong page = 0; page < Layout.DataPages; page++)
        {
            ulong* p = PageOf(page);
            if (*p != (Layout.Tag | page))
                throw new InvalidOperationException($"data page {page} is lost: its tag is 0x{*p:x}");
        }
        for (int cpu = 0; cpu < _vcpus.Length; cpu++)
            VerifyCounters(cpu);
        var replica = new ReadOnlySpan<byte>(_replica.Pointer, (int)Layout.RegionBytes);
        int difference = replica.CommonPrefixLength(new ReadOnlySpan<byte>(_regions[LoggedRegion].Pointer, (int)Layout.RegionBytes));
        if (difference != replica.Length)
            throw new InvalidOperationException($"a write to page {difference / (int)Layout.Page} of the logged region is in no dirty log");
        _vm.Mmu.CheckInvariants();
    }

    /// <summary>A vCPU may have been stopped between its two counts, once.</summary>
    private void VerifyCounters(int cpu)
    {
        ulong* counters = At(Layout.CountersOf(cpu));
        int inFlight = 0;
        for (ulong page = 0; page < Layout.DataPages; page++)
        {
            ulong cell = *(ulong*)((byte*)PageOf(page) + Layout.CellOf(cpu));
            if (cell == counters[page] + 1)
                inFlight++;
            else if (cell != counters[page])
                throw new InvalidOperationException($"data page {page} has {cell} of {counters[page]} writes of vCPU {cpu}");
        }
        if (inFlight > 1)
            throw new InvalidOperationException($"{inFlight} pages count a write of vCPU {cpu} that it has not made");
    }

    private ulong* PageOf(ulong page) => (ulong*)(_regions[page / Layout.RegionPages].Hva + page % Layout.RegionPages * Layout.Page);

    public void Dispose()
    {
        _vm.Dispose();
        _fixed.Dispose();
        _replica.Dispose();
        foreach (GuestRam ram in _regions)
            ram.Dispose();
        _layout.Dispose();
    }
}
