using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu.Tests;

/// <summary>A VM's memory and MMU with fake vCPUs.</summary>
internal sealed unsafe class MmuFixture : IDisposable
{
    public readonly MemorySlots Slots = new();
    public readonly FakeHost Host = new();
    public readonly WorkQueue Queue = new("test worker");
    public readonly TdpMmu Tdp;
    public readonly List<FakeVcpu> Vcpus = [];
    private readonly List<GuestRam> _ram = [];
    private Exception? _workerFailure;

    public MmuFixture(int vcpus = 1, RootZapPolicy policy = RootZapPolicy.Worker, bool accessedBits = true)
    {
        Queue.Failed = e => _workerFailure = e;
        // As KVM does: what a processor does not mark as dirty is tracked by write protection.
        if (!accessedBits)
            Slots.DirtyTracking = DirtyTracking.WriteProtect;
        Tdp = new TdpMmu(Slots, Host, Queue) { ZapPolicy = policy, AccessedBits = accessedBits };
        for (int i = 0; i < vcpus; i++)
            Vcpus.Add(new FakeVcpu(Tdp, Host) { AccessedAndDirty = accessedBits });
    }

    public FakeVcpu V => Vcpus[0];

    public GuestRam AddRam(uint slot, ulong gpa, ulong bytes, uint flags = 0, ulong hvaOffset = 0)
    {
        var ram = new GuestRam(bytes + hvaOffset);
        _ram.Add(ram);
        Assert.Equal(0, Slots.SetRegion(slot, flags, gpa, bytes, ram.Hva + hvaOffset));
        return ram;
    }

    public void SetFlags(uint slot, uint flags)
    {
        Memslot s = Slots.Set((int)(slot >> 16)).ById((ushort)slot)!;
        Assert.Equal(0, Slots.SetRegion(slot, flags, s.BaseGfn << 12, s.NPages << 12, s.UserspaceAddr));
    }

    public void Delete(uint slot) => Assert.Equal(0, Slots.SetRegion(slot, 0, 0, 0, 0));

    public ulong[] GetDirtyLog(uint slot)
    {
        Memslot s = Slots.Set((int)(slot >> 16)).ById((ushort)slot)!;
        ulong[] bitmap = new ulong[(s.NPages + 63) / 64];
        fixed (ulong* b = bitmap)
            Assert.Equal(0, Tdp.GetDirtyLog(slot, (ulong)b));
        return bitmap;
    }

    public void Dispose()
    {
        Tdp.CheckInvariants();
        foreach (FakeVcpu vcpu in Vcpus)
            vcpu.Dispose();
        Tdp.Dispose();
        Queue.Dispose();
        foreach (GuestRam ram in _ram)
            ram.Dispose();
        Assert.Null(_workerFailure);
    }
}
