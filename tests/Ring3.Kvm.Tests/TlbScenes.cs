using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Memory;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.Tests.TlbScene;

namespace Ring3.Kvm.Tests;

/// <summary>
/// What makes translations stale, site by site, in a checked VM. With the flush that belongs to it nothing is reported; Ring3.Mutants.Tests leaves the
/// flush out, and then the next use of the stale translation is.
/// </summary>
internal static unsafe class TlbScenes
{
    private const uint Log = KVM_MEM_LOG_DIRTY_PAGES;

    /// <summary>Every site that a scene alone can show.</summary>
    public static TheoryData<FlushSite> Sites()
    {
        var data = new TheoryData<FlushSite>();
        for (FlushSite site = FlushSite.TrackSlot; site < FlushSite.Count; site++)
            if (site is not FlushSite.ObsoleteRoots) // See ObsoleteRoot_InARunningGuest.
                data.Add(site);
        return data;
    }

    /// <summary>Counts, lets the host do something, counts again. True: no violation.</summary>
    public static bool Play(TlbScene s, FlushSite site, Action? before, Action between)
    {
        Assert.True(s.Count());
        before?.Invoke();
        between();
        bool fine = s.Count() && s.Count();
        if (fine)
            Assert.Equal(3UL, *(ulong*)s.Ram.Hva);
        // Changes of the tables are reported with who owes their flush.
        else if (site is <= FlushSite.Notifier or FlushSite.AgeByPermission)
            Assert.Contains($"flush of {site} has not dropped it", s.Vm.BugMessage);
        return fine;
    }

    /// <summary>Does what a site owes a flush for. True: no violation.</summary>
    /// <param name="before">Runs when the translation is cached, before the change that makes it stale.</param>
    public static bool Play(FlushSite site, Action? before = null)
    {
        bool fine;
        switch (site)
        {
            case FlushSite.TrackSlot:
                using (var s = new TlbScene())
                    fine = Play(s, site, before, () => s.SetFlags(Log));
                break;
            case FlushSite.GetDirtyLog:
                using (var s = new TlbScene(flags: Log))
                    fine = Play(s, site, before, s.GetDirtyLog);
                break;
            case FlushSite.ClearDirtyLog:
                using (var s = new TlbScene(flags: Log, manual: true))
                    fine = Play(s, site, before, () =>
                    {
                        s.GetDirtyLog();
                        s.ClearDirtyLog();
                    });
                break;
            case FlushSite.ResetDirtyRings:
                using (var s = new TlbScene(flags: Log, rings: true))
                    fine = Play(s, site, before, s.ResetRing);
                break;
            case FlushSite.HarvestDirty:
                using (var s = new TlbScene())
                    fine = Play(s, site, before, () => Assert.True(s.Vm.Mmu.HarvestDirty(Gpa >> 12, (Gpa >> 12) + 512, new ulong[8]) > 0));
                break;
            case FlushSite.RecoverHugePages:
                using (var s = new TlbScene(flags: Log))
                    fine = Play(s, site, before, () => s.SetFlags(0));
                break;
            case FlushSite.RecoverNxSplits:
                // The code is what was split: the next fetch is the stale use.
                using (var s = new TlbScene(options: new VmOptions { NxHugePages = true, NxHugePagesRecoveryRatio = 0 }))
                    fine = Play(s, site, before, () => Assert.Equal(1, s.Vm.Mmu.RecoverNxSplits(1)));
                break;
            case FlushSite.AgeByPermission:
                using (var s = new TlbScene(options: new VmOptions { AccessedBits = false }))
                    fine = Play(s, site, before, () =>
                    {
                        ulong[] young = new ulong[8];
                        s.Vm.Mmu.HarvestYoung(Gpa >> 12, (Gpa >> 12) + 512, young);
                        Assert.NotEqual(0UL, young[0] & 1);
                    });
                break;
            case FlushSite.ClientState:
                // The registers as they are: nothing else has a reason to flush.
                using (var s = new TlbScene())
                    fine = Play(s, site, before, () =>
                    {
                        s.V.GetSregs(out kvm_sregs sregs);
                        Assert.Equal(0, s.V.SetSregs(sregs));
                    });
                break;
            case FlushSite.ZapRange:
                using (var s = new TlbScene())
                    fine = Play(s, site, before, () => s.Vm.Mmu.ZapGfnRange(Gpa >> 12, (Gpa >> 12) + 512));
                break;
            case FlushSite.Notifier:
                using (var s = new TlbScene())
                    fine = Play(s, site, before, () =>
                    {
                        Assert.True(s.Vm.Slots.Notifier.InvalidateRangeStart(s.Ram.Hva, s.Ram.Hva + 4096));
                        s.Vm.Slots.Notifier.InvalidateRangeEnd(s.Ram.Hva, s.Ram.Hva + 4096);
                    });
                break;
            case FlushSite.RootLoad:
                using (var s = new TlbScene())
                    fine = Play(s, site, before, () => Assert.Equal(0, s.Vm.SetUserMemoryRegion(OtherSlot, 0, Other, 0, 0)));
                break;
            case FlushSite.ParavirtFlush:
                using (var s = new TlbScene())
                {
                    const ulong steal = 0x30000;
                    Assert.Equal(1, s.V.SetMsrs([new kvm_msr_entry { index = 0x4b56_4d03, data = steal | 1 }]));
                    fine = Play(s, site, before, () =>
                    {
                        // What another vCPU of the guest does instead of an IPI.
                        Assert.True(s.Vm.Memory.TryRead(steal + 16, out byte preempted));
                        Assert.Equal(KvmPara.KVM_VCPU_PREEMPTED, preempted);
                        s.Vm.Memory.TryWrite(steal + 16, (byte)(KvmPara.KVM_VCPU_PREEMPTED | KvmPara.KVM_VCPU_FLUSH_TLB));
                    });
                    Assert.True(s.V.Stats.tlb_flush_paravirt == 1);
                }
                break;
            case FlushSite.ThreadMove:
                using (var s = new TlbScene())
                {
                    Assert.True(s.Count());
                    before?.Invoke();
                    bool same = false;
                    OnAnotherThread(() => same = s.Count());
                    fine = same;
                }
                break;
            default:
                throw new InvalidOperationException($"{site} has no scene");
        }
        return fine;
    }

