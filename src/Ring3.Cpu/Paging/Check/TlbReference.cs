using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>A use of a cached translation, for judgement.</summary>
public struct TlbUse
{
    /// <summary>Host address of the top nested table under which the entry was made.</summary>
    public ulong Root;
    /// <summary>Linear and guest-physical address of the access; guest-physical accesses of a table walk have the linear address that is walked.</summary>
    public ulong Linear, Gpa;
    /// <summary>Host page that the entry names.</summary>
    public ulong Host;
    /// <summary><see cref="TlbReference.Sequence"/> before the walk that made the entry began.</summary>
    public ulong Filled;
    public AccessKind Access;
}

/// <summary>
/// What the owner of the nested tables knows about their changes: a checked processor asks it at every use of a cached translation. Members are called on the
/// processor's thread, inside the guest.
/// </summary>
public abstract class TlbReference
{
    /// <summary>Number of the newest change. A walk that begins after reading it sees that change and all earlier ones.</summary>
    public abstract ulong Sequence { get; }

    /// <summary>
    /// Counts how often a change has been declared over: "no processor uses what was there before". An entry judged at one value needs no second judgement at
    /// the same.
    /// </summary>
    public abstract ulong Settled { get; }

    /// <summary>Whether an entry of this age may be used: null, or what it violates.</summary>
    public abstract string? Judge(in TlbUse use);

    /// <summary>Whether <paramref name="table"/> may be walked: false when it was freed.</summary>
    public abstract bool IsTable(ulong table);

    /// <summary>Keeps all changes out, if none is under way or owes a flush: what differs from the tables now is a violation. Never waits.</summary>
    public abstract bool TryQuiesce();
    public abstract void Resume();

    /// <summary>The last change known for the page of a use, for a report.</summary>
    public abstract string Explain(in TlbUse use);

    /// <summary>A violation. The first one counts.</summary>
    public abstract void Violated(string report);
}

/// <summary>What makes a processor drop translations by itself.</summary>
public enum GuestFlush
{
    /// <summary>MOV to CR3, or a task switch.</summary>
    Cr3,
    Invlpg, Invpcid,
    /// <summary>A change of CR0, CR4 or EFER that alters the meaning of paging structures.</summary>
    Controls,
    /// <summary>The owner wrote another CR3 into the state (RecomputeMode).</summary>
    StateWrite,
    /// <summary>Reset or INIT. What is linear goes with CR0.PG too; guest-physical translations go by this flush alone.</summary>
    Reset,
    /// <summary>The owner owes a flush on behalf of the guest or of a move to another thread.</summary>
    Owner,
}
