using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Memory;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>
/// The TLB sanitizer, site by site: the same few steps with the flush that belongs to them, and without it. With the flush nothing is reported; without, the next use of the stale translation is.
/// </summary>
public sealed unsafe class TlbSanitizerTests
{
    private const ulong Gpa = 0x4000_0000, Other = 0x5000_0000, Size = 2 << 20;
    private const uint Slot = 7, OtherSlot = 8, Log = KVM_MEM_LOG_DIRTY_PAGES;

    /// <summary>A checked VM whose guest counts at <see cref="Gpa"/> and leaves with port I/O after each count.</summary>
    private sealed class Scene : IDisposable
    {
        public readonly Vm Vm;
        public readonly Vcpu V;
        public readonly GuestRam Ram = new(Size), OtherRam = new(Size);
        private readonly GuestRam _low = new(2 << 20);
        private uint _fetch;

        /// <param name="middle">Instructions between the count and the exit.</param>
        /// <param name="exits">False: the guest counts for ever.</param>
        public Scene(ReadOnlySpan<byte> middle = default, uint flags = 0, bool rings = false, bool manual = false, DirtyTracking tracking = default, bool isProtected = false, bool exits = true, VmOptions? options = null)
        {
            Vm = Vm.Create((options ?? new VmOptions()) with { CheckTlb = true, DirtyTracking = tracking, Type = isProtected ? KVM_X86_SW_PROTECTED_VM : 0 });
            if (rings)
                Enable(KVM_CAP_DIRTY_LOG_RING, 4096);
            if (manual)
                Enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
            Assert.Equal(0, Vm.SetUserMemoryRegion(0, 0, 0, 2 << 20, _low.Hva));
            Assert.Equal(0, Vm.SetUserMemoryRegion(OtherSlot, 0, Other, Size, OtherRam.Hva));
            if (!isProtected)
                SetFlags(flags);
            Vm.Memory.TryWrite(TestGuest.Tables, TestGuest.Tables + 0x1000 | 7UL);
            for (ulong i = 0; i < 4; i++)
                Vm.Memory.TryWrite(TestGuest.Tables + 0x1000 + 8 * i, i << 30 | 0x87);
            V = Vm.CreateVcpu(0);
            Assert.Equal(0, V.SetCpuid2(SupportedCpuid.Entries));
            TestGuest.StartLong(V, TestGuest.Code, TestGuest.Stack);
            // mov ebx, Gpa; mov esi, 0x20000; again: inc qword [rbx]; ...; out 0xf4, al; jmp again
            byte[] head = [0xbb, 0, 0, 0, 0x40, 0xbe, 0, 0, 2, 0, 0x48, 0xff, 0x03], tail = exits ? [0xe6, 0xf4] : [0x90, 0x90];
            byte[] code = [.. head, .. middle, .. tail, 0xeb, (byte)-(3 + middle.Length + 4)];
            Vm.Memory.Write(TestGuest.Code, code);
        }

        private void Enable(int capability, ulong value)
        {
            var cap = new kvm_enable_cap { cap = (uint)capability };
            cap.args[0] = value;
            Assert.Equal(0, Vm.EnableCap(cap));
        }

        public void SetFlags(uint flags) => Assert.Equal(0, Vm.SetUserMemoryRegion(Slot, flags, Gpa, Size, Ram.Hva));

        /// <summary>One count. False: the VM is dead of a violation.</summary>
        public bool Count()
        {
            int r = V.Run();
            if (Vm.IsDead)
            {
                // The processor finds out at the exit at the latest.
                Assert.Contains("TLB sanitizer", Vm.BugMessage);
                return false;
            }
            Assert.Equal(0, r);
            Assert.Equal(KVM_EXIT_IO, V.KvmRun->exit_reason);
            return true;
        }

        public void GetDirtyLog()
        {
            ulong* bitmap = stackalloc ulong[8];
            Assert.Equal(0, Vm.GetDirtyLog(new kvm_dirty_log { slot = Slot, dirty_bitmap = (ulong)bitmap }));
            Assert.Equal(1UL, bitmap[0]);
        }

        public void ClearDirtyLog()
        {
            ulong bit = 1;
            Assert.Equal(0, Vm.ClearDirtyLog(new kvm_clear_dirty_log { slot = Slot, num_pages = 512, dirty_bitmap = (ulong)Bits(&bit) }));
        }

        private static ulong* Bits(ulong* one)
        {
            s_bits[0] = *one;
            return s_bits;
        }

        private static readonly ulong* s_bits = (ulong*)System.Runtime.InteropServices.NativeMemory.AllocZeroed(64);

