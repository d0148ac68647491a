using Ring3.Irqchip;

namespace Ring3.Kvm;

/// <summary>
/// What other threads have left for the vCPU and its own thread has not taken yet: NMIs, INIT, SIPI. (Interrupts wait in the local APIC, an SMI is only a
/// request.) Whoever leaves something here makes the request that the vCPU looks here for.
/// </summary>
internal sealed class InterruptInbox(VcpuCore core, VcpuTsc tsc) : IVcpuInterruptSink
{
    private readonly VcpuRequests _requests = core.Requests;
    private int _nmis, _init, _sipiVector = -1;

    // ---- Any thread ----

    public void InterruptPending() => _requests.Make(VcpuRequest.Event);

    public void RaiseNmi()
    {
        Interlocked.Increment(ref _nmis);
        _requests.Make(VcpuRequest.Nmi);
    }

    public void RaiseSmi() => _requests.Make(VcpuRequest.Smi);

    public void RaiseInit()
    {
        // INIT discards a SIPI that has not been taken.
        Interlocked.Exchange(ref _sipiVector, -1);
        Interlocked.Exchange(ref _init, 1);
        _requests.Make(VcpuRequest.Event);
    }

    public void RaiseSipi(byte vector)
    {
        Interlocked.Exchange(ref _sipiVector, vector);
        _requests.Make(VcpuRequest.Event);
    }

    public ulong GuestTsc() => tsc.Now();
    public uint GuestTscKhz => tsc.Khz;

    public bool HasNmi => Volatile.Read(ref _nmis) != 0;
    public bool HasInit => Volatile.Read(ref _init) != 0;
    public bool HasSipi => Volatile.Read(ref _sipiVector) >= 0;

    // ---- The vCPU's thread ----

    public void IoapicEoi(byte vector)
    {
        EoiVector = vector;
        _requests.MakeSelf(VcpuRequest.IoapicEoiExit);
    }

    /// <summary>The vector of the request IoapicEoiExit.</summary>
    public byte EoiVector { get; private set; }

    /// <summary>The number of NMIs that came since it was last asked for.</summary>
    public int TakeNmis() => Interlocked.Exchange(ref _nmis, 0);

    public void DropNmis() => Volatile.Write(ref _nmis, 0);

    public bool TakeInit() => Interlocked.Exchange(ref _init, 0) != 0;

    /// <summary>The vector of a SIPI; -1: none.</summary>
    public int TakeSipi() => Interlocked.Exchange(ref _sipiVector, -1);

    /// <summary>The client's state of a latched INIT.</summary>
    public void SetInit(bool pending) => Volatile.Write(ref _init, pending ? 1 : 0);

    /// <summary>The client has a processor start as by SIPI.</summary>
    public void SetSipi(byte vector) => Interlocked.Exchange(ref _sipiVector, vector);
}
