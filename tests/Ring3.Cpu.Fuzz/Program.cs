using Iced.Intel;
using Ring3.Differential;

if (FuzzOptions.Parse(args) is not { } options)
{
    Console.Error.WriteLine(FuzzOptions.Usage);
    return 2;
}
var session = new FuzzSession(options);
if (options.List)
{
    session.List(Console.Out);
    return 0;
}
if (session.SelectCodes().Length == 0)
{
    Console.Error.WriteLine($"no instruction of the machine matches '{options.Filter}'");
    return 2;
}
if (options.Replay is { } vectors)
{
    using KvmOracle? kvm = options.Kvm is { } launcher ? new KvmOracle(launcher) : null;
    using var replay = new Replay(kvm, options.Model);
    replay.Run(vectors);
    foreach (string mismatch in replay.Mismatches)
        Console.WriteLine(mismatch);
    foreach ((string rule, int count) in replay.LeftOpenDifferences)
        Console.WriteLine($"left open by the manuals: {count} cases, {rule}");
    if (replay.LeftOut != 0)
        Console.WriteLine($"left out: {replay.LeftOut} cases of units that this host lacks");
    if (replay.OfOtherModel != 0)
        Console.WriteLine($"left out: {replay.OfOtherModel} cases in which the recorded processor and model {options.Model.Name} differ");
    if (options.Coverage)
        Console.WriteLine($"never ran: {string.Join(' ', session.SelectCodes().Except(replay.Codes))}");
    Console.WriteLine($"{replay.Cases} cases of {replay.Codes.Count} instructions, {replay.Mismatches.Count} mismatches");
    return replay.Mismatches.Count == 0 ? 0 : 1;
}
if (options.Contrast is { } other)
{
    List<Contrast.Difference> differences = Contrast.Run(options, session.SelectCodes(), other);
    Contrast.Print(differences, options.Examples, Console.Out);
    Console.WriteLine($"{options.Cases} cases, {differences.Count} differ between the models, "
        + $"{differences.Count(d => d.Rule is null)} of them in what the manuals define");
    return 0;
}
HostProbes host = HostProbes.Find();
foreach (string line in host.Report())
    Console.WriteLine(line);
if (host.Missing(options.Bits) is { } missing)
{
    Console.WriteLine($"skipped: {missing}");
    return 4;
}
if (options.Record is { } file)
{
    using var recorder = new Recorder(options, session.SelectCodes());
    List<RecordedCase> recorded = recorder.Run();
    foreach (string note in recorder.Notes)
        Console.WriteLine(note);
    VectorFile.Write(file, new VectorHost(HostProbes.Vendor, HostProbes.Family, HostProbes.Model, recorder.Source, host.ReportsX87Pointers), recorded);
    Console.WriteLine($"{recorded.Count} cases recorded, {new FileInfo(file).Length} bytes");
    return 0;
}
double seconds = session.Run();
session.Print(Console.Out);
Console.WriteLine($"native outcomes: {session.Outcomes()}");
if (options.Translate)
    Console.WriteLine($"{100 * session.Translated:F1} % of the machine's instructions retired in translated code");
foreach ((string rule, long count) in session.LeftOpenDifferences)
    Console.WriteLine($"left open by the manuals, and no model knows this family: {count} cases, {rule}");
foreach ((string reason, long count) in session.PassedOver)
    Console.WriteLine($"not run on this host: {count} cases, {reason}");
Code[] without = session.NeverRun();
Console.WriteLine($"ran {session.SelectCodes().Length - without.Length} of {session.SelectCodes().Length} instructions");
if (options.Coverage)
{
    Console.WriteLine($"never ran: {string.Join(' ', without)}");
    Console.WriteLine($"never retired: {string.Join(' ', session.NeverRetired())}");
}
Console.WriteLine($"{session.Cases} cases, {session.Mismatches} mismatches in {session.Findings.Count} instructions, "
    + $"{session.Cases / seconds / 1000:F0} k cases/s, seed {options.Seed}");
return session.Mismatches == 0 ? 0 : 1;
