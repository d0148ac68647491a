using Iced.Intel;
using Ring3.Abi;
using Ring3.Kvm;
using Ring3.Memory;
using Ring3.Mmu;
using Ring3.Sync;
using static Iced.Intel.AssemblerRegisters;
using static Ring3.Abi.KvmApi;

namespace Ring3.Tests.Shared;

/// <summary>
/// Slots are added, moved and deleted while real vCPUs run guest code, migrate between host threads, fault and are aged. Phase after phase, each
/// followed by a check of every invariant of the MMU while nothing runs, references included.
/// All random choices come from one seed.
/// </summary>
/// <remarks>
/// The guest reads the tag of a random page of an 8 MiB area and writes a word of its own there, for ever; a wrong tag ends the run. Memory of a slot
/// whose deletion has returned is poisoned, so a translation that outlived it is read, or spoils the poison.
/// SAFETY: pointers go into guest memory that lives until Dispose, after the VM.
/// </remarks>
internal sealed unsafe class SlotStorm : IDisposable
{
    private const ulong P = 4096, Code = 0x1000, Gdt = 0x2000, Pml4 = 0x4000, Scratch = 0x8000, FixedBytes = 1 << 20;
    private const ulong AreaGpa = 0x1000_0000, RegionBytes = 1 << 20, RegionPages = RegionBytes / P, Poison = 0xdead_dead_dead_dead;
    private const int Regions = 8, Deleted = 4, MoveA = 4, MoveB = 5, Logged = 6, Balloon = 7;
    private const int Tag = 0x5a5a_0000;

    private readonly Vm _vm;
    private readonly GuestRam _fixed = new(FixedBytes);
    private readonly GuestRam[] _rams = new GuestRam[Regions], _spares = new GuestRam[Deleted];
    private readonly Vcpu[] _vcpus;
    private readonly Thread?[] _threads;
    private readonly bool[] _leave;
    private readonly Random _random;
    private readonly bool[] _present = new bool[Regions];
    private string? _failure;
    private bool _stop;
    private long _mmio, _changes, _migrations;

    /// <summary>Mistake for controls: memory is taken away without the deletion of its slot.</summary>
    public bool SkipDeletion { get; init; }

    public SlotStorm(int seed, int cpus, RootZapPolicy policy, int zapShare = 50, bool zapAll = true, DirtyTracking tracking = DirtyTracking.DirtyScan)
    {
        _random = new Random(seed);
        _vm = Vm.Create(new VmOptions { ZapPolicy = policy, ZapSharePercent = zapShare, DirtyTracking = tracking });
        _vm.Mmu.SlotZapAll = zapAll;
        Check(_vm.SetUserMemoryRegion(100, 0, 0, FixedBytes, _fixed.Hva));
        for (int i = 0; i < Regions; i++)
        {
            _rams[i] = new GuestRam(RegionBytes);
            WriteTags(_rams[i], i);
            if (i < Deleted)
                _spares[i] = new GuestRam(RegionBytes);
            if (i != MoveB)
                Add(i, i);
        }
        WriteGuest();
        _vcpus = new Vcpu[cpus];
        _threads = new Thread?[cpus];
        _leave = new bool[cpus];
        for (int i = 0; i < cpus; i++)
            _vcpus[i] = CreateVcpu(i);
    }

    /// <summary>Guest iterations, MMIO exits, slot changes, migrations, roots zapped.</summary>
    public (long Iterations, long Mmio, long Changes, long Migrations, long RootsZapped) Counts
    {
        get
        {
            long sum = 0;
            for (int i = 0; i < _vcpus.Length; i++)
                sum += *(long*)(_fixed.Hva + Scratch + (ulong)i * P);
            return (sum, _mmio, _changes, _migrations, _vm.Mmu.RootsZapped);
        }
    }

    private static ulong GpaOf(int region) => AreaGpa + (ulong)region * RegionBytes;

    private static void Check(int result)
    {
        if (result < 0)
            throw new InvalidOperationException($"call failed: {result}");
    }

    /// <summary>Tags by guest page; the moving region has those of its first home.</summary>
    private static void WriteTags(GuestRam ram, int region)
    {
        for (ulong i = 0; i < RegionPages; i++)
            Volatile.Write(ref *(ulong*)(ram.Hva + i * P), Tag + (ulong)region * RegionPages + i);
    }

    private void Add(int region, int ram)
    {
        Check(_vm.SetUserMemoryRegion((uint)ram, region == Logged ? KVM_MEM_LOG_DIRTY_PAGES : 0, GpaOf(region), RegionBytes, _rams[ram].Hva));
        _present[region] = true;
    }