    /// <summary>A page is written, its dirty bit taken, and written again. The ways to track writes take different rights away.</summary>
    public static bool PlayDirtyLog(DirtyTracking tracking, Action? before = null)
    {
        using var s = new TlbScene(flags: Log, tracking: tracking);
        return Play(s, FlushSite.GetDirtyLog, before, s.GetDirtyLog);
    }

    /// <summary>Only who is inside the guest depends on the request: everybody else looks at the root when entering.</summary>
    /// <param name="before">Runs when the guest counts, before the root becomes obsolete.</param>
    /// <param name="ends">The violation that is expected ends the guest; otherwise it is kicked when it has gone on.</param>
    public static bool PlayObsoleteRoot(Action? before = null, bool ends = false)
    {
        using var s = new TlbScene(exits: false);
        int result = 0;
        var thread = new Thread(() => result = s.V.Run());
        thread.Start();
        while (Volatile.Read(ref *(ulong*)s.Ram.Hva) < 1000)
            Thread.Yield();
        before?.Invoke();
        Assert.Equal(0, s.Vm.SetUserMemoryRegion(OtherSlot, 0, Other, 0, 0));
        if (!ends)
        {
            ulong now = Volatile.Read(ref *(ulong*)s.Ram.Hva);
            while (!s.Vm.IsDead && Volatile.Read(ref *(ulong*)s.Ram.Hva) < now + 1000)
                Thread.Yield();
            s.V.Kick();
        }
        Assert.True(thread.Join(60_000));
        Assert.Equal(s.Vm.IsDead ? -Errno.EIO : -Errno.EINTR, result);
        // Nothing of the root has changed when it becomes obsolete, and whatever the zap takes away is taken after its retirement was recorded: so it
        // is rule (b) whenever the guest is caught.
        if (s.Vm.IsDead)
            Assert.Contains("(b) translation of a root that is obsolete since change", s.Vm.BugMessage);
        return !s.Vm.IsDead;
    }

