namespace Ring3.Vmm.Tests.Devices;

/// <summary>Keyboard controller, reset ports, ACPI power management, debug ports.</summary>
public class ChipsetTests
{
    private readonly FakeMachine _machine = new();

    [Theory]
    [InlineData(0xaa, 0x55)]  // controller self-test
    [InlineData(0xab, 0x00)]  // keyboard line
    [InlineData(0xa9, 0x03)]  // no mouse port
    [InlineData(0x20, 0x34)]  // configuration byte
    [InlineData(0xd0, 0x03)]  // output port: no reset, A20 open
    public void Keyboard_CommandsAnswer(byte command, byte reply)
    {
        var kbd = new KeyboardController(_machine);
        Assert.Equal(0x04, kbd.Command.In8(0) & 0x07);
        kbd.Command.Out8(0, command);
        Assert.Equal(0x05, kbd.Command.In8(0) & 0x27);
        Assert.Equal(reply, kbd.Data.In8(0));
        Assert.Equal(0x04, kbd.Command.In8(0) & 0x07);
    }

    /// <summary>Self-test passed, key lock open: kernels that probe without ACPI warn of a lock otherwise.</summary>
    [Fact]
    public void Keyboard_IsNotLocked() => Assert.Equal(0x14, new KeyboardController(_machine).Command.In8(0));

    [Fact]
    public void Keyboard_AuxLoopHasNoAuxFlag()
    {
        var kbd = new KeyboardController(_machine);
        kbd.Command.Out8(0, 0xd3);
        kbd.Data.Out8(0, 0x5a);
        Assert.Equal(0x01, kbd.Command.In8(0) & 0x21);
        Assert.Equal(0x5a, kbd.Data.In8(0));
    }

    [Fact]
    public void Keyboard_ConfigurationAndA20()
    {
        var kbd = new KeyboardController(_machine);
        kbd.Command.Out8(0, 0x60);
        kbd.Data.Out8(0, 0x47);
        kbd.Command.Out8(0, 0x20);
        Assert.Equal(0x47, kbd.Data.In8(0));
        kbd.Command.Out8(0, 0xdd);
        kbd.Command.Out8(0, 0xd0);
        Assert.Equal(1, kbd.Data.In8(0));
        kbd.Command.Out8(0, 0xd1);
        kbd.Data.Out8(0, 0xdf);
        kbd.Command.Out8(0, 0xd0);
        Assert.Equal(0xdf, kbd.Data.In8(0));
        Assert.Null(_machine.Ended);
    }

    [Theory]
    [InlineData(0xfe, true)]
    [InlineData(0xf0, true)]
    [InlineData(0xff, false)]
    public void Keyboard_PulseResets(byte command, bool resets)
    {
        new KeyboardController(_machine).Command.Out8(0, command);
        Assert.Equal(resets, _machine.Ended is { End: MachineEnd.Reset });
    }

    [Fact]
    public void Port92_ResetsOnRisingBit0()
    {
        var port = new Port92(_machine);
        Assert.Equal(2, port.In8(0));
        port.Out8(0, 0);
        Assert.Equal(0, port.In8(0));
        Assert.Null(_machine.Ended);
        port.Out8(0, 3);
        Assert.Equal(MachineEnd.Reset, _machine.Ended!.Value.End);
    }

    [Fact]
    public void ResetControl_NeedsBit2()
    {
        var port = new ResetControl(_machine);
        port.Out8(0, 2);
        Assert.Null(_machine.Ended);
        Assert.Equal(2, port.In8(0));
        port.Out8(0, 6);
        Assert.Equal(MachineEnd.Reset, _machine.Ended!.Value.End);
    }

    [Fact]
    public void DebugExit_CarriesTheValue()
    {
        new DebugExit(_machine).Out(0, 4, 0x10);
        Assert.Equal((MachineEnd.DebugExit, 0x10), _machine.Ended);
    }

    [Fact]
    public void PostCode_KeepsTheLastByte()
    {
        var post = new PostCode();
        post.Out8(0, 0x42);
        Assert.Equal((0x42, 0x42), (post.Value, post.In8(0)));
    }

    [Theory]
    [InlineData(AcpiPm.S5Type, true)]
    [InlineData(1, false)]
    public void Pm1Control_SleepEnableWithS5PowersOff(int type, bool off)
    {
        var pm = new AcpiPm(_machine, new FakeLine());
        Assert.Equal(1u, pm.In(AcpiPm.ControlOffset, 2));
        pm.Out(AcpiPm.ControlOffset, 2, (uint)(type << 10));
        Assert.Null(_machine.Ended);
        pm.Out(AcpiPm.ControlOffset, 2, (uint)(type << 10 | 1 << 13));
        Assert.Equal(off, _machine.Ended is { End: MachineEnd.PowerOff });
        Assert.Equal(0u, pm.In(AcpiPm.ControlOffset, 2) & 1 << 13);
    }

    [Fact]
    public void PowerButton_RaisesTheSciUntilCleared()
    {
        var sci = new FakeLine();
        var pm = new AcpiPm(_machine, sci);
        pm.PressPowerButton();
        Assert.False(sci.Level);
        pm.Out(2, 2, 1 << 8);
        Assert.True(sci.Level);
        Assert.Equal(1u << 8, pm.In(0, 2));
        pm.Out(0, 2, 1 << 8);
        Assert.False(sci.Level);
        Assert.Equal(0u, pm.In(0, 2));
    }

    [Fact]
    public void PmTimer_CountsIn24Bits()
    {
        var pm = new AcpiPm(_machine, new FakeLine());
        uint first = pm.In(AcpiPm.TimerOffset, 4);
        Assert.True(SpinWait.SpinUntil(() => pm.In(AcpiPm.TimerOffset, 4) != first, 1000));
        Assert.Equal(0u, pm.In(AcpiPm.TimerOffset, 4) >> 24);
        Assert.Equal(0u, pm.In(AcpiPm.GpeOffset, 4));
    }
}
