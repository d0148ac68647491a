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
    public IReadOnlyDictionary<string, ControlCommand> ControlCommands => new Dictionary<string, ControlCommand>
    {
        ["status"] = new((_, answer) => WriteStatus(answer)),
        ["pause"] = new((_, _) => PauseByRequest()),
        ["resume"] = new((_, _) => ResumeByRequest()),
        ["stop"] = new((_, _) => End(MachineEnd.Quit, StoppedStatus)),
        ["power-button"] = new((_, _) => PressPowerButton()),
        ["stats"] = new((_, answer) => WriteStats(answer)),
        ["snapshot"] = new((request, _) => SnapshotByRequest(request), TakesTime: true),
        ["add-disk"] = new(PlugDisk, TakesTime: true),
        ["add-share"] = new(PlugShare, TakesTime: true),
        ["remove-disk"] = new((request, _) => Unplug(CardKind.Disk, request.Arguments), TakesTime: true),
        ["remove-share"] = new((request, _) => Unplug(CardKind.Share, request.Arguments), TakesTime: true),
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
        throw new ControlException(NotPaused);
    }

    private void ResumeByRequest()
    {
        if (!_pausedByRequest)
            return;
        _pausedByRequest = false;
        Resume();
    }

    /// <summary>snapshot PATH, and an empty file.</summary>
    private void SnapshotByRequest(ControlRequest request)
    {
        var place = new SnapshotDescriptor(request.Argument(0), request.TakeFile());
        try
        {
            if (!Pause(PauseMs))
                throw new ControlException(NotPaused);
            Snapshot(place);
        }
        finally
        {
            place.Drop();
            Resume();
        }
    }

    private string NotPaused => _stopping ? "the machine has ended" : "not every processor has stopped yet: one waits for somebody to take the guest's output";

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
        WriteCards(answer);
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
