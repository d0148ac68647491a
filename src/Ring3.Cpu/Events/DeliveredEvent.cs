namespace Ring3.Cpu;

/// <summary>
/// An event that a processor is about to deliver, for a trace. <paramref name="Payload"/>: CR2 of a page fault, DR6 bits of a debug exception.
/// </summary>
public readonly record struct DeliveredEvent(byte Vector, EventType Type, ulong Rip, bool HasErrorCode, uint ErrorCode, ulong Payload);

internal sealed partial class EventUnit
{
    /// <summary>Called by the owner's thread for each exception and injected event before its delivery; null = nobody looks.</summary>
    public Action<DeliveredEvent>? EventObserver { get; set; }
}
