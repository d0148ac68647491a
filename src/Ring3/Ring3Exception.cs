using System.Diagnostics.CodeAnalysis;

namespace Ring3;

/// <summary>A call of the hypervisor was refused.</summary>
public sealed class Ring3Exception : Exception
{
    internal Ring3Exception(string what, int errno) : base($"cannot {what}: {Name(errno)}") => Errno = errno;

    /// <summary>Linux error number, as KVM's documentation uses it.</summary>
    public int Errno { get; }

    internal static void ThrowIfFailed(int result, string what)
    {
        if (result < 0)
            Throw(result, what);
    }

    [DoesNotReturn]
    private static void Throw(int result, string what) => throw new Ring3Exception(what, -result);

    private static string Name(int errno)
    {
        foreach (var f in typeof(Abi.Errno).GetFields())
            if ((int)f.GetRawConstantValue()! == errno)
                return f.Name;
        return $"error {errno}";
    }
}
