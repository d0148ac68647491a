// SAFETY: the page lives as long as the platform that owns it; every index is masked to its ring.
namespace Ring3.Vmm;

/// <summary>The back end of hvc0. SPEC: Xen public headers, io/console.h: in[1024], out[2048], in_cons, in_prod, out_cons, out_prod. Its owner
/// serialises.</summary>
internal sealed unsafe class XenConsole(byte* page)
{
    private const int InBytes = 1024, OutBytes = 2048, Indices = InBytes + OutBytes;

    private unsafe uint* Index(int i) => (uint*)(page + Indices) + i;

    /// <summary>Where the guest's output goes.</summary>
    public ISerialSink? Sink { get; set; }

    public void Transmit(byte value) => Sink?.Transmit(value);

    /// <summary>Takes what the guest has written. True if the guest is to be told of the room.</summary>
    public unsafe bool Drain()
    {
        uint produced = Volatile.Read(ref *Index(3)), consumed = *Index(2);
        // An index beyond the ring's size is the guest's nonsense: at most one ring is taken.
        uint n = Math.Min(produced - consumed, OutBytes);
        for (uint i = 0; i < n; i++)
            Transmit(page[InBytes + ((consumed + i) & (OutBytes - 1))]);
        Volatile.Write(ref *Index(2), produced);
        return n != 0;
    }

    /// <summary>Puts input into the ring; returns how much fitted.</summary>
    public unsafe int Receive(ReadOnlySpan<byte> data)
    {
        uint consumed = Volatile.Read(ref *Index(0)), produced = *Index(1);
        uint used = produced - consumed;
        int n = used >= InBytes ? 0 : (int)Math.Min(InBytes - used, (uint)data.Length);
        for (int i = 0; i < n; i++)
            page[(produced + (uint)i) & (InBytes - 1)] = data[i];
        Volatile.Write(ref *Index(1), produced + (uint)n);
        return n;
    }
}
