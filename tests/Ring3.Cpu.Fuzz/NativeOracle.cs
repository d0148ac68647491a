using System.Diagnostics;
using System.Globalization;
using System.IO.MemoryMappedFiles;
using System.Security.Cryptography;

namespace Ring3.Differential;

/// <summary>The native side: a child process (tests/native/oracle.c) that runs a batch of single instructions on the host's processor. Not thread-safe; use one per thread.</summary>
/// <remarks>SAFETY: pointers are into the shared mapping, which lives as long as this object; indices are checked against <see cref="Sandbox.MaxCases"/>.</remarks>
internal sealed unsafe class NativeOracle : CaseMemory, IDisposable
{
    private readonly MemoryMappedFile _file;
    private readonly MemoryMappedViewAccessor _view;
    private readonly string _path, _program;
    /// <summary>A case is stopped by the child itself after three ticks of 50 ms; this is for what the child cannot stop.</summary>
    private static readonly TimeSpan HangTime = TimeSpan.FromSeconds(30);
    private Process? _process;

    internal NativeOracle()
    {
        _program = NativeProgram.Build("oracle");
        _path = Path.Combine(Directory.Exists("/dev/shm") ? "/dev/shm" : Path.GetTempPath(), $"ring3-oracle-{Environment.ProcessId}-{Guid.NewGuid():N}");
        using (var f = new FileStream(_path, FileMode.CreateNew))
            f.SetLength((SharedFile.Size + 4095) & ~4095);
        _file = MemoryMappedFile.CreateFromFile(_path, FileMode.Open);
        _view = _file.CreateViewAccessor();
        byte* mapped = null;
        _view.SafeMemoryMappedViewHandle.AcquirePointer(ref mapped);
        Base = mapped;
        Start();
        Probes = HostProbes.Of(this);
        SetQuirks(Probes.Quirks);
    }

    /// <summary>What this host does otherwise than a bare processor.</summary>
    internal HostProbes Probes { get; }

    /// <summary>How the child ended in the last <see cref="Run"/> that lost a case.</summary>
    internal string End { get; private set; } = "";

    /// <summary>Tells the child what to allow for; it stays in the shared header when the child is started again.</summary>
    internal void SetQuirks(ulong quirks) => ((SharedHeader*)Base)->Quirks = quirks;

    internal override ulong ExitAddress => ((SharedHeader*)Base)->ExitAddress;

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
        End = header->OwnRip == 0 ? "the native process ended"
            : string.Create(CultureInfo.InvariantCulture, $"the native process ended by a fault of its own: #{header->OwnVector} at {header->OwnRip:x}, address {header->OwnAddress:x}");
        Stop();
        Start();
        return lost;
    }

    /// <summary>Waits for the answer as long as the child finishes cases: one that hangs for <see cref="HangTime"/> is stopped, and counts as one that ended the child.</summary>
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
        var info = new ProcessStartInfo(_program) { RedirectStandardInput = true, RedirectStandardOutput = true, UseShellExecute = false };
        info.ArgumentList.Add(_path);
        _process = Process.Start(info) ?? throw new InvalidOperationException("cannot start the native oracle");
        if (_process.StandardOutput.BaseStream.ReadByte() != 'r' || ((SharedHeader*)Base)->Magic != SharedFile.Magic)
            throw new InvalidOperationException("the native oracle did not start: this test needs an x86-64 host with FSGSBASE and AVX");
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

/// <summary>Builds the C helpers of tests/native with gcc, once for each version of the source.</summary>
internal static class NativeProgram
{
    private static readonly Lock s_building = new();

    /// <summary>Root of the repository: the folder with Ring3.slnx above the program.</summary>
    internal static string RepositoryRoot { get; } = FindRoot();

    internal static string Build(string name)
    {
        string source = Path.Combine(RepositoryRoot, "tests", "native", name + ".c");
        string hash = Convert.ToHexString(SHA256.HashData(File.ReadAllBytes(source)))[..12].ToLowerInvariant();
        string folder = Path.Combine(RepositoryRoot, "artifacts", "native"), program = Path.Combine(folder, $"{name}-{hash}");
        lock (s_building)
        {
            if (File.Exists(program))
                return program;
            Directory.CreateDirectory(folder);
            string temporary = $"{program}.{Environment.ProcessId}";
            string[] arguments = ["-O2", "-Wall", "-Wextra", "-mfsgsbase", "-fno-stack-protector", "-fcf-protection=none", "-no-pie", "-static", "-o", temporary, source];
            using Process gcc = Process.Start("gcc", arguments);
            gcc.WaitForExit();
            if (gcc.ExitCode != 0)
                throw new InvalidOperationException($"gcc failed on {source}");
            File.Move(temporary, program, overwrite: true);
            return program;
        }
    }

    private static string FindRoot()
    {
        for (string? at = AppContext.BaseDirectory; at is not null; at = Path.GetDirectoryName(at))
        {
            if (File.Exists(Path.Combine(at, "Ring3.slnx")))
                return at;
        }
        throw new InvalidOperationException("Ring3.slnx not found above the program");
    }
}
