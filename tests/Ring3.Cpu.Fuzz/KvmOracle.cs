namespace Ring3.Differential;

/// <summary>
/// A VM as the machine side: tests/native/kvm_oracle.c, a client of /dev/kvm. A program in front of it, such as ring3-exec, says whose /dev/kvm that is.
/// </summary>
/// <remarks>SAFETY: pointers are into the shared mapping and the given memory, of the same layout; counts are at most <see cref="Sandbox.MaxCases"/>.</remarks>
internal sealed unsafe class KvmOracle : CaseProcess
{
    internal KvmOracle(string launcher) : base(launcher, NativeProgram.Build("kvm_oracle"))
    {
    }

    private protected override string Needs => "a /dev/kvm that runs 64-bit guests";

    internal override ulong ExitAddress => ((SharedHeader*)Base)->ExitAddress;

    /// <summary>Runs the first cases of another memory. Returns -1, or the index of a case that ended the client (which is started again).</summary>
    internal int Run(CaseMemory cases, int count)
    {
        Buffer.MemoryCopy(cases.Code, Code, Sandbox.CodeSize, Sandbox.CodeSize);
        Buffer.MemoryCopy(cases.Data, Data, Sandbox.DataSize, Sandbox.DataSize);
        Buffer.MemoryCopy(cases.Input(0), Input(0), count * sizeof(CaseInput), count * sizeof(CaseInput));
        ((SharedHeader*)Base)->ExitAddress = cases.ExitAddress;
        int lost = Run(count);
        for (int n = 0; n < (lost < 0 ? count : lost); n++)
            Comparer.NormalizeNative(Input(n), Output(n));
        return lost;
    }
}
