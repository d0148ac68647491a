using Ring3.Cpu;

namespace Ring3.Kvm;

/// <summary>One access to an MSR.</summary>
/// <param name="Host">The client makes it (KVM_GET/SET_MSRS), not the guest.</param>
internal readonly record struct MsrAccess(uint Index, bool Host);

/// <summary>The models whose KVM_GET_MSR_INDEX_LIST has a register. Everything listed can be read and written by the client.</summary>
[Flags]
internal enum MsrListing { Never = 0, Intel = 1, Amd = 2, Always = Intel | Amd }

/// <summary>
/// An MSR, or a run of them that behave alike: an entry in the table of its group. To add an MSR, add an entry. There is one for all vCPUs: what it does, it
/// does to the group of the <see cref="VcpuMsrs"/> that it is given.
/// </summary>
internal sealed class MsrRegister(uint first, uint count = 1)
{
    public uint First { get; } = first;
    public uint Last { get; } = first + count - 1;

    public MsrListing Listed { get; init; }

    /// <summary>
    /// What KVM_GET_MSRS on /dev/kvm tells of a register that describes the processor rather than its state (KVM_GET_MSR_FEATURE_INDEX_LIST); null for a model
    /// that has it not.
    /// </summary>
    public Func<ProcessorModel, ulong?>? Feature { get; init; }

    /// <summary>
    /// An access of the guest that is refused has an invalid value, never an unknown register (KVM_MSR_EXIT_REASON_*), though the client cannot read it.
    /// </summary>
    public bool IsKnownUnread { get; init; }

    /// <summary>Its value; null: refused. Without it the register cannot be read.</summary>
    public Func<VcpuMsrs, MsrAccess, ulong?>? Read { get; init; }

    /// <summary>Whether the value was taken; if not, nothing has changed. Without it the register cannot be written.</summary>
    public Func<VcpuMsrs, MsrAccess, ulong, bool>? Write { get; init; }

    /// <summary>False: the register is not there for this access; the guest gets #GP(0), the client's list ends.</summary>
    public bool TryRead(VcpuMsrs msrs, MsrAccess access, out ulong value)
    {
        ulong? v = Read?.Invoke(msrs, access);
        value = v.GetValueOrDefault();
        return v.HasValue;
    }

    /// <summary>False: as <see cref="TryRead"/>, or a value that the register cannot have.</summary>
    public bool TryWrite(VcpuMsrs msrs, MsrAccess access, ulong value) => Write is { } write && write(msrs, access, value);
}
