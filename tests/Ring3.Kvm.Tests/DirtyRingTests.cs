using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>KVM_CAP_DIRTY_LOG_RING.</summary>
public sealed unsafe class DirtyRingTests : IDisposable
{
    private const ulong Gpa = 0x4000_0000;
    private const int Entries = 256, Pages = 512;

    private readonly Vm _vm = Vm.Create();
    private readonly GuestRam _code = new(2 << 20), _ram = new(Pages * 4096);
    private readonly Vcpu _v;
    private uint _fetch;

    public DirtyRingTests()
    {
        Assert.Equal(0, Enable(Entries * 16));
        Assert.Equal(0, _vm.SetUserMemoryRegion(0, 0, 0, 2 << 20, _code.Hva));
        Assert.Equal(0, _vm.SetUserMemoryRegion(7, KVM_MEM_LOG_DIRTY_PAGES, Gpa, Pages * 4096, _ram.Hva));
        _vm.Memory.TryWrite(TestGuest.Tables, TestGuest.Tables + 0x1000 | 7UL);
        for (ulong i = 0; i < 4; i++)
            _vm.Memory.TryWrite(TestGuest.Tables + 0x1000 + 8 * i, i << 30 | 0x87);
        _v = _vm.CreateVcpu(0);
        Assert.Equal(0, _v.SetCpuid2(SupportedCpuid.Entries));
        TestGuest.StartLong(_v, TestGuest.Code, TestGuest.Stack);
        // mov ebx, Gpa; mov ecx, Pages; again: inc dword [rbx]; add rbx, 4096; loop again; out 0xf4, al; jmp start
        _vm.Memory.Write(TestGuest.Code, [0xbb, 0, 0, 0, 0x40, 0xb9, 0, 2, 0, 0, 0xff, 0x03, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0xe2, 0xf5, 0xe6, 0xf4, 0xeb,
            0xe7]);
    }

    public void Dispose()
    {
        _vm.Dispose();
        _code.Dispose();
        _ram.Dispose();
    }

    private int Enable(ulong bytes)
    {
        var cap = new kvm_enable_cap { cap = KVM_CAP_DIRTY_LOG_RING };
        cap.args[0] = bytes;
        return _vm.EnableCap(cap);
    }

    private uint Run()
    {
        Assert.Equal(0, _v.Run());
        return _v.KvmRun->exit_reason;
    }

    /// <summary>Collects as a client does.</summary>
    private List<ulong> Collect()
    {
        var ring = (kvm_dirty_gfn*)((byte*)_v.KvmRun + 64 * 4096);
        var found = new List<ulong>();
        for (; ; _fetch++)
        {
            kvm_dirty_gfn* e = &ring[_fetch % Entries];
            if (Volatile.Read(ref e->flags) != KVM_DIRTY_GFN_F_DIRTY)
                return found;
            Assert.Equal(7u, e->slot);
            found.Add(e->offset);
            Volatile.Write(ref e->flags, KVM_DIRTY_GFN_F_RESET);
        }
    }

    [Fact]
    public void FullRing_StopsTheGuest_AndNoWriteIsMissed()
    {
        for (int round = 0; round < 2; round++)
        {
            var seen = new HashSet<ulong>();
            int fulls = 0;
            while (Run() == KVM_EXIT_DIRTY_RING_FULL)
            {
                fulls++;
                // Still full: the guest does not run.
                Assert.Equal(KVM_EXIT_DIRTY_RING_FULL, Run());
                List<ulong> some = Collect();
                Assert.Equal(Entries - DirtyRing.ReservedEntries, some.Count);
                seen.UnionWith(some);
                Assert.Equal(some.Count, _vm.ResetDirtyRings());
            }
            Assert.Equal(KVM_EXIT_IO, _v.KvmRun->exit_reason);
            Assert.True(fulls >= 2);
            seen.UnionWith(Collect());
            _vm.ResetDirtyRings();
            Assert.Equal(Pages, seen.Count);
            Assert.Equal(round + 1, *(int*)(_ram.Hva + (Pages - 1) * 4096));
        }
    }

    [Fact]
    public void CollectedPages_AreProtectedAgain_OthersAreNot()
    {
        while (Run() == KVM_EXIT_DIRTY_RING_FULL)
        {
            Collect();
            _vm.ResetDirtyRings();
        }
        Collect();
        _vm.ResetDirtyRings();
        // One page written by the hypervisor for the vCPU's thread goes to its ring, others' writes to none.
        _vm.Memory.TryWrite(Gpa, 1UL);
        Assert.Empty(Collect());
        DirtyRing.Current = _v.DirtyRing;
        _vm.Memory.TryWrite(Gpa + 0x3000, 1UL);
        DirtyRing.Current = null;
        Assert.Equal([3UL], Collect());
    }

    [Fact]
    public void Errors()
    {
        Assert.Equal(-Errno.ENXIO, _vm.GetDirtyLog(new kvm_dirty_log { slot = 7 }));
        Assert.Equal(-Errno.ENXIO, _vm.ClearDirtyLog(new kvm_clear_dirty_log { slot = 7 }));
        Assert.Equal(-Errno.EINVAL, Enable(Entries * 16));
        using Vm vm = Vm.Create();
        Assert.Equal(-Errno.EINVAL, vm.ResetDirtyRings());
        var cap = new kvm_enable_cap { cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL };
        foreach (var (bytes, expected) in new[] { (0UL, -Errno.EINVAL), (2048UL, -Errno.EINVAL), (12288UL, -Errno.EINVAL), (2UL << 20, -Errno.E2BIG),
            (1UL << 20, 0), (1UL << 20, -Errno.EINVAL) })
        {
            cap.args[0] = bytes;
            Assert.Equal(expected, vm.EnableCap(cap));
        }
        using Vm late = Vm.Create();
        late.CreateVcpu(0);
        Assert.Equal(-Errno.EINVAL, late.EnableCap(cap));
    }
}
