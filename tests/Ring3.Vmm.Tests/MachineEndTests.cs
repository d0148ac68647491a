using Ring3.Vmm;

namespace Ring3.Vmm.Tests;

/// <summary>What a machine's end is when several things end it.</summary>
public sealed class MachineEndTests
{
    private static BootOptions Options => new() { Cpus = 1, MemoryBytes = 16 << 20 };

    /// <summary>A guest without a console's ports powers off as soon as it has written the status.</summary>
    [Fact]
    public void PowerOffBehindTheCommandsStatus_EndsNothing()
    {
        using var machine = new Machine(Options);
        machine.CommandEnded();
        machine.End(MachineEnd.PowerOff);
        machine.End(MachineEnd.ExecDone, 7);
        MachineResult result = machine.Run();
        Assert.Equal((MachineEnd.ExecDone, 7), (result.End, result.Value));
    }

    [Fact]
    public void TheFirst_IsTheEnd()
    {
        using var machine = new Machine(Options);
        machine.End(MachineEnd.PowerOff);
        machine.CommandEnded();
        machine.End(MachineEnd.ExecDone, 7);
        Assert.Equal(MachineEnd.PowerOff, machine.Run().End);
    }

    /// <summary>Who does not want to wait until everything is written is heard.</summary>
    [Fact]
    public void Quitting_IsHeardBehindTheStatus()
    {
        using var machine = new Machine(Options);
        machine.CommandEnded();
        machine.End(MachineEnd.Quit, 2);
        machine.End(MachineEnd.ExecDone, 7);
        Assert.Equal(MachineEnd.Quit, machine.Run().End);
    }
}
