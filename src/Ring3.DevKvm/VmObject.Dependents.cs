namespace Ring3.DevKvm;

// Objects made from a VM that keep it alive.
internal sealed partial class VmObject
{
    private int _vfio;

    /// <summary>A VM has at most one kvm-vfio device.</summary>
    public bool TryClaimVfio() => Interlocked.Exchange(ref _vfio, 1) == 0;
    public void ReleaseVfio() => Volatile.Write(ref _vfio, 0);
}
