namespace Ring3.Cpu;

/// <summary>Registration of the vector instructions.</summary>
internal static unsafe class VectorHandlers
{
    internal static void Register() { }
}
