using System.Runtime.InteropServices;

namespace Ring3.Kvm;

/// <summary>
/// What the run loop has to do around an entry. Mostly nothing: it reads all marks at once. Each is a byte that one part sets, without the others'.
/// </summary>
[StructLayout(LayoutKind.Explicit)]
internal struct EntryWork
{
    [FieldOffset(0)] public readonly uint Any;

    /// <summary>Injection has to be evaluated (<see cref="VcpuEvents"/>).</summary>
    [FieldOffset(0)] public bool Events;

    /// <summary>
    /// The entry delivers an event and the vCPU leaves again, because another event waits for the boundary behind it (<see cref="VcpuEvents"/>).
    /// </summary>
    [FieldOffset(1)] public bool LeaveAtOnce;

    /// <summary>The guest sees its local APIC in memory (<see cref="Kvm.ApicPages"/>).</summary>
    [FieldOffset(2)] public bool ApicPages;

    /// <summary>There is a Xen side (<see cref="XenPort"/>). Set by any thread, before the Xen side can be found.</summary>
    [FieldOffset(3)] public bool Xen;
}
