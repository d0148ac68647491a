using System.Runtime.InteropServices;

namespace Ring3.Cpu;

/// <summary>
/// What a call of translated code leaves on the host's stack, the address of its continuation in front: a return to the same place goes there by the host's
/// RET, which the host's processor predicts.
/// </summary>
/// <remarks>
/// A frame is a guess. A return that comes to other than the newest frame's place drops it, and jumps; a call that has no room drops them all; so does
/// leaving translated code, and with it whatever makes code pointers invalid (see Translator.CanGoOn).
/// SAFETY: the layout is what emitted code pushes.
/// </remarks>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct ReturnFrame
{
    /// <summary>As many as there may be, and their bytes.</summary>
    public const int MaxCount = 128, Bytes = 24;
    /// <summary>Linear address of the frame behind the oldest. It is no address of code's, and neither is the context -1 one.</summary>
    public const ulong NoAddress = 1UL << 63;

    public nint Continuation;
    public ulong Linear;
    /// <summary><see cref="CpuState.JumpContext"/> at the call.</summary>
    public ulong Context;

    public const int LinearOffset = 8, ContextOffset = 16;
}
