namespace Ring3.Memory;

/// <summary>Told after the host has written guest memory, so that decoded guest code can be dropped.</summary>
public interface ICodeWriteSink
{
    void CodeWritten(nint hva, nuint length);
}
