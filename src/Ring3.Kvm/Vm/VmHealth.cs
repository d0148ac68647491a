namespace Ring3.Kvm;

/// <summary>Whether a VM is dead: broken, or disposed of. Any thread.</summary>
internal sealed class VmHealth(VcpuList vcpus)
{
    private int _dead;
    private string? _bugMessage;

    /// <summary>A host invariant was violated, or the VM is disposed of: KVM_RUN of every vCPU returns -EIO from now on.</summary>
    public bool IsDead => Volatile.Read(ref _dead) != 0;

    /// <summary>What was found broken first; null: nothing.</summary>
    public string? BugMessage => _bugMessage;

    /// <summary>Marks the VM dead and gets its vCPUs out of the guest. Nothing of other VMs is touched.</summary>
    public void Bug(string what)
    {
        if (!TryDie(what))
            return;
        vcpus.Make(VcpuRequest.VmDead);
        vcpus.WakeUp();
    }

    /// <summary>Marks the VM dead from inside the guest, where nothing may be waited for: the processors find the request at their next exit.</summary>
    public void BugInGuest(string what)
    {
        if (TryDie(what))
            vcpus.Make(new VcpuRequest(VcpuRequest.VmDead.Value & VcpuRequest.NumberMask | VcpuRequest.WhenInGuest));
    }

    /// <summary>The VM is being disposed of. A vCPU that is run by mistake afterwards is refused like that of a broken VM.</summary>
    public void End() => Volatile.Write(ref _dead, 1);

    private bool TryDie(string what)
    {
        Interlocked.CompareExchange(ref _bugMessage, what, null);
        return Interlocked.Exchange(ref _dead, 1) == 0;
    }
}
