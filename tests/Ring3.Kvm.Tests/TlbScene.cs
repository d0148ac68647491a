using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>A checked VM whose guest counts at <see cref="Gpa"/> and leaves with port I/O after each count.</summary>
internal sealed unsafe class TlbScene : IDisposable
{
    public const ulong Gpa = 0x4000_0000, Other = 0x5000_0000, Size = 2 << 20;
    public const uint Slot = 7, OtherSlot = 8;

    public readonly Vm Vm;
    public readonly Vcpu V;
    public readonly GuestRam Ram = new(Size), OtherRam = new(Size);
    private readonly GuestRam _low = new(2 << 20);
    private uint _fetch;

    /// <param name="middle">Instructions between the count and the exit.</param>
    /// <param name="exits">False: the guest counts for ever.</param>
    public TlbScene(ReadOnlySpan<byte> middle = default, uint flags = 0, bool rings = false, bool manual = false, DirtyTracking tracking = default,
        bool isProtected = false, bool exits = true, VmOptions? options = null)
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