    private void WriteGuest()
    {
        ulong* At(ulong gpa) => (ulong*)(_fixed.Pointer + gpa);
        At(Gdt)[1] = 0x00af_9b00_0000_ffff;
        At(Gdt)[2] = 0x00cf_9300_0000_ffff;
        At(Pml4)[0] = Pml4 + 0x1003;
        At(Pml4 + 0x1000)[0] = 0x83;
        var a = new Assembler(64);
        Label loop = a.CreateLabel("loop"), good = a.CreateLabel("good"), moved = a.CreateLabel("moved"), bad = a.CreateLabel("bad");
        a.Label(ref loop);
        a.inc(__qword_ptr[r15]);
        GuestRandom.Next(a);
        a.mov(ebx, r8d);
        a.and(ebx, Regions * (int)RegionPages - 1);
        a.mov(rdi, rbx);
        a.shl(rdi, 12);
        a.add(rdi, (int)AreaGpa);
        a.mov(rax, __qword_ptr[rdi]);
        a.mov(edx, Tag);
        a.add(edx, ebx);
        a.cmp(rax, rdx);
        a.je(good);
        // The moving region, in its second home.
        a.cmp(ebx, MoveB * (int)RegionPages);
        a.jb(bad);
        a.cmp(ebx, (MoveB + 1) * (int)RegionPages);
        a.jb(moved);
        // Ballooned pages read as zero.
        a.cmp(ebx, Balloon * (int)RegionPages);
        a.jb(bad);
        a.test(rax, rax);
        a.jne(bad);
        a.jmp(good);
        a.Label(ref moved);
        a.sub(edx, (int)RegionPages);
        a.cmp(rax, rdx);
        a.jne(bad);
        a.Label(ref good);
        a.bt(r8, 40);
        a.jc(loop);
        a.mov(__qword_ptr[rdi + r13], r8);
        a.jmp(loop);
        a.Label(ref bad);
        a.@out(0xf4, eax);
        a.jmp(bad);
        var stream = new MemoryStream();
        a.Assemble(new StreamCodeWriter(stream), Code);
        stream.ToArray().CopyTo(new Span<byte>(_fixed.Pointer + Code, (int)P));
    }

    private Vcpu CreateVcpu(int cpu)
    {
        Vcpu v = _vm.CreateVcpu((uint)cpu);
        Check(v.SetCpuid2(SupportedCpuid.Entries));
        v.GetSregs(out kvm_sregs s);
        kvm_segment code = new() { limit = 0xffff_ffff, selector = 8, type = 11, present = 1, s = 1, l = 1, g = 1 },
            data = new() { limit = 0xffff_ffff, selector = 16, type = 3, present = 1, s = 1, db = 1, g = 1 };
        (s.cs, s.ds, s.es, s.fs, s.gs, s.ss) = (code, data, data, data, data, data);
        s.gdt = new() { @base = Gdt, limit = 23 };
        (s.cr3, s.cr4, s.cr0, s.efer) = (Pml4, 0x6a0, 0x8001_0033, 0xd01);
        Check(v.SetSregs(s));
        v.SetRegs(new kvm_regs { rip = Code, rflags = 2, r8 = (ulong)_random.NextInt64() | 1, r13 = 64 + 8 * (ulong)cpu, r15 = Scratch + (ulong)cpu * P });
        return v;
    }

    // ---- Phases ----

    /// <summary>
    /// Runs every phase for a while, in a random order, <paramref name="rounds"/> times, and one in which everything happens. A failure, or null.
    /// </summary>
    public string? Run(int rounds, int millisecondsPerPhase)
    {
        (string Name, Action Step)[] steps = [("replace", Replace), ("move", Move), ("age", Age), ("dirty log", Log), ("migrate", Migrate),
            ("balloon", Discard), ("roots", DropRoots), ("pre-fault", Prefault)];
        for (int round = 0; round < rounds && _failure is null; round++)
        {
            _random.Shuffle(steps);
            foreach ((string name, Action step) in steps)
                Phase(name, step, millisecondsPerPhase);
            Phase("everything", () => steps[_random.Next(steps.Length)].Step(), 2 * millisecondsPerPhase);
        }
        return _failure;
    }

    private void Phase(string name, Action step, int milliseconds)
    {
        if (_failure is not null)
            return;
        for (int i = 0; i < _vcpus.Length; i++)
            Start(i);
        Guard(name, () =>
        {
            // Each phase makes some changes, however slow the host is.
            long end = Environment.TickCount64 + milliseconds;
            for (int n = 0; _failure is null && (n < 3 || Environment.TickCount64 < end); n++)
                step();
        });
        for (int i = 0; i < _vcpus.Length; i++)
            Stop(i);
        Guard(name, () => _vm.Mmu.CheckInvariants(quiet: true));
    }

    private void Guard(string where, Action body)
    {
        try { body(); }
        catch (Exception e) { Fail($"{where}: {e}"); }
    }

    private void Fail(string what)
    {
        Interlocked.CompareExchange(ref _failure, what, null);
        Volatile.Write(ref _stop, true);
        foreach (Vcpu v in _vcpus)
            v.Kick();
    }

