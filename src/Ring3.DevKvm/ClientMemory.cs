using System.Runtime.InteropServices;
using Ring3.Host;

// SAFETY: the two words live for the whole process.
namespace Ring3.DevKvm;

/// <summary>
/// The client memory behind the slots of all VMs, for those who watch the client's changes of its mappings: one interval that contains it all, and the MMU
/// notifiers' calls.
/// </summary>
internal static class ClientMemory
{
    private static readonly RankedLock s_lock = new(LockRank.ClientMemory);
    private static readonly unsafe ulong* s_bounds = AllocateBounds();
    private static VmObject[] s_vms = [];

    /// <summary>Two words [lo, hi); lo is ulong.MaxValue and hi 0 when no VM has memory.</summary>
    public static unsafe ulong* Bounds => s_bounds;

    /// <summary>The VMs that exist.</summary>
    public static VmObject[] Vms => Volatile.Read(ref s_vms);

    private static unsafe ulong* AllocateBounds()
    {
        var p = (ulong*)NativeMemory.Alloc(16);
        (p[0], p[1]) = (ulong.MaxValue, 0);
        return p;
    }

    public static void Add(VmObject vm)
    {
        using (s_lock.Enter())
            Volatile.Write(ref s_vms, [.. s_vms, vm]);
    }

    /// <summary>Forgets a VM; with the last one the interval becomes empty.</summary>
    public static void Remove(VmObject vm)
    {
        using (s_lock.Enter())
        {
            Volatile.Write(ref s_vms, Array.FindAll(s_vms, v => v != vm));
            if (s_vms.Length == 0)
                Publish(ulong.MaxValue, 0);
        }
    }

    /// <summary>A slot is about to use [lo, hi). The interval only grows, and does so before the first translation can exist.</summary>
    public static unsafe void Extend(ulong lo, ulong hi)
    {
        if (hi <= lo || lo >= Volatile.Read(ref s_bounds[0]) && hi <= Volatile.Read(ref s_bounds[1]))
            return;
        using (s_lock.Enter())
            Publish(Math.Min(lo, s_bounds[0]), Math.Max(hi, s_bounds[1]));
    }

    private static unsafe void Publish(ulong lo, ulong hi)
    {
        Volatile.Write(ref s_bounds[0], lo);
        Volatile.Write(ref s_bounds[1], hi);
    }

    /// <summary>Whether any slot of any VM uses a byte of [lo, hi).</summary>
    public static bool Contains(ulong lo, ulong hi)
    {
        foreach (VmObject vm in Volatile.Read(ref s_vms))
        {
            if (vm.Vm.Slots.Notifier.TouchesAnySlot(lo, hi))
                return true;
        }
        return false;
    }

    /// <summary>mmu_notifier_invalidate_range_start for every VM; true when one was concerned: then <see cref="InvalidateEnd"/> must follow, and those VMs are
    /// not freed before it.</summary>
    public static unsafe bool InvalidateStart(ulong lo, ulong hi)
    {
        if (lo >= hi || lo >= Volatile.Read(ref s_bounds[1]) || hi <= Volatile.Read(ref s_bounds[0]))
            return false;
        List<VmObject>? vms = null;
        foreach (VmObject vm in Volatile.Read(ref s_vms))
        {
            if (!vm.TryGet())
                continue;
            if (vm.Vm.Slots.Notifier.InvalidateRangeStart(lo, hi))
                (vms ??= []).Add(vm);
            else
                vm.Put();
        }
        if (vms is null)
            return false;
        using (s_lock.Enter())
            s_open.Add((lo, hi, vms));
        return true;
    }

    private static readonly List<(ulong Lo, ulong Hi, List<VmObject> Vms)> s_open = [];

    /// <summary>The change that <see cref="InvalidateStart"/> announced is done (or failed).</summary>
    public static void InvalidateEnd(ulong lo, ulong hi)
    {
        List<VmObject> vms;
        using (s_lock.Enter())
        {
            int i = s_open.FindIndex(o => o.Lo == lo && o.Hi == hi);
            if (i < 0)
                return;
            vms = s_open[i].Vms;
            s_open.RemoveAt(i);
        }
        foreach (VmObject vm in vms)
        {
            vm.Vm.Slots.Notifier.InvalidateRangeEnd(lo, hi);
            vm.Put();
        }
    }
}
