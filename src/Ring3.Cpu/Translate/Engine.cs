namespace Ring3.Cpu;

/// <summary>
/// How guest code is executed: hot 64-bit code translated to host code and the rest by the interpreter, which is the default, or every instruction by the
/// interpreter.
/// </summary>
public static class Engine
{
    /// <summary>
    /// Environment variables: the engine of machines that are made without a choice of their own, as <see cref="TryParse"/> takes it; and a file to which
    /// every region that is made is appended, guest and host code side by side, and what became of all of it at a machine's end. With "summary:" before the
    /// file's name, only that.
    /// </summary>
    public const string Variable = "RING3_ENGINE", LogVariable = "RING3_TRANSLATION_LOG";

    /// <summary>Environment variable: with 1, translated code is named in /tmp/perf-PID.map, for Linux's perf.</summary>
    public const string PerfMapVariable = "RING3_PERF_MAP";

    private const int DefaultThreshold = 128;

    /// <summary>Executions of a block by the interpreter before it is translated; <see cref="int.MaxValue"/>: never.</summary>
    public static int Threshold { get; } = TryParse(Environment.GetEnvironmentVariable(Variable), out int threshold) ? threshold : DefaultThreshold;

    private const string Summary = "summary:";

    /// <summary>Told of every region that is made or refused; null with <see cref="Summary"/>.</summary>
    public static Action<string>? RegionLog { get; }

    /// <summary>Told how a machine's code was executed.</summary>
    internal static Action<string>? Log { get; }

    static Engine()
    {
        string file = Environment.GetEnvironmentVariable(LogVariable) ?? "";
        bool summary = file.StartsWith(Summary, StringComparison.Ordinal);
        if (summary)
            file = file[Summary.Length..];
        if (file.Length == 0)
            return;
        // Opened now: a machine that is confined opens nothing. What cannot be opened is not written.
        try
        {
            TextWriter writer = TextWriter.Synchronized(new StreamWriter(new FileStream(file, FileMode.Append, FileAccess.Write, FileShare.ReadWrite))
                { AutoFlush = true });
            Log = writer.WriteLine;
            RegionLog = summary ? null : Log;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException) { }
    }

    /// <summary>"interpreter", "translator", or "translator:N", with N executions before a block is translated.</summary>
    public static bool TryParse(string? text, out int threshold)
    {
        const string name = "translator";
        threshold = int.MaxValue;
        if (text == "interpreter")
            return true;
        if (text is null || !text.StartsWith(name, StringComparison.Ordinal))
            return false;
        if (text.Length == name.Length)
        {
            threshold = DefaultThreshold;
            return true;
        }
        return text[name.Length] == ':' && int.TryParse(text.AsSpan(name.Length + 1), out threshold) && threshold is >= 0 and < int.MaxValue;
    }
}