        public void ResetRing()
        {
            var ring = (kvm_dirty_gfn*)((byte*)V.KvmRun + 64 * 4096);
            for (; Volatile.Read(ref ring[_fetch % 256].flags) == KVM_DIRTY_GFN_F_DIRTY; _fetch++)
                Volatile.Write(ref ring[_fetch % 256].flags, KVM_DIRTY_GFN_F_RESET);
            Assert.True(Vm.ResetDirtyRings() > 0);
        }

        public void Dispose()
        {
            Vm.Dispose();
            Ram.Dispose();
            OtherRam.Dispose();
            _low.Dispose();
        }
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

    /// <summary>Counts, lets the host do something, counts again. True: no violation.</summary>
    private static bool Play(Scene s, Action between, Action? suppress)
    {
        Assert.True(s.Count());
        suppress?.Invoke();
        between();
        bool fine = s.Count() && s.Count();
        if (fine)
            Assert.Equal(3UL, *(ulong*)s.Ram.Hva);
        return fine;
    }

    private static bool Play(Scene s, FlushSite site, bool suppressed, Action between)
    {
        bool fine = Play(s, between, suppressed ? () => s.Vm.SuppressFlushes(site) : null);
        // Changes of the tables are reported with who owes their flush.
        if (!fine && site is <= FlushSite.Notifier or FlushSite.AgeByPermission)
            Assert.Contains($"flush of {site} has not dropped it", s.Vm.BugMessage);
        return fine;
    }

    public static TheoryData<FlushSite, bool> Sites()
    {
        var data = new TheoryData<FlushSite, bool>();
        for (FlushSite site = FlushSite.TrackSlot; site < FlushSite.Count; site++)
            if (site is not FlushSite.ObsoleteRoots) // See ObsoleteRoot_InARunningGuest.
            {
                data.Add(site, false);
                data.Add(site, true);
            }
        return data;
    }

