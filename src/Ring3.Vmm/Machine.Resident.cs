using Ring3.Host;
using Ring3.Reclaim;

namespace Ring3.Vmm;

// The resident limit and the picture of the working set.
public sealed partial class Machine
{
    /// <summary>Milliseconds between the columns of the picture, at first.</summary>
    private const int HeatmapIntervalMs = 100;

    private ResidentLimit? _resident;
    private WorkingSetHistory? _history;
    private FileStream? _heatmap;

    /// <summary>Starts the limit that the options ask for, while the memory is still empty.</summary>
    private void LimitResident()
    {
        if (_options.ResidentBytes is null && _options.Heatmap is null)
        {
            if (_options.ResidentDirectory is not null)
                throw new BootException(ExitStatus.Usage, "--resident-dir needs --resident");
            return;
        }
        if (_options.Heatmap is not null)
        {
            _heatmap = OpenHeatmap(_options.Heatmap);
            _history = new WorkingSetHistory(Ram, _options.ResidentBytes);
            // The library loads fonts for what it draws; later no file can be opened.
            HeatmapPicture.Save(_history, Stream.Null);
        }
        var options = new ResidentOptions
        {
            Directory = _options.ResidentDirectory, AgingIntervalMs = _history is null ? 1000
                : HeatmapIntervalMs, Warning = line => _options.Messages.WriteLine($"ring3: {line}"), Aged = _history is null ? null : _history.Add,
        };
        if (_options.ResidentBytes is { } bytes)
            CheckLimit(bytes);
        try { _resident = _vm.LimitResident(_options.ResidentBytes ?? ulong.MaxValue, [Ram.HostRange], options); }
        catch (IOException e)
        {
            throw new BootException(ExitStatus.Resources, $"--resident has no place for evicted pages: {e.Message} (see --resident-dir)");
        }
    }

    private void CheckLimit(ulong bytes)
    {
        ulong least = ResidentLimit.MinBytes(_options.Cpus);
        if (bytes < least)
            throw new BootException(ExitStatus.Usage, $"--resident must be at least {least >> 10}K for {_options.Cpus} processors, not {bytes >> 10}K");
        if (bytes >= Ram.Bytes)
            throw new BootException(ExitStatus.Usage, $"--resident {bytes >> 20}M is no limit: the guest has {Ram.Bytes >> 20}M of memory (see --memory)");
    }

    /// <summary>Better before the guest has run than after.</summary>
    private static FileStream OpenHeatmap(string path)
    {
        if (!PngCanvas.IsAvailable)
            throw new BootException(ExitStatus.Resources, "--heatmap needs libcairo.so.2 (Debian package libcairo2)");
        try { return File.Create(path); }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException)
        {
            throw new BootException(ExitStatus.NoInput, $"cannot write --heatmap {path}: {e.Message}");
        }
    }

    /// <summary>Draws the picture that --heatmap asks for, after the run.</summary>
    /// <exception cref="BootException">It cannot be written.</exception>
    public void WriteHeatmap()
    {
        if (_history is null)
            return;
        try
        {
            HeatmapPicture.Save(_history, _heatmap!);
            _heatmap!.Flush();
        }
        catch (IOException e) { throw new BootException(ExitStatus.Resources, $"cannot write --heatmap {_options.Heatmap}: {e.Message}"); }
    }
}
