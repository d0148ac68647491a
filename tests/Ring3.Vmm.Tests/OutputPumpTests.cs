using System.IO.Pipes;

namespace Ring3.Vmm.Tests;

public sealed class OutputPumpTests
{
    /// <summary>A vCPU that waits for a reader who never reads again is let go when the machine ends.</summary>
    [Fact]
    public void StuckReader_DoesNotHoldTheVcpuWhenTheMachineEnds()
    {
        using var pipe = new AnonymousPipeServerStream(PipeDirection.In);
        using var ended = new ManualResetEvent(false);
        using var pump = new OutputPump((int)pipe.ClientSafePipeHandle.DangerousGetHandle(), "test-pump", ended);
        int sent = 0;
        // Four times what the pump keeps: without the reader only the end lets it through.
        Thread vcpu = new(() =>
        {
            for (; sent < 4 << 20; Volatile.Write(ref sent, sent + 1))
                pump.Transmit((byte)'x');
        });
        vcpu.Start();
        SpinWait.SpinUntil(() => Volatile.Read(ref sent) >= 1 << 20);
        Assert.True(vcpu.IsAlive);
        ended.Set();
        Assert.True(vcpu.Join(60_000));
        // The pump's own thread still waits for the reader, which must not hold the end up for long either.
        pump.Dispose();
    }
}
