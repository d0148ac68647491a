using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm.Tests;

/// <summary>A descriptor as a client sees it, without an interposer in between: the handle is released and the memfd closed on Dispose.</summary>
internal sealed unsafe class Descriptor : IDisposable
{
    private bool _closed;

    public Descriptor(in NewFd fd) => (Handle, Fd, Kind) = (fd.Handle, fd.Fd, (ObjectKind)fd.Kind);

    public ulong Handle { get; }
    public int Fd { get; }
    public ObjectKind Kind { get; }

    public long Ioctl(uint command, ulong argument = 0)
    {
        long r = KvmDevice.Ioctl(Handle, command, argument, out NewFd fd);
        Assert.Equal(0ul, fd.Handle);
        return r;
    }

    public long Ioctl<T>(uint command, ref T value) where T : unmanaged
    {
        fixed (T* p = &value)
            return Ioctl(command, (ulong)p);
    }

    public long Set<T>(uint command, T value) where T : unmanaged => Ioctl(command, (ulong)&value);

    public T Get<T>(uint command) where T : unmanaged
    {
        T value = default;
        Assert.Equal(0, Ioctl(command, (ulong)&value));
        return value;
    }

    /// <summary>A call that makes a descriptor.</summary>
    public Descriptor Make(uint command, ulong argument = 0)
    {
        long r = KvmDevice.Ioctl(Handle, command, argument, out NewFd fd);
        Assert.Equal(0, r);
        Assert.NotEqual(0ul, fd.Handle);
        return new Descriptor(fd);
    }

    public void Dispose()
    {
        if (_closed)
            return;
        _closed = true;
        MemFd.Close(Fd);
        KvmDevice.Release(Handle);
    }
}

/// <summary>/dev/kvm, a VM with 1 MiB of memory at 0, and one vCPU in flat real mode, whose code is given.</summary>
internal sealed unsafe class Client : IDisposable
{
    public const int MemoryBytes = 1 << 20;
    private readonly List<Descriptor> _more = [];

    public Client(ReadOnlySpan<byte> code = default, bool irqchip = false)
    {
        Kvm = Open();
        Vm = Kvm.Make(KVM_CREATE_VM);
        if (irqchip)
            Assert.Equal(0, Vm.Ioctl(KVM_CREATE_IRQCHIP));
        Memory = HostMemory.Map(MemoryBytes);
        Assert.Equal(0, Vm.Set(KVM_SET_USER_MEMORY_REGION, new kvm_userspace_memory_region { memory_size = MemoryBytes, userspace_addr = (ulong)Memory }));
        Vcpu = AddVcpu(0);
        Run = (kvm_run*)MapRun(Vcpu);
        code.CopyTo(new Span<byte>(Memory + 0x1000, MemoryBytes - 0x1000));
        Start(Vcpu, 0x1000);
    }

    public Descriptor Kvm { get; }
    public Descriptor Vm { get; }
    public Descriptor Vcpu { get; }
    public kvm_run* Run { get; }
    public byte* Memory { get; }

    public static Descriptor Open()
    {
        Assert.Equal(0, KvmDevice.Open(out NewFd fd));
        return new Descriptor(fd);
    }

    public Descriptor AddVcpu(uint id)
    {
        Descriptor v = Vm.Make(KVM_CREATE_VCPU, id);
        _more.Add(v);
        return v;
    }

    public static byte* MapRun(Descriptor vcpu) => HostMemory.MapShared(vcpu.Fd, 3 * 4096);

    public static void Start(Descriptor vcpu, ulong rip)
    {
        var sregs = vcpu.Get<kvm_sregs>(KVM_GET_SREGS);
        sregs.cs.@base = sregs.cs.selector = 0;
        Assert.Equal(0, vcpu.Set(KVM_SET_SREGS, sregs));
        Assert.Equal(0, vcpu.Set(KVM_SET_REGS, new kvm_regs { rip = rip, rsp = 0x8000, rflags = 2 }));
    }

    public void Dispose()
    {
        foreach (Descriptor d in _more)
            d.Dispose();
        Vm.Dispose();
        Kvm.Dispose();
        HostMemory.Unmap(Run, 3 * 4096);
        HostMemory.Unmap(Memory, MemoryBytes);
    }
}
