using System.Diagnostics;
using System.Globalization;
using System.IO.MemoryMappedFiles;

namespace Ring3.Differential;

/// <summary>
/// A child process that runs batches of cases in memory that both share, and answers with their results (tests/native/oracle.c has the protocol).
/// Not thread-safe; use one per thread.
/// </summary>
/// <remarks>SAFETY: pointers are into the shared mapping, which lives as long as this object; counts are at most <see cref="Sandbox.MaxCases"/>.</remarks>
internal abstract unsafe class CaseProcess : CaseMemory, IDisposable
{
    private readonly MemoryMappedFile _file;
    private readonly MemoryMappedViewAccessor _view;
    private readonly string _path;
    private readonly string[] _command;
    /// <summary>A case is stopped by the child itself, after three ticks of 50 ms or ten of 500 ms; this is for what the child cannot stop.</summary>
    private static readonly TimeSpan HangTime = TimeSpan.FromSeconds(30);
    private Process? _process;

    /// <param name="command">The program and its arguments; the shared file's path follows them.</param>
    private protected CaseProcess(params string[] command)
    {
        _command = command;
        _path = Path.Combine(Directory.Exists("/dev/shm") ? "/dev/shm" : Path.GetTempPath(), $"ring3-oracle-{Environment.ProcessId}-{Guid.NewGuid():N}");
        using (var f = new FileStream(_path, FileMode.CreateNew))
            f.SetLength((SharedFile.Size + 4095) & ~4095);
        _file = MemoryMappedFile.CreateFromFile(_path, FileMode.Open);
        _view = _file.CreateViewAccessor();
        byte* mapped = null;
        _view.SafeMemoryMappedViewHandle.AcquirePointer(ref mapped);
        Base = mapped;
        try
        {
            Start();
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>What it takes to run the child, for the message that says that it did not start.</summary>
    private protected abstract string Needs { get; }

    /// <summary>How the child ended in the last <see cref="Run"/> that lost a case.</summary>
    internal string End { get; private set; } = "";

    /// <summary>Runs the first <paramref name="count"/> inputs. Returns -1, or the index of a case that ended the child (which is started again).</summary>
    internal int Run(int count)
    {
        var header = (SharedHeader*)Base;
        header->Count = (uint)count;
        header->Done = 0;
        header->OwnRip = 0;
        try
        {
            _process!.StandardInput.BaseStream.WriteByte((byte)'g');
            _process.StandardInput.BaseStream.Flush();
            if (Answered())
                return -1;
        }
        catch (IOException) { /* the child is gone: same as end of file */ }
        int lost = (int)header->Done;
        End = header->OwnRip == 0 ? "the process ended" : string.Create(CultureInfo.InvariantCulture,
            $"the process ended by a fault of its own: #{header->OwnVector} at {header->OwnRip:x}, address {header->OwnAddress:x}");
        Stop();
        Start();
        return lost;
    }

    /// <summary>
    /// Waits for the answer as long as the child finishes cases: one that hangs for <see cref="HangTime"/> is stopped, and counts as one that ended the child.
    /// </summary>
    private bool Answered()
    {
        var header = (SharedHeader*)Base;
        var one = new byte[1];
        Task<int> read = _process!.StandardOutput.BaseStream.ReadAsync(one, 0, 1);
        uint done = uint.MaxValue;
        while (!read.Wait(HangTime))
        {
            uint now = Volatile.Read(ref header->Done);
            if (now == done)
            {
                _process.Kill();
                return false;
            }
            done = now;
        }
        return read.Result == 1 && one[0] == 'd';
    }

    private void Start()
    {
        var info = new ProcessStartInfo(_command[0]) { RedirectStandardInput = true, RedirectStandardOutput = true, UseShellExecute = false };
        foreach (string argument in _command.Skip(1))
            info.ArgumentList.Add(argument);
        info.ArgumentList.Add(_path);
        _process = Process.Start(info) ?? throw new InvalidOperationException($"cannot start {_command[0]}");
        if (_process.StandardOutput.BaseStream.ReadByte() != 'r' || ((SharedHeader*)Base)->Magic != SharedFile.Magic)
            throw new InvalidOperationException($"{Path.GetFileName(_command[^1])} did not start: it needs {Needs}");
    }

    private void Stop()
    {
        if (_process is null)
            return;
        try { _process.StandardInput.Close(); } catch (IOException) { /* already gone */ }
        if (!_process.WaitForExit(2000))
            _process.Kill();
        _process.Dispose();
        _process = null;
    }

    public void Dispose()
    {
        Stop();
        _view.SafeMemoryMappedViewHandle.ReleasePointer();
        _view.Dispose();
        _file.Dispose();
        File.Delete(_path);
    }
}
