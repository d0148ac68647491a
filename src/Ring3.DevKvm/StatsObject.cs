using System.Text;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;

// SAFETY: the image is a mapping of this object's own memfd, whose size was computed from the same descriptors as every offset.
namespace Ring3.DevKvm;

/// <summary>
/// A KVM_GET_STATS_FD descriptor: header, id, descriptors, data, as api.rst lays them out. The memfd holds the image; reading through <see cref="Read"/> brings
/// the data up to date first.
/// </summary>
internal sealed class StatsObject : KvmObject
{
    private const int NameSize = 48;

    private readonly VmObject _vm;
    private readonly string _name;
    private readonly Action<nint> _store;
    private readonly RankedLock _lock = new(LockRank.StatsObject);
    private readonly uint _dataOffset, _size;
    private unsafe byte* _image;

    private StatsObject(VmObject vm, string name, uint dataOffset, uint values, Action<nint> store)
    {
        (_vm, _name, _dataOffset, _store) = (vm, name, dataOffset, store);
        _size = dataOffset + values * 8;
    }

    public override ObjectKind Kind => ObjectKind.Stats;
    public override string Name => _name;

    public static int ForVm(VmObject vm, out NewFd fd) =>
        Create(vm, vm.Vm, $"{vm.Name}.stats", $"kvm-{Environment.ProcessId}", "kvm-vm-stats", VmStats.All, static v => _ = v.Stats, out fd);

    public static int ForVcpu(VmObject vm, Vcpu vcpu, out NewFd fd) =>
        Create(vm, vcpu, $"{vm.Name}.cpu{vcpu.Id}.stats", $"kvm-{Environment.ProcessId}/vcpu-{vcpu.Id}", $"kvm-vcpu-stats:{vcpu.Id}", VcpuStats.Descriptors,
        static _ => { }, out fd);

    private static unsafe int Create<T>(VmObject vm, T source, string name, string id, string file, IReadOnlyList<StatDescriptor<T>> descriptors,
        Action<T> collect, out NewFd fd)
    {
        fd = default;
        uint descOffset = (uint)sizeof(kvm_stats_header) + NameSize, descSize = (uint)sizeof(kvm_stats_desc) + NameSize;
        uint dataOffset = descOffset + (uint)descriptors.Count * descSize;
        var o = new StatsObject(vm, name, dataOffset, (uint)descriptors.Sum(d => d.Size), image => Store(image, source, descriptors, collect));
        int memfd = MemFd.Create(file, o._size);
        if (memfd < 0)
            return memfd;
        o._image = MemFd.Map(memfd, o._size);
        if (o._image == null)
        {
            MemFd.Close(memfd);
            return -Errno.ENOMEM;
        }
        *(kvm_stats_header*)o._image =
            new() { name_size = NameSize, num_desc = (uint)descriptors.Count, id_offset = (uint)sizeof(kvm_stats_header), desc_offset = descOffset,
            data_offset = dataOffset };
        PutString(o._image + sizeof(kvm_stats_header), id);
        uint offset = 0;
        for (int i = 0; i < descriptors.Count; i++)
        {
            StatDescriptor<T> d = descriptors[i];
            byte* at = o._image + descOffset + (uint)i * descSize;
            *(kvm_stats_desc*)at = new() { flags = d.Flags, exponent = d.Exponent, size = d.Size, offset = offset };
            PutString(at + sizeof(kvm_stats_desc), d.Name);
            offset += d.Size * 8u;
        }
        o.Refresh();
        vm.AddReference();
        int r = Descriptors.Publish(o, memfd, out fd);
        if (r < 0)
            o.Close();
        return r;
    }

    private static unsafe void PutString(byte* at, string s) =>
        Encoding.ASCII.GetBytes(s.AsSpan(0, Math.Min(s.Length, NameSize - 1)), new Span<byte>(at, NameSize));

    private static unsafe void Store<T>(nint data, T source, IReadOnlyList<StatDescriptor<T>> descriptors, Action<T> collect)
    {
        collect(source);
        var p = (ulong*)data;
        foreach (StatDescriptor<T> d in descriptors)
            for (int i = 0; i < d.Size; i++)
                *p++ = d.Read(source, i);
    }

    private unsafe void Refresh() => _store((nint)(_image + _dataOffset));

    public override long Ioctl(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        return -Errno.ENOTTY;
    }

    public override unsafe long Read(ulong buffer, ulong length, long offset)
    {
        if (offset < 0)
            return -Errno.EINVAL;
        using (_lock.Enter())
        {
            if (_image == null)
                return -Errno.EBADF;
            Refresh();
            if (offset >= _size)
                return 0;
            nuint n = (nuint)Math.Min(length, (ulong)(_size - offset));
            return UserCopy.TryWrite(buffer, _image + offset, n) ? (long)n : -Errno.EFAULT;
        }
    }

    public override unsafe void Close()
    {
        using (_lock.Enter())
        {
            HostMemory.Unmap(_image, _size);
            _image = null;
        }
        _vm.Put();
    }
}
