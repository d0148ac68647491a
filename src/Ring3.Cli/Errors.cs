namespace Ring3.Cli;

/// <summary>Messages on standard error: one line each, prefixed with the program's name.</summary>
internal static class Errors
{
    public static void Line(string message) => Console.Error.WriteLine("ring3: " + message.ReplaceLineEndings(" "));
}
