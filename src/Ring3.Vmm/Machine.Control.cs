using System.Text.Json;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

// What can be asked of a running machine: `ring3 ctl`.
public sealed partial class Machine
{
    /// <summary>How long a processor may take to come out of the guest, or out of a device whose output nobody takes.</summary>
    private const int PauseMs = 5000;

    private readonly ManualResetEventSlim _unpaused = new(true), _allParked = new(false);
    private int _parked;
    private AcpiPm? _powerButton;

    /// <summary>The commands by name.</summary>
    public IReadOnlyDictionary<string, ControlHandler> ControlCommands => new Dictionary<string, ControlHandler>
    {
        ["status"] = (_, answer) => WriteStatus(answer),
        ["pause"] = (_, _) => Pause(),
        ["resume"] = (_, _) => _unpaused.Set(),
        ["stop"] = (_, _) => End(MachineEnd.Quit, StoppedStatus),
        ["power-button"] = (_, _) => PressPowerButton(),
        ["stats"] = (_, answer) => WriteStats(answer),
    };

    /// <summary>As if by SIGTERM.</summary>
    private const int StoppedStatus = 128 + 15;

    /// <summary>Stops the processors, and returns when none executes guest code any more. The guest's clocks go on.</summary>
    private void Pause()
    {
        if (_stopping)
            throw new ControlException("the machine has ended");
        _allParked.Reset();
        _unpaused.Reset();
        foreach (Vcpu v in _vcpus)
            v.Kick();
        if (_stopping)
            _unpaused.Set();
        else if (Volatile.Read(ref _parked) != _vcpus.Length && !_allParked.Wait(PauseMs) && Volatile.Read(ref _parked) != _vcpus.Length && !_stopping)
            throw new ControlException("not every processor has stopped yet: one waits for somebody to take the guest's output");
    }

    /// <summary>A processor's thread waits while the machine is paused.</summary>
    private void Park(Vcpu vcpu)
    {
        if (Interlocked.Increment(ref _parked) == _vcpus.Length)
            _allParked.Set();
        while (!_stopping && !_unpaused.IsSet)
            _unpaused.Wait();
        _ = Interlocked.Decrement(ref _parked);
        // The guest's watchdogs need not wonder where the time is.
        _ = vcpu.KvmClockCtrl();
    }

    private void PressPowerButton()
    {
        if (_powerButton is null)
            throw new ControlException("the machine has no ACPI (--no-acpi)");
        _powerButton.PressPowerButton();
    }

    private void WriteStatus(Utf8JsonWriter answer)
    {
        answer.WriteString("name", _options.Name ?? $"{Environment.ProcessId}");
        answer.WriteNumber("pid", Environment.ProcessId);
        answer.WriteString("state", _stopping ? "ended" : !_unpaused.IsSet ? "paused" : "running");
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
