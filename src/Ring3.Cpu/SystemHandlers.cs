namespace Ring3.Cpu;

/// <summary>Registration of the system instructions.</summary>
internal static unsafe class SystemHandlers
{
    internal static void Register() { }
}
