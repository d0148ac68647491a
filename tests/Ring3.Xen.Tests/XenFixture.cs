using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

// SAFETY: pointers into the fixture's guest memory, which lives as long as it.
namespace Ring3.Xen.Tests;

/// <summary>Guest memory of 64 pages and vCPUs that record what they are told. KVM ids and Xen ids differ from the positions.</summary>
internal sealed unsafe class XenFixture : IXenMachine, IDisposable
{
    public const ulong SharedGpa = 0x1000, VcpuInfoGpa = 0x2000, RunstateGpa = 0x4000, ControlGpa = 0x5000, ArrayGpa = 0x8000, Bytes = 64 * 4096;
    public const uint TwoLevel = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL;

    public GuestRam Ram { get; } = new(Bytes);
    public MemorySlots Slots { get; } = new();
    public XenVm Vm { get; }
    public List<FakeProcessor> Processors { get; } = [];
    public long Now = 1_000_000;
    public int Deferred;

    public XenFixture(int vcpus = 1, bool longMode = true, bool shared = true)
    {
        Slots.SetRegion(0, 0, 0, Bytes, Ram.Hva);
        Vm = new XenVm(Slots, this);
        for (int i = 0; i < vcpus; i++)
            Processors.Add(new FakeProcessor(this, (uint)(10 + i), i));
        Assert.Equal(0, Vm.SetAttribute(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_LONG_MODE, long_mode = longMode ? (byte)1 : (byte)0 }));
        Assert.Equal(0, Vm.SetAttribute(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector = 0xf3 }));
        if (!shared)
            return;
        Assert.Equal(0, Vm.SetAttribute(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn = SharedGpa >> 12 }));
        foreach (FakeProcessor p in Processors)
            Assert.Equal(0, p.Xen.SetAttribute(new kvm_xen_vcpu_attr { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa = InfoGpa(p.Index) }));
    }

    public static ulong InfoGpa(int index) => VcpuInfoGpa + (ulong)index * 64;

    public byte* At(ulong gpa) => (byte*)Ram.Hva + gpa;
    public ref ulong Word(ulong gpa) => ref *(ulong*)At(gpa);
    public ref uint Half(ulong gpa) => ref *(uint*)At(gpa);
    public ref byte Byte(ulong gpa) => ref *At(gpa);

    public bool IsPending(uint port) => (Word(SharedGpa + XenAbi.SharedInfo.Pending + port / 64 * 8) >> (int)(port & 63) & 1) != 0;
    public EventTarget To(int processor, uint port) => new(port, Processors[processor].Id, TwoLevel);

    /// <summary>The page goes away in the host and comes back, as munmap and a fault would do: caches are invalid afterwards.</summary>
    public void Invalidate(ulong gpa)
    {
        ulong start = Ram.Hva + (gpa & ~4095UL), end = start + 4096;
        if (Slots.Notifier.InvalidateRangeStart(start, end))
            Slots.Notifier.InvalidateRangeEnd(start, end);
    }

    long IXenMachine.ClockNs => Volatile.Read(ref Now);
    long IXenMachine.WallClockEpochNs => 5_000_000_007;
    void IXenMachine.RequestClockUpdate() { }
    XenVcpu? IXenMachine.FindVcpu(uint kvmId) => Processors.Find(p => p.Id == kvmId)?.Xen;
    XenVcpu? IXenMachine.VcpuAt(int index) => index < Processors.Count ? Processors[index].Xen : null;
    void IXenMachine.QueueDeferred() => Interlocked.Increment(ref Deferred);
    void IXenMachine.FlushDeferred() => Vm.DeliverDeferred();

    public void Dispose()
    {
        foreach (FakeProcessor p in Processors)
            p.Xen.Dispose();
        Vm.Dispose();
        Ram.Dispose();
    }
}

internal sealed class FakeProcessor : IXenProcessor
{
    private readonly XenFixture _fixture;

    public FakeProcessor(XenFixture fixture, uint id, int index)
    {
        (_fixture, Id, Index) = (fixture, id, index);
        Xen = new XenVcpu(fixture.Vm, this);
    }

    public XenVcpu Xen { get; }
    public uint Id { get; }
    public int Index { get; }
    public bool HasLapic => true;
    public int Kicks;
    public readonly List<byte> Vectors = [];
    public ulong? Timer;
    public long RunDelayNs { get; set; }
    public int Waits, Yields;
    public Action? OnWait;

    public void KickForEvents() => Interlocked.Increment(ref Kicks);
    public void InjectVector(byte vector)
    {
        lock (Vectors)
            Vectors.Add(vector);
    }
    public void RequestClockUpdate() { }
    public void ArmTimer(ulong deadlineClockNs) => Timer = deadlineClockNs;
    public void CancelTimer() => Timer = null;
    public void WaitForEvent(Func<bool> ready, long timeoutNs)
    {
        Waits++;
        OnWait?.Invoke();
    }
    public void Yield() => Yields++;
    public unsafe bool ReadVirtual(ulong gva, Span<byte> destination)
    {
        if (gva + (ulong)destination.Length > XenFixture.Bytes)
            return false;
        new Span<byte>(_fixture.At(gva), destination.Length).CopyTo(destination);
        return true;
    }
}
