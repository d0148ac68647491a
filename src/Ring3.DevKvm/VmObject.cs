using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;

// SAFETY: run areas are mappings of this object, kept until the VM that uses them is gone.
namespace Ring3.DevKvm;

/// <summary>
/// A VM's descriptor, and the life of the VM behind it: as KVM's, the VM exists until its own descriptors and those of its vCPUs, devices and statistics are
/// closed and no call is inside it.
/// </summary>
internal sealed partial class VmObject : KvmObject
{
    private static int s_created;

    private readonly int _number = Interlocked.Increment(ref s_created) - 1;
    private readonly RankedLock _lock = new(LockRank.VmObject);
    private readonly List<nint> _runAreas = [];
    /// <summary>One for the VM's own descriptor, one for each object made from it, one for each call inside. The VM is freed when it reaches zero.</summary>
    private int _references = 1;

    private VmObject(Vm vm) => Vm = vm;

    public Vm Vm { get; }
    public override ObjectKind Kind => ObjectKind.Vm;
    public override string Name => $"vm{_number}";

    /// <summary>KVM_CREATE_VM.</summary>
    public static long Create(ulong type, out NewFd fd)
    {
        fd = default;
        if (type is not (KvmApi.KVM_X86_DEFAULT_VM or KvmApi.KVM_X86_SW_PROTECTED_VM))
            return -Errno.EINVAL;
        var vm = new VmObject(Vm.Create(ModuleParameters.Apply(new VmOptions { ExternalWriters = true, Type = (uint)type })));
        int r = Descriptors.Create(vm, "kvm-vm", out fd);
        if (r < 0)
            vm.Vm.Dispose();
        else
            ClientMemory.Add(vm);
        return r;
    }

    /// <summary>Takes a reference; false when the VM is being freed.</summary>
    public bool TryGet()
    {
        for (int n = Volatile.Read(ref _references); n != 0;)
        {
            int seen = Interlocked.CompareExchange(ref _references, n + 1, n);
            if (seen == n)
                return true;
            n = seen;
        }
        return false;
    }

    /// <summary>Takes a reference for an object that is made by a call inside.</summary>
    public void AddReference() => Interlocked.Increment(ref _references);

    /// <summary>Gives a reference back. The last one frees the VM.</summary>
    public void Put()
    {
        if (Interlocked.Decrement(ref _references) == 0)
            Free();
    }

    public override void Close() => Put();

    private unsafe void Free()
    {
        ClientMemory.Remove(this);
        Tracer.VmFreed(this);
        Vm.Dispose();
        foreach (nint area in _runAreas)
            HostMemory.Unmap((void*)area, VcpuObject.FileBytes);
    }

    /// <summary>KVM_CREATE_VCPU.</summary>
    private unsafe long CreateVcpu(ulong id, out NewFd fd)
    {
        fd = default;
        if (id >= Vm.MaxVcpus)
            return -Errno.EINVAL;
        int memfd = MemFd.Create($"kvm-vcpu:{id}", VcpuObject.FileBytes);
        if (memfd < 0)
            return memfd;
        byte* area = MemFd.Map(memfd, VcpuObject.FileBytes);
        int r = -Errno.ENOMEM;
        if (area != null && (r = Vm.CreateVcpu((uint)id, area, out Vcpu? vcpu)) == 0)
        {
            using (_lock.Enter())
                _runAreas.Add((nint)area);
            AddReference();
            r = Descriptors.Publish(new VcpuObject(this, vcpu!), memfd, out fd);
            if (r < 0)
                Put();
            CollectStart();
            return r;
        }
        if (area != null)
            HostMemory.Unmap(area, VcpuObject.FileBytes);
        MemFd.Close(memfd);
        return r;
    }

    private static int s_startIsCollected;

    /// <summary>
    /// The first vCPU leaves the garbage of everything that is made once, the translator's routines above all. Collecting it takes system calls that a filter
    /// which nobody was told of may refuse in the client's first runs; here they come before.
    /// </summary>
    private static void CollectStart()
    {
#pragma warning disable RS0030 // The core's heap is the core's own.
        if (Interlocked.Exchange(ref s_startIsCollected, 1) == 0)
            GC.Collect();
#pragma warning restore RS0030
    }

    /// <summary>A descriptor for an object that keeps the VM alive: 0 or -errno.</summary>
    public int CreateDependent(KvmObject o, string name, out NewFd fd)
    {
        AddReference();
        int r = Descriptors.Create(o, name, out fd);
        if (r < 0)
            Put();
        return r;
    }
}
