namespace Ring3.Vmm;

/// <summary>An interrupt input of the machine (a GSI). Any thread.</summary>
public interface IInterruptLine
{
    /// <summary>Drives the line. Edge-triggered consumers act on the change from low to high.</summary>
    void Set(bool level);
}

/// <summary>How the guest, or its owner, ended the machine.</summary>
public enum MachineEnd
{
    /// <summary>ACPI S5, or the machine's power button protocol.</summary>
    PowerOff,
    /// <summary>Keyboard controller, port 0x92, ACPI reset register, port 0xcf9.</summary>
    Reset,
    /// <summary>Triple fault.</summary>
    TripleFault,
    /// <summary>A write to the debug-exit port: status = value * 2 + 1.</summary>
    DebugExit,
    /// <summary>The exec channel reported the status of the command.</summary>
    ExecDone,
    /// <summary>The user quit, or a signal arrived.</summary>
    Quit,
    /// <summary>The hypervisor could not go on: internal error, failed entry.</summary>
    Failure,
}

/// <summary>What devices may ask of the machine as a whole. Any thread.</summary>
public interface IMachineControl
{
    /// <summary>Ends the machine; the first caller wins. <paramref name="value"/> is the exit status or the port value, by <paramref name="end"/>.</summary>
    void End(MachineEnd end, int value = 0, string? detail = null);
}