    /// <summary>Shared memory becomes private. True: no violation, and the guest's next count is the private memory's.</summary>
    public static bool PlayAttributes(Action? before = null)
    {
        using var s = new TlbScene(isProtected: true);
        Assert.Equal(0, s.Vm.CreateGuestMemfd(new kvm_create_guest_memfd { size = Size }, out GuestMemfd? memory));
        var region = new kvm_userspace_memory_region2 { slot = Slot, flags = KVM_MEM_GUEST_MEMFD, guest_phys_addr = Gpa, memory_size = Size,
            userspace_addr = s.Ram.Hva };
        Assert.Equal(0, s.Vm.SetUserMemoryRegion(region, memory));
        Assert.True(s.Count());
        before?.Invoke();
        Assert.Equal(0, s.Vm.SetMemoryAttributes(new kvm_memory_attributes { address = Gpa, size = Size, attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE }));
        bool fine = s.Count();
        if (fine)
            Assert.Equal(1UL, *(ulong*)s.Ram.Hva);
        memory!.Release();
        return fine;
    }

    /// <summary>The guest, or the owner of its state, changes something and the processor drops what it has cached. True: no violation.</summary>
    public static bool Play(GuestFlush site, Action? before = null)
    {
        byte[] middle = site switch
        {
            GuestFlush.Cr3 => [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8], // mov rax, cr3; mov cr3, rax
            GuestFlush.Invlpg => [0x0f, 0x01, 0x3b], // invlpg [rbx]
            GuestFlush.Invpcid => [0xb8, 2, 0, 0, 0, 0x66, 0x0f, 0x38, 0x82, 0x06], // mov eax, 2; invpcid rax, [rsi]
            GuestFlush.Controls => [0x0f, 0x20, 0xe0, 0x34, 0x80, 0x0f, 0x22, 0xe0], // mov rax, cr4; xor al, PGE; mov cr4, rax
            _ => [],
        };
        using var s = new TlbScene(middle);
        before?.Invoke();
        bool fine = s.Count();
        if (fine && site is GuestFlush.StateWrite)
        {
            s.Vm.Memory.TryWrite(TestGuest.Tables + 0x4000, TestGuest.Tables + 0x1000 | 7UL);
            // Not KVM_SET_SREGS, which drops everything anyway (FlushSite.ClientState).
            s.V.Cpu.State->Cr3 = TestGuest.Tables + 0x4000;
            s.V.Cpu.RecomputeMode();
        }
        fine = fine && s.Count() && s.Count();
        if (fine)
            Assert.Equal(3UL, *(ulong*)s.Ram.Hva);
        return fine;
    }

    /// <summary>
    /// INIT of a guest with paging: CR0.PG drops what is linear, so what the reset's own flush drops is the guest-physical translation of the code
    /// page, which real mode uses next.
    /// </summary>
    public static bool PlayReset(Action? before = null)
    {
        using var s = new TlbScene();
        using var rom = new GuestRam(0x10000);
        Assert.Equal(0, s.Vm.SetUserMemoryRegion(OtherSlot + 1, 0, 0xffff_0000, 0x10000, rom.Hva));
        // At the reset vector: jmp 0x1000:0x800. There: out 0xf4, al; jmp back.
        ((ReadOnlySpan<byte>)[0xea, 0, 8, 0, 0x10]).CopyTo(new Span<byte>(rom.Pointer + 0xfff0, 5));
        Assert.True(s.Vm.Memory.Write(TestGuest.Code + 0x800, [0xe6, 0xf4, 0xeb, 0xfc]));
        Assert.True(s.Count());
        before?.Invoke();
        s.V.Cpu.Reset(true);
        bool fine = s.Count() && s.Count();
        if (fine)
            Assert.Equal(TestGuest.Code >> 4, s.V.Cpu.State->Cs.Selector);
        else
            Assert.Contains("guest-physical entry older than a flush of its ASID by Reset", s.Vm.BugMessage);
        return fine;
    }

    private static void OnAnotherThread(Action body)
    {
        Exception? failure = null;
        var thread = new Thread(() =>
        {
            try { body(); }
            catch (Exception e) { failure = e; }
        });
        thread.Start();
        thread.Join();
        if (failure is not null)
            throw failure;
    }
}
