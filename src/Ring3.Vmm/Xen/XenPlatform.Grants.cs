using Ring3.Abi;

// SAFETY: the grant table is mapped from the constructor to Dispose, which comes after the virtual machine's; frames are bounded by MaxGrantFrames.
namespace Ring3.Vmm;

// The grant table, version 1: the guest maps its frames where it likes outside of RAM, and writes into them who may use which of its pages.
internal sealed partial class XenPlatform
{
    private const int MaxGrantFrames = 64;
    /// <summary>Frame n of the table is memory slot GrantSlot + n.</summary>
    private const uint GrantSlot = 64;
    private readonly unsafe byte* _grants;
    /// <summary>Where the guest has each frame; 0: nowhere, since there is RAM.</summary>
    private readonly ulong[] _grantGfns = new ulong[MaxGrantFrames];
    private uint _grantFrames = 1;

    /// <summary>As Xen's toolstack does: the first two grants are the console's and the store's pages.</summary>
    private unsafe void InitializeGrants()
    {
        const ushort PermitAccess = 1;
        foreach (var (entry, gfn) in new[] { (0, ConsoleGfn), (1, StoreGfn) })
        {
            // { flags, domid, frame }
            ushort* grant = (ushort*)(_grants + entry * 8);
            (grant[0], grant[1]) = (PermitAccess, 0);
            *(uint*)(grant + 2) = (uint)gfn;
        }
    }

    private unsafe long MapGrantFrame(ulong index, ulong gpfn)
    {
        // Bit 31 asks for the status frames of version 2.
        if (index >= MaxGrantFrames || gpfn >= 1UL << 40)
            return -Errno.EINVAL;
        uint slot = GrantSlot + (uint)index;
        if (_grantGfns[index] != 0)
            _ = _vm.SetUserMemoryRegion(slot, 0, 0, 0, 0);
        // Where there is RAM, KVM says that the place is taken.
        int r = _vm.SetUserMemoryRegion(slot, 0, gpfn * PageBytes, PageBytes, (ulong)(_grants + index * PageBytes));
        _grantGfns[index] = r == 0 ? gpfn : 0;
        _grantFrames = Math.Max(_grantFrames, (uint)index + 1);
        return r == 0 ? 0 : -Errno.EINVAL;
    }

    private long GrantTable(uint command, GuestArgument a, uint count)
    {
        const uint QuerySize = 6, SetVersion = 8, GetVersion = 10;
        const short Okay = 0;
        if (count != 1)
            return -Errno.ENOSYS;
        switch (command)
        {
            case QuerySize:
                // { dom, nr_frames, max_nr_frames, status }
                return a.TryWrite(_grantFrames, 4) && a.TryWrite((uint)MaxGrantFrames, 8) && a.TryWrite(Okay, 12) ? 0 : -Errno.EFAULT;
            case SetVersion:
                return !a.TryRead(out uint version) ? -Errno.EFAULT : version == 1 ? 0 : -Errno.EINVAL;
            case GetVersion:
                return a.TryWrite(1u, 4) ? 0 : -Errno.EFAULT;
            default:
                return -Errno.ENOSYS;
        }
    }
}
