using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm;

/// <summary>A vCPU's descriptor. Its memfd is the vCPU's shared area: the client maps it, and so does Ring3.</summary>
internal sealed partial class VcpuObject(VmObject vm, Vcpu vcpu) : KvmObject
{
    /// <summary>Pages that a dirty ring can have; they begin at KVM_DIRTY_LOG_PAGE_OFFSET.</summary>
    public const int MaxDirtyRingPages = 256;

    /// <summary>Size of the memfd. Pages that are never touched cost nothing.</summary>
    public const int FileBytes = ((int)KVM_DIRTY_LOG_PAGE_OFFSET + MaxDirtyRingPages) * 4096;

    /// <summary>KVM's vcpu->mutex: held by every ioctl of the vCPU, KVM_RUN included.</summary>
    private readonly FutexMutex _mutex = new(LockRank.VcpuMutex, anonymous: true);
    private int _closed, _released;

    public Vcpu Vcpu { get; } = vcpu;
    public VmObject VmObject => vm;
    public override ObjectKind Kind => ObjectKind.Vcpu;
    public override string Name => $"{vm.Name}.cpu{Vcpu.Id}";

    public override long Ioctl(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        if (command == KVM_RUN)
            return Run(argument, Environment.CurrentManagedThreadId);
        // KVM: looks at the VM before it waits for the mutex, so a call on a dead VM never waits.
        if (Vcpu.Vm.IsDead)
            return -Errno.EIO;
        _mutex.Enter();
        long r;
        try
        {
            r = _closed != 0 ? -Errno.EBADF : Dispatch(command, argument, out fd);
        }
        catch
        {
            Leave();
            throw;
        }
        Leave();
        return r;
    }

    /// <summary>KVM_RUN, as <see cref="KvmDevice.Call"/> does it; by the thread of this number.</summary>
    public long Run(ulong argument, int thread)
    {
        if (Vcpu.Vm.IsDead)
            return -Errno.EIO;
        _mutex.Enter();
        long r;
        // Not a finally: it would be a call on each KVM_RUN.
        try
        {
            r = _closed != 0 ? -Errno.EBADF : argument != 0 ? -Errno.EINVAL : Vcpu.RunExclusive(thread);
        }
        catch (Exception e)
        {
            Leave();
            return KvmDevice.Failed(this, e);
        }
        Leave();
        return r;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Leave()
    {
        _mutex.Exit();
        // PAIRS-WITH: Close (flag, process-wide barrier, then the mutex). Either this thread sees the flag, or the closer gets the mutex.
        if (Volatile.Read(ref _closed) != 0)
            ReleaseIfIdle();
    }

    public override void Close()
    {
        Volatile.Write(ref _closed, 1);
        // PAIRS-WITH: Ioctl (mutex released without a fence, then the flag).
        Interlocked.MemoryBarrierProcessWide();
        ReleaseIfIdle();
    }

    /// <summary>Drops the reference to the VM once, when no call is inside. The vCPU itself lives as long as its VM, as in KVM.</summary>
    private void ReleaseIfIdle()
    {
        if (!_mutex.TryEnter())
            return;
        bool mine = Interlocked.Exchange(ref _released, 1) == 0;
        _mutex.Exit();
        if (mine)
            vm.Put();
    }
}
