namespace Ring3.Cpu;

/// <summary>What kind of processor it is for its guest: the model, and the CPUID that the owner shows.</summary>
internal sealed class Identity
{
    public readonly ProcessorModel Model;
    /// <summary>The guest's CPUID, where behaviour depends on it. Set before the first Enter.</summary>
    public CpuidFeatures Features = new();

    public Identity(ProcessorModel model)
    {
        Model = model;
        Features.Sse4a = Features.MisalignedSse = Features.Clzero = model.IsAmd;
    }
}
