using Ring3.Abi;
using Ring3.Arch;

namespace Ring3.Memory;

/// <summary>KVM_SET_MEMORY_ATTRIBUTES: which guest frames are private.</summary>
public sealed partial class MemorySlots
{
    private MemoryAttributes _attributes = MemoryAttributes.AllShared;

    /// <summary>Attributes that exist: the answer to KVM_CAP_MEMORY_ATTRIBUTES.</summary>
    public ulong SupportedAttributes => AllowPrivateMemory ? KvmApi.KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;

    /// <summary>The published attributes. A fault notes them before it looks at memory, and compares the reference under mmu_lock before it installs
    /// anything.</summary>
    public MemoryAttributes Attributes => Volatile.Read(ref _attributes);

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES. On return no vCPU reaches the frames by their old attributes. SPEC: api.rst.</summary>
    /// <returns>0 or -EINVAL.</returns>
    public int SetAttributes(in kvm_memory_attributes args)
    {
        if (args.flags != 0 || (args.attributes & ~SupportedAttributes) != 0)
            return -Errno.EINVAL;
        if (args.size == 0 || args.address + args.size < args.address || ((args.address | args.size) & Page.OffsetMask) != 0)
            return -Errno.EINVAL;
        ulong start = args.address >> Page.Shift, end = (args.address + args.size) >> Page.Shift;
        bool isPrivate = (args.attributes & KvmApi.KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0;
        using var _ = SlotsLock.Enter();
        MemoryAttributes old = _attributes;
        if (old.Are(start, end, isPrivate))
            return 0;
        MemoryAttributes next = old.With(start, end, isPrivate);
        Notifier.UnmapGfns(start, end, () => Volatile.Write(ref _attributes, next));
        return 0;
    }

    /// <summary>Publishes equal attributes under another reference, so that faults in flight look again.</summary>
    internal void RenewAttributes() => Volatile.Write(ref _attributes, _attributes.Clone());
}