    /// <summary>Deletes a slot, poisons its memory when the call has returned, and puts other memory in its place. The poison must stay.</summary>
    private void Replace()
    {
        int region = _random.Next(Deleted);
        GuestRam gone = _rams[region];
        if (!SkipDeletion)
            Check(_vm.SetUserMemoryRegion((uint)region, 0, 0, 0, 0));
        new Span<ulong>(gone.Pointer, (int)(RegionBytes / 8)).Fill(Poison);
        WriteTags(_spares[region], region);
        (_rams[region], _spares[region]) = (_spares[region], gone);
        if (!SkipDeletion)
            Add(region, region);
        if (new Span<ulong>(gone.Pointer, (int)(RegionBytes / 8)).ContainsAnyExcept(Poison))
            Fail($"memory of slot {region} was written after the slot's deletion had returned");
        _changes += 2;
    }

    private void Move()
    {
        int home = _present[MoveA] ? MoveA : MoveB, next = home == MoveA ? MoveB : MoveA;
        Check(_vm.SetUserMemoryRegion(MoveA, 0, GpaOf(next), RegionBytes, _rams[MoveA].Hva));
        (_present[home], _present[next]) = (false, true);
        _changes++;
    }

    private void Age()
    {
        ulong start = AreaGpa / P;
        ulong[] bitmap = new ulong[Regions * RegionPages / 64];
        _vm.Mmu.TestClearYoung(start, start + Regions * RegionPages, bitmap);
        GuestRam ram = _rams[_random.Next(Regions)];
        _vm.Slots.Notifier.ClearYoung(ram.Hva, ram.Hva + RegionBytes);
        Thread.Yield();
    }

    private void Log()
    {
        ulong[] bitmap = new ulong[RegionPages / 64];
        fixed (ulong* b = bitmap)
            Check(_vm.Mmu.GetDirtyLog(Logged, (ulong)b));
        if (_random.Next(8) != 0)
            return;
        Check(_vm.SetUserMemoryRegion(Logged, 0, GpaOf(Logged), RegionBytes, _rams[Logged].Hva));
        Check(_vm.SetUserMemoryRegion(Logged, KVM_MEM_LOG_DIRTY_PAGES, GpaOf(Logged), RegionBytes, _rams[Logged].Hva));
        _changes += 2;
    }

    /// <summary>A vCPU goes on on another host thread.</summary>
    private void Migrate()
    {
        int cpu = _random.Next(_vcpus.Length);
        Stop(cpu);
        Start(cpu);
        _migrations++;
    }

    private void Discard()
    {
        ulong first = (ulong)_random.Next((int)RegionPages), count = (ulong)_random.Next(1, 64);
        _rams[Balloon].Discard(first * P, count * P, _vm.Slots.Notifier);
    }

    private void DropRoots()
    {
        _vm.Mmu.TrimRoots();
        Thread.Yield();
        if (_random.Next(2) != 0)
            return;
        using (_vm.Slots.SlotsLock.Enter())
            _vm.Mmu.ZapAllFast();
    }

    private void Prefault()
    {
        int cpu = _random.Next(_vcpus.Length);
        Stop(cpu);
        var range = new kvm_pre_fault_memory { gpa = GpaOf(_random.Next(Regions)) + (ulong)_random.Next(64) * P, size = RegionBytes / 2 };
        _vcpus[cpu].PreFaultMemory(ref range);
        Start(cpu);
    }

    // ---- vCPUs ----

    private void Start(int cpu)
    {
        Volatile.Write(ref _leave[cpu], false);
        _threads[cpu] = new Thread(() => Guard($"vCPU {cpu}", () => RunVcpu(cpu)));
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
        while (!Volatile.Read(ref _stop) && !Volatile.Read(ref _leave[cpu]))
        {
            int r = v.Run();
            kvm_run* run = v.KvmRun;
            if (r == -Errno.EINTR)
                continue;
            if (r < 0)
                Fail(_vm.IsDead ? _vm.BugMessage! : $"KVM_RUN of vCPU {cpu}: {r}, exit {run->exit_reason}");
            else if (run->exit_reason == KVM_EXIT_MMIO)
                ServeMmio(run);
            else
            {
                v.GetRegs(out kvm_regs regs);
                Fail($"vCPU {cpu}: exit {run->exit_reason} at 0x{regs.rip:x}: page {regs.rbx} reads 0x{regs.rax:x}, expected 0x{regs.rdx:x}");
            }
        }
    }

    /// <summary>Nothing is there: reads give the tag that would be, writes go nowhere.</summary>
    private void ServeMmio(kvm_run* run)
    {
        Interlocked.Increment(ref _mmio);
        ulong page = (run->mmio.phys_addr - AreaGpa) / P;
        if (page >= Regions * RegionPages)
            Fail($"MMIO at 0x{run->mmio.phys_addr:x}");
        else if (run->mmio.is_write == 0)
            *(ulong*)run->mmio.data = Tag + page;
    }

    public void Dispose()
    {
        _vm.Dispose();
        _fixed.Dispose();
        foreach (GuestRam ram in _rams)
            ram.Dispose();
        foreach (GuestRam ram in _spares)
            ram.Dispose();
    }
}
