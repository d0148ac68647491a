using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>A piece of host memory, for a system call that takes several: struct iovec.</summary>
[StructLayout(LayoutKind.Sequential)]
public readonly record struct HostPiece(ulong Hva, nuint Bytes);
