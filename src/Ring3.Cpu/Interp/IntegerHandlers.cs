namespace Ring3.Cpu;

/// <summary>Registration of the integer instructions.</summary>
internal static unsafe class IntegerHandlers
{
    internal static void Register() { }
}
