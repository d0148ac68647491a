using System.Text.RegularExpressions;

namespace Ring3.Architecture.Tests;

/// <summary>Unsafe code is in the smallest scope, for a reason that is about that code, and does not follow what the client named.</summary>
public partial class UnsafeCodeTests
{
    /// <summary>One reason may hold for two places; one that is pasted is none.</summary>
    private const int MostUses = 2;

    [Fact]
    public void Reasons_AreAboutTheirCode() => Assert.Empty(
        from file in Repository.Sources("src")
        from Match m in Reason().Matches(File.ReadAllText(file))
        group Repository.Relative(file) by m.Groups[1].Value into uses
        where uses.Count() > MostUses
        select $"\"{uses.Key}\": {string.Join(", ", uses)}");

    [Fact]
    public void Files_SayWhyTheyAreSound() => Assert.Empty(
        from file in Repository.Sources("src")
        let text = File.ReadAllText(file)
        where Unsafe().IsMatch(text) && !text.Contains("SAFETY:")
        select Repository.Relative(file));

    /// <summary>
    /// Outside the processor, whose every handler works on CpuState by address, methods, fields and blocks are unsafe and types are not. A
    /// constructor's parameters in the type's own line have no other place to say it.
    /// </summary>
    [Fact]
    public void Types_AreNotUnsafe() => Assert.Empty(
        from file in Repository.Sources("src")
        let name = Repository.Relative(file)
        where !name.StartsWith("src/Ring3.Cpu/", StringComparison.Ordinal)
        from Match m in UnsafeType().Matches(File.ReadAllText(file))
        where !m.Groups[1].Value.Contains('*')
        select $"{name}: {m.Value.Trim()}");

    /// <summary>
    /// Who makes a pointer of a host virtual address of the client's, and why that is not followed there. All others ask Ring3.Memory or UserCopy,
    /// which survive memory that has gone.
    /// </summary>
    private static readonly Dictionary<string, string> s_clientPointers = new()
    {
        ["src/Ring3.Kvm/Vm/Memory/VmMemory.cs"] = "names a written range to the decoder, which compares",
        ["src/Ring3.Memory/GuestRam.cs"] = "gives pages back to the host; its Pointer is for tests (src/BannedSymbols.txt)",
    };

    [Fact]
    public void ClientMemory_IsReachedByAccessors() => Assert.Equal(
        s_clientPointers.Keys.Order(),
        from file in Repository.Sources("src")
        let name = Repository.Relative(file)
        where !Regex.IsMatch(name, "^src/Ring3.(Host|Cpu)/") && PointerOfClient().IsMatch(File.ReadAllText(file))
        orderby name
        select name);

    [GeneratedRegex(@"SAFETY: (.*?)(?:</remarks>|</summary>)?$", RegexOptions.Multiline)]
    private static partial Regex Reason();

    [GeneratedRegex(@"^(?! *//).*\bunsafe\b", RegexOptions.Multiline)]
    private static partial Regex Unsafe();

    [GeneratedRegex(@"^ *(?:\w+ )*unsafe (?:\w+ )*(?:class|struct|interface) (.*)$", RegexOptions.Multiline)]
    private static partial Regex UnsafeType();

    [GeneratedRegex(@"\*\)\(?\w*[hH]va\b")]
    private static partial Regex PointerOfClient();
}
