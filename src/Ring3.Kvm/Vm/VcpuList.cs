using Ring3.Abi;
using Ring3.Host;

namespace Ring3.Kvm;

/// <summary>
/// The vCPUs of a VM in order of creation, the rules for their ids, and requests to all or many of them. The lists are replaced, never changed: whoever reads
/// them takes no lock.
/// </summary>
/// <param name="shaping">The VM's lock of that name.</param>
internal sealed class VcpuList(RankedLock shaping)
{
    private Vcpu[] _all = [];
    private VcpuRequests[] _requests = [];

    /// <summary>Bound of ids that the client set with KVM_CAP_MAX_VCPU_ID, once, or that the first vCPU has fixed; 0 before.</summary>
    private uint _maxIds;

    public Vcpu[] All => Volatile.Read(ref _all);
    public VcpuRequests[] Requests => Volatile.Read(ref _requests);
    public int Count => All.Length;

    // ---- Ids ----

    /// <summary>The vCPU that starts without INIT and SIPI.</summary>
    public uint BootId { get; private set; }

    /// <summary>KVM_SET_BOOT_CPU_ID: 0, -EBUSY when vCPUs exist, -EINVAL for an id out of range.</summary>
    public int SetBootId(ulong id)
    {
        using (shaping.Enter())
        {
            if (_all.Length != 0)
                return -Errno.EBUSY;
            if (id > (_maxIds != 0 ? _maxIds : Vm.MaxVcpus))
                return -Errno.EINVAL;
            BootId = (uint)id;
        }
        return 0;
    }

    /// <summary>KVM_CAP_MAX_VCPU_ID: 0, or -EINVAL beyond what is possible, below the boot processor's id, or for another value than before.</summary>
    public int SetMaxIds(ulong ids)
    {
        using (shaping.Enter())
        {
            if (ids > Vm.MaxVcpus || BootId > ids || _maxIds != 0 && _maxIds != ids)
                return -Errno.EINVAL;
            _maxIds = (uint)ids;
        }
        return 0;
    }

    /// <summary>Whether there can be a vCPU with an id: 0, -EINVAL, -EEXIST. For the holder of the lock, who adds it.</summary>
    public int Admit(uint id)
    {
        // KVM: the first vCPU fixes the bound.
        if (_maxIds == 0)
            _maxIds = Vm.MaxVcpus;
        if (id >= _maxIds)
            return -Errno.EINVAL;
        return Find(id) is null ? 0 : -Errno.EEXIST;
    }

    /// <summary>For the holder of the lock.</summary>
    public void Add(Vcpu vcpu)
    {
        Volatile.Write(ref _requests, [.. _requests, vcpu.Requests]);
        Volatile.Write(ref _all, [.. _all, vcpu]);
    }

    /// <summary>The vCPU with an id, which is its APIC id, or null.</summary>
    public Vcpu? Find(uint id)
    {
        // Ids are mostly positions.
        Vcpu[] all = All;
        if (id < (uint)all.Length && all[id].Id == id)
            return all[id];
        return Array.Find(all, v => v.Id == id);
    }

    // ---- Requests ----

    /// <summary>Makes a request to every vCPU. Returns whether any was kicked.</summary>
    public bool Make(VcpuRequest request) => VcpuRequests.MakeAll(Requests, request);

    /// <summary>Makes a request to some vCPUs: bit n of <paramref name="include"/> is the vCPU with index n. Returns whether any was kicked.</summary>
    public bool Make(VcpuRequest request, ReadOnlySpan<ulong> include) => !include.IsEmpty && VcpuRequests.MakeAll(Requests, request, include);

    public void WakeUp()
    {
        foreach (VcpuRequests r in Requests)
            r.WakeUp();
    }

    /// <summary>Gets every vCPU out of <see cref="Vcpu.Run"/>; the VM is dead, so none goes in again.</summary>
    public void Stop()
    {
        // PAIRS-WITH: Vcpu.TryClaim (says that it runs, then looks whether the VM is dead).
        Interlocked.MemoryBarrier();
        Make(VcpuRequest.VmDead);
        WakeUp();
        foreach (Vcpu v in All)
            v.WaitUntilStopped();
    }

    /// <exception cref="InvalidOperationException">The calling thread is inside <see cref="Vcpu.Run"/> of one of the vCPUs.</exception>
    public void RefuseIfInside()
    {
        foreach (Vcpu v in All)
            v.RefuseIfRunByThisThread();
    }
}
