using Ring3.Host;
using Ring3.Memory;
using Ring3.Virtio;

namespace Ring3.Vmm;

// Memory that the guest does not need goes back to the host.
public sealed partial class Machine
{
    private void AddBalloon() => AddVirtio(new BalloonDevice(_vm.Memory, ReleaseMemory), OtherClass, VirtioFeature.OfTransport);

    /// <summary>Gives the part of [gpa, gpa + bytes) that is RAM back to the host; it is zero when it is used again.</summary>
    private unsafe void ReleaseMemory(ulong gpa, ulong bytes)
    {
        MmuNotifier notifier = _vm.Slots.Notifier;
        foreach (RamRegion r in Ram.Regions)
        {
            (ulong begin, ulong end) = (Math.Max(gpa, r.Gpa), Math.Min(gpa + bytes, r.End));
            if (begin >= end)
                continue;
            byte* hva = r.Hva + (begin - r.Gpa);
            if (!notifier.InvalidateRangeStart((ulong)hva, (ulong)hva + (end - begin)))
                continue;
            // SAFETY: pages of one region's mapping, which nobody uses until the end is reported.
            if (_resident is null || !((IResidency)_resident).TryDiscard((ulong)hva, end - begin))
                HostMemory.Discard(hva, (nuint)(end - begin));
            notifier.InvalidateRangeEnd((ulong)hva, (ulong)hva + (end - begin));
        }
    }
}
