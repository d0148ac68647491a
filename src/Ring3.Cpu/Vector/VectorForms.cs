using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// The process-wide table of forms. A form is built at its first execution and then found through <see cref="Op.Aux"/>.
/// The number of forms is bounded: codes times immediates times two.
/// </summary>
/// <remarks>SAFETY: the table is mapped for its largest size and backed as it fills; an index is published (Op.Aux) after its entry is complete.</remarks>
internal static unsafe class VectorForms
{
    private const int Capacity = 1 << 18;
    private static readonly VectorForm* s_forms = (VectorForm*)HostMemory.Map((nuint)Capacity * (nuint)sizeof(VectorForm));
    private static readonly Dictionary<uint, uint> s_index = [];
    private static readonly RankedLock s_lock = new(LockRank.VectorForms);
    // Index 0 means that an op has no form yet.
    private static uint s_count = 1;

    public static VectorForm* At(uint index) => s_forms + index;

    /// <summary>Index of the form, built when it is new. <paramref name="immediate"/> is 0 for codes without one. Any thread.</summary>
    public static uint Get(Code code, byte immediate, bool memory)
    {
        uint key = (uint)code | (uint)immediate << 16 | (memory ? 1u << 24 : 0);
        using (s_lock.Enter())
            return s_index.TryGetValue(key, out uint index) ? index : Add(key, VectorThunkBuilder.Build(code, immediate, memory));
    }

    /// <summary>Index of an x87 form with its ST(i) operand, built when it is new. Any thread.</summary>
    public static uint GetX87(Code code, int sti)
    {
        uint key = (uint)code | (uint)sti << 16;
        using (s_lock.Enter())
            return s_index.TryGetValue(key, out uint index) ? index : Add(key, X87ThunkBuilder.Build(code, sti));
    }

    private static uint Add(uint key, in VectorForm form)
    {
        if (s_count == Capacity)
            throw new InvalidOperationException("more vector forms than the instruction set has");
        s_forms[s_count] = form;
        s_index.Add(key, s_count);
        return s_count++;
    }
}
