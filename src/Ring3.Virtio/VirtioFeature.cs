namespace Ring3.Virtio;

/// <summary>Feature bits of every device. SPEC: virtio 1.2, "Reserved Feature Bits".</summary>
public static class VirtioFeature
{
    /// <summary>A descriptor may stand for a table of descriptors.</summary>
    public const ulong IndirectDescriptors = 1UL << 28;
    /// <summary>Either side says at which index it wants to hear of the other.</summary>
    public const ulong EventIndex = 1UL << 29;
    /// <summary>The modern interface; a driver that does not take it is refused.</summary>
    public const ulong Version1 = 1UL << 32;
    /// <summary>The packed ring instead of the split one.</summary>
    public const ulong PackedRing = 1UL << 34;

    /// <summary>What the queues can do.</summary>
    public const ulong OfTransport = IndirectDescriptors | EventIndex | Version1 | PackedRing;
}

/// <summary>Bits of the device status. SPEC: virtio 1.2, "Device Status Field".</summary>
public static class VirtioStatus
{
    public const byte Acknowledge = 1, Driver = 2, DriverOk = 4, FeaturesOk = 8, NeedsReset = 0x40, Failed = 0x80;
}