    [Theory]
    [MemberData(nameof(Sites))]
    public void EverySite_IsMissed_ExactlyWhenItIsLeftOut(FlushSite site, bool suppressed)
    {
        bool fine;
        switch (site)
        {
            case FlushSite.TrackSlot:
                using (var s = new Scene())
                    fine = Play(s, site, suppressed, () => s.SetFlags(Log));
                break;
            case FlushSite.GetDirtyLog:
                using (var s = new Scene(flags: Log))
                    fine = Play(s, site, suppressed, s.GetDirtyLog);
                break;
            case FlushSite.ClearDirtyLog:
                using (var s = new Scene(flags: Log, manual: true))
                    fine = Play(s, site, suppressed, () =>
                    {
                        s.GetDirtyLog();
                        s.ClearDirtyLog();
                    });
                break;
            case FlushSite.ResetDirtyRings:
                using (var s = new Scene(flags: Log, rings: true))
                    fine = Play(s, site, suppressed, s.ResetRing);
                break;
            case FlushSite.HarvestDirty:
                using (var s = new Scene())
                    fine = Play(s, site, suppressed, () => Assert.True(s.Vm.Mmu.HarvestDirty(Gpa >> 12, (Gpa >> 12) + 512, new ulong[8]) > 0));
                break;
            case FlushSite.RecoverHugePages:
                using (var s = new Scene(flags: Log))
                    fine = Play(s, site, suppressed, () => s.SetFlags(0));
                break;
            case FlushSite.RecoverNxSplits:
                // The code is what was split: the next fetch is the stale use.
                using (var s = new Scene(options: new VmOptions { NxHugePages = true, NxHugePagesRecoveryRatio = 0 }))
                    fine = Play(s, site, suppressed, () => Assert.Equal(1, s.Vm.Mmu.RecoverNxSplits(1)));
                break;
            case FlushSite.AgeByPermission:
                using (var s = new Scene(options: new VmOptions { AccessedBits = false }))
                    fine = Play(s, site, suppressed, () =>
                    {
                        ulong[] young = new ulong[8];
                        s.Vm.Mmu.HarvestYoung(Gpa >> 12, (Gpa >> 12) + 512, young);
                        Assert.NotEqual(0UL, young[0] & 1);
                    });
                break;
            case FlushSite.ClientState:
                // The registers as they are: nothing else has a reason to flush.
                using (var s = new Scene())
                    fine = Play(s, site, suppressed, () =>
                    {
                        s.V.GetSregs(out kvm_sregs sregs);
                        Assert.Equal(0, s.V.SetSregs(sregs));
                    });
                break;
            case FlushSite.ZapRange:
                using (var s = new Scene())
                    fine = Play(s, site, suppressed, () => s.Vm.Mmu.ZapGfnRange(Gpa >> 12, (Gpa >> 12) + 512));
                break;
            case FlushSite.Notifier:
                using (var s = new Scene())
                    fine = Play(s, site, suppressed, () =>
                    {
                        Assert.True(s.Vm.Slots.Notifier.InvalidateRangeStart(s.Ram.Hva, s.Ram.Hva + 4096));
                        s.Vm.Slots.Notifier.InvalidateRangeEnd(s.Ram.Hva, s.Ram.Hva + 4096);
                    });
                break;
            case FlushSite.RootLoad:
                using (var s = new Scene())
                    fine = Play(s, site, suppressed, () => Assert.Equal(0, s.Vm.SetUserMemoryRegion(OtherSlot, 0, Other, 0, 0)));
                break;
            case FlushSite.ParavirtFlush:
                using (var s = new Scene())
                {
                    const ulong steal = 0x30000;
                    Assert.Equal(1, s.V.SetMsrs([new kvm_msr_entry { index = 0x4b56_4d03, data = steal | 1 }]));
                    fine = Play(s, site, suppressed, () =>
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
                using (var s = new Scene())
                {
                    Assert.True(s.Count());
                    if (suppressed)
                        s.Vm.SuppressFlushes(site);
                    bool same = false;
                    OnAnotherThread(() => same = s.Count());
                    fine = same;
                }
                break;
            default:
                throw new InvalidOperationException($"{site} has no scene");
        }
        Assert.Equal(!suppressed, fine);
    }

    /// <summary>The ways to track writes take different rights away.</summary>
    [Theory]
    [InlineData(DirtyTracking.DirtyLog, false), InlineData(DirtyTracking.DirtyLog, true)]
    [InlineData(DirtyTracking.DirtyScan, false), InlineData(DirtyTracking.DirtyScan, true)]
    [InlineData(DirtyTracking.WriteProtect, false), InlineData(DirtyTracking.WriteProtect, true)]
    public void DirtyLog_InEveryMode(DirtyTracking tracking, bool suppressed)
    {
        using var s = new Scene(flags: Log, tracking: tracking);
        Assert.Equal(!suppressed, Play(s, FlushSite.GetDirtyLog, suppressed, s.GetDirtyLog));
    }

    /// <summary>Only who is inside the guest depends on the request: everybody else looks at the root when entering.</summary>
    [Theory]
    [InlineData(false), InlineData(true)]
    public void ObsoleteRoot_InARunningGuest(bool suppressed)
    {
        using var s = new Scene(exits: false);
        int result = 0;
        var thread = new Thread(() => result = s.V.Run());
        thread.Start();
        while (Volatile.Read(ref *(ulong*)s.Ram.Hva) < 1000)
            Thread.Yield();
        if (suppressed)
            s.Vm.SuppressFlushes(FlushSite.ObsoleteRoots);
        Assert.Equal(0, s.Vm.SetUserMemoryRegion(OtherSlot, 0, Other, 0, 0));
        if (!suppressed)
        {
            ulong now = Volatile.Read(ref *(ulong*)s.Ram.Hva);
            while (!s.Vm.IsDead && Volatile.Read(ref *(ulong*)s.Ram.Hva) < now + 1000)
                Thread.Yield();
            s.V.Kick();
        }
        Assert.True(thread.Join(60_000));
        Assert.Equal(suppressed ? -Errno.EIO : -Errno.EINTR, result);
        Assert.Equal(suppressed, s.Vm.IsDead);
        // Nothing of the root has changed when it becomes obsolete, and whatever the zap takes away is taken after its retirement was recorded: so it is rule (b) whenever the guest is caught.
        if (suppressed)
            Assert.Contains("(b) translation of a root that is obsolete since change", s.Vm.BugMessage);
    }

    [Theory]
    [InlineData(false), InlineData(true)]
    public void Attributes(bool suppressed)
    {
        using var s = new Scene(isProtected: true);
        Assert.Equal(0, s.Vm.CreateGuestMemfd(new kvm_create_guest_memfd { size = Size }, out GuestMemfd? memory));
        var region = new kvm_userspace_memory_region2 { slot = Slot, flags = KVM_MEM_GUEST_MEMFD, guest_phys_addr = Gpa, memory_size = Size, userspace_addr = s.Ram.Hva };
        Assert.Equal(0, s.Vm.SetUserMemoryRegion(region, memory));
        Assert.True(s.Count());
        if (suppressed)
            s.Vm.SuppressFlushes(FlushSite.Notifier);
        Assert.Equal(0, s.Vm.SetMemoryAttributes(new kvm_memory_attributes { address = Gpa, size = Size, attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE }));
        Assert.Equal(!suppressed, s.Count());
        if (!suppressed)
            Assert.Equal(1UL, *(ulong*)s.Ram.Hva);
        memory!.Release();
    }

    [Theory]
    [InlineData(GuestFlush.Cr3, false), InlineData(GuestFlush.Cr3, true)]
    [InlineData(GuestFlush.Invlpg, false), InlineData(GuestFlush.Invlpg, true)]
    [InlineData(GuestFlush.Invpcid, false), InlineData(GuestFlush.Invpcid, true)]
    [InlineData(GuestFlush.Controls, false), InlineData(GuestFlush.Controls, true)]
    [InlineData(GuestFlush.StateWrite, false), InlineData(GuestFlush.StateWrite, true)]
    public void GuestsOwnFlushes(GuestFlush site, bool suppressed)
    {
        byte[] middle = site switch
        {
            GuestFlush.Cr3 => [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8], // mov rax, cr3; mov cr3, rax
            GuestFlush.Invlpg => [0x0f, 0x01, 0x3b], // invlpg [rbx]
            GuestFlush.Invpcid => [0xb8, 2, 0, 0, 0, 0x66, 0x0f, 0x38, 0x82, 0x06], // mov eax, 2; invpcid rax, [rsi]
            GuestFlush.Controls => [0x0f, 0x20, 0xe0, 0x34, 0x80, 0x0f, 0x22, 0xe0], // mov rax, cr4; xor al, PGE; mov cr4, rax
            _ => [],
        };
        using var s = new Scene(middle);
        if (suppressed)
            s.Vm.SuppressFlushes(site);
        bool fine = s.Count();
        if (fine && site is GuestFlush.StateWrite)
        {
            s.Vm.Memory.TryWrite(TestGuest.Tables + 0x4000, TestGuest.Tables + 0x1000 | 7UL);
            // Not KVM_SET_SREGS, which drops everything anyway (FlushSite.ClientState).
            s.V.Cpu.State->Cr3 = TestGuest.Tables + 0x4000;
            s.V.Cpu.RecomputeMode();
        }
        fine = fine && s.Count() && s.Count();
        Assert.Equal(!suppressed, fine);
        if (fine)
            Assert.Equal(3UL, *(ulong*)s.Ram.Hva);
    }

    /// <summary>INIT of a guest with paging: CR0.PG drops what is linear, so what the reset's own flush drops is the guest-physical translation of the code page, which real mode uses next.</summary>
    [Theory]
    [InlineData(false), InlineData(true)]
    public void Reset_DropsGuestPhysicalTranslations(bool suppressed)
    {
        using var s = new Scene();
        using var rom = new GuestRam(0x10000);
        Assert.Equal(0, s.Vm.SetUserMemoryRegion(OtherSlot + 1, 0, 0xffff_0000, 0x10000, rom.Hva));
        // At the reset vector: jmp 0x1000:0x800. There: out 0xf4, al; jmp back.
        ((ReadOnlySpan<byte>)[0xea, 0, 8, 0, 0x10]).CopyTo(new Span<byte>(rom.Pointer + 0xfff0, 5));
        Assert.True(s.Vm.Memory.Write(TestGuest.Code + 0x800, [0xe6, 0xf4, 0xeb, 0xfc]));
        Assert.True(s.Count());
        if (suppressed)
            s.Vm.SuppressFlushes(GuestFlush.Reset);
        s.V.Cpu.Reset(true);
        Assert.Equal(!suppressed, s.Count() && s.Count());
        if (suppressed)
            Assert.Contains("guest-physical entry older than a flush of its ASID by Reset", s.Vm.BugMessage);
        else
            Assert.Equal(TestGuest.Code >> 4, s.V.Cpu.State->Cs.Selector);
    }

    /// <summary>Nothing that is left out may be reported where it changes nothing.</summary>
    [Fact]
    public void AFlushThatCoversNothingCached_IsNotMissed()
    {
        using var s = new Scene();
        Assert.True(Play(s, FlushSite.ZapRange, true, () => s.Vm.Mmu.ZapGfnRange(Other >> 12, (Other >> 12) + 512)));
    }

    [Fact]
    public void AReportNamesEntryZapAndFlush()
    {
        using var s = new Scene();
        Assert.False(Play(s, FlushSite.ZapRange, true, () => s.Vm.Mmu.ZapGfnRange(Gpa >> 12, (Gpa >> 12) + 1)));
        Assert.Contains($"gpa 0x{Gpa:x}", s.Vm.BugMessage);
        Assert.Contains($"host 0x{s.Ram.Hva:x}", s.Vm.BugMessage);
        Assert.Contains("ZapRange", s.Vm.BugMessage);
        Assert.Equal(-Errno.EIO, s.V.Run());
    }
}
