using System.Text.Json;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

// What can be asked of a running machine: `ring3 ctl`.
public sealed partial class Machine
{
    /// <summary>How long a processor may take to come out of the guest, or out of a device whose output nobody takes.</summary>
    private const int PauseMs = 5000;

    /// <summary>Paused by request. Belongs to the control server's thread.</summary>
    private bool _pausedByRequest;

    /// <summary>The commands by name.</summary>
    public IReadOnlyDictionary<string, ControlHandler> ControlCommands => new Dictionary<string, ControlHandler>
    {
        ["status"] = (_, answer) => WriteStatus(answer),
        ["pause"] = (_, _) => PauseByRequest(),
        ["resume"] = (_, _) => ResumeByRequest(),
        ["stop"] = (_, _) => End(MachineEnd.Quit, StoppedStatus),
        ["power-button"] = (_, _) => PressPowerButton(),
        ["stats"] = (_, answer) => WriteStats(answer),
    };

    /// <summary>As if by SIGTERM.</summary>
    private const int StoppedStatus = 128 + 15;

    /// <summary>Stops the processors, and returns when none executes guest code any more. The guest's clocks go on.</summary>
    private void PauseByRequest()
    {
        if (_pausedByRequest)
            return;
        _pausedByRequest = true;
        if (Pause(PauseMs))
            return;
        throw new ControlException(_stopping ? "the machine has ended"
            : "not every processor has stopped yet: one waits for somebody to take the guest's output");
    }

    private void ResumeByRequest()
    {
        if (!_pausedByRequest)
            return;
        _pausedByRequest = false;
        Resume();
    }

    private void PressPowerButton()
    {
        if (!_options.Acpi)
            throw new ControlException("the machine has no ACPI (--no-acpi)");
        _pm!.PressPowerButton();
    }

    private void WriteStatus(Utf8JsonWriter answer)
    {
        answer.WriteString("name", _options.Name ?? $"{Environment.ProcessId}");
        answer.WriteNumber("pid", Environment.ProcessId);
        answer.WriteString("state", _stopping ? "ended" : _pausedByRequest ? "paused" : "running");
        answer.WriteNumber("cpus", _vcpus.Length);
        answer.WriteNumber("memory_bytes", Ram.Bytes);
        answer.WriteNumber("seconds", _startNs == 0 ? 0 : (HostClock.MonotonicNs() - _startNs) / 1_000_000_000);
    }

    private void WriteStats(Utf8JsonWriter answer)
    {
        answer.WriteStartObject("stats");
        foreach ((string name, string value) in Stats())
        {
            answer.WritePropertyName(name);
            if (double.TryParse(value, System.Globalization.CultureInfo.InvariantCulture, out _))
                answer.WriteRawValue(value);
            else
                answer.WriteStringValue(value);
        }
        answer.WriteEndObject();
    }
}
