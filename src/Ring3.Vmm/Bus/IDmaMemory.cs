namespace Ring3.Vmm;

/// <summary>Guest memory as a bus master sees it. Any thread; a range that is not RAM is refused and nothing is transferred.</summary>
public interface IDmaMemory
{
    /// <summary>Copies guest memory at <paramref name="gpa"/> out.</summary>
    bool TryRead(ulong gpa, Span<byte> data);

    /// <summary>Copies into guest memory at <paramref name="gpa"/>; running vCPUs see it as they see another processor's stores.</summary>
    bool TryWrite(ulong gpa, ReadOnlySpan<byte> data);
}
