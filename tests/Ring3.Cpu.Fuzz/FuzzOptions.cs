using System.Globalization;

namespace Ring3.Differential;

/// <summary>Command line of the fuzzer.</summary>
internal sealed record FuzzOptions
{
    internal long Cases { get; init; } = 1_000_000;
    internal ulong Seed { get; init; } = 1;
    /// <summary>Mnemonics or parts of Code names, with commas between; empty = everything.</summary>
    internal string Filter { get; init; } = "";
    internal int Threads { get; init; } = Environment.ProcessorCount;
    /// <summary>Percentage of plain random byte streams.</summary>
    internal int Raw { get; init; } = 3;
    /// <summary>64; 32: compatibility mode; 16: 16-bit segments.</summary>
    internal int Bits { get; init; } = 64;
    /// <summary>Run this batch only, and print every mismatch in it.</summary>
    internal long Batch { get; init; } = -1;
    /// <summary>Compare the native side with a second run of itself: checks the harness.</summary>
    internal bool Self { get; init; }
    internal bool List { get; init; }
    /// <summary>Print each case to standard error before the machine runs it: finds the one that ends the process.</summary>
    internal bool Trace { get; init; }
    /// <summary>Print the instructions that never ran, and those that never ran to their end.</summary>
    internal bool Coverage { get; init; }
    /// <summary>Record cases with the host's results into this file.</summary>
    internal string? Record { get; init; }
    /// <summary>Record one case of each mnemonic, not of each encoding.</summary>
    internal bool Mnemonics { get; init; }
    /// <summary>Cases to record besides: seed, batch and index, as a mismatch names them.</summary>
    internal IReadOnlyList<(ulong Seed, ulong Batch, int Case)> At { get; init; } = [];
    /// <summary>Files of vectors whose cases are run on this host and recorded besides.</summary>
    internal IReadOnlyList<string> From { get; init; } = [];
    /// <summary>Check the machine against this file.</summary>
    internal string? Replay { get; init; }
    /// <summary>Another model to compare with <see cref="Model"/>, instead of the host's processor.</summary>
    internal ProcessorModel? Contrast { get; init; }
    /// <summary>The machine's model.</summary>
    internal ProcessorModel Model { get; init; } = ProcessorModel.Host;
    /// <summary>Everything that can be is translated before it runs.</summary>
    internal bool Translate { get; init; }
    /// <summary>The machine's 32-bit segments end behind the sandbox instead of at 4 GiB: they are not flat, and no case can tell.</summary>
    internal bool Limits { get; init; }
    /// <summary>The machine is a VM of the /dev/kvm that programs have which this one starts.</summary>
    internal string? Kvm { get; init; }
    /// <summary>Mismatches described, or cases recorded, for each instruction.</summary>
    internal int Examples { get; init; } = 1;

    internal const string Usage = """
        usage: Ring3.Cpu.Fuzz [--cases N] [--seed S] [--filter MNEMONIC,...] [--threads T] [--raw PERCENT] [--examples N]
                              [--bits 64|32|16] [--limits] [--batch B] [--self] [--list] [--coverage] [--trace]
                              [--model M] [--translate | --kvm LAUNCHER] [--replay FILE | --contrast M]
                              [--record FILE [--mnemonics] [--at SEED:BATCH:CASE]... [--from FILE]...]
          Runs random instructions on the host's processor and in the software machine and compares everything they changed.
          --filter F  these instructions only: mnemonics, or parts of Iced's names that have a sign in them (_mm,emms,_sti)
          --batch B   repeats one batch (mismatches name it) and describes each mismatch
          --self      compares the host with itself: a check of the harness
          --list      prints the instructions that take part, then those left out with the reason
          --coverage  prints the instructions that never ran (also of a replay) and those that never retired natively
          --record F  looks at N cases, runs some of each instruction (--examples) on the host and keeps them with its results
          --mnemonics one of each mnemonic instead of each encoding
          --at S:B:N  records that case besides: what mismatches name
          --from F    runs the cases of another such file on this host and records them besides; says which results differ from the file's
          --replay F  checks the machine against such a file; needs nothing of the host
          --model M   the machine's model: host (default), intel or amd
          --translate the machine translates code before its first execution, instead of interpreting it
          --limits    the machine's 32-bit segments end behind the sandbox: not flat, so each access is checked against its segment
          --kvm L     the machine is a VM of a client of /dev/kvm that program L starts: ring3-exec; env for the kernel's own; --model says
                      which processor it has
          --contrast M  compares the machine as --model says with the machine as model M; needs nothing of the host
          --trace     prints each case to standard error before the machine runs it
        Exit status: 0 no mismatch, 1 mismatches, 2 bad usage, 4 this host cannot run these cases.
        """;

    internal static FuzzOptions? Parse(string[] args)
    {
        var o = new FuzzOptions();
        for (int i = 0; i < args.Length; i++)
        {
            string? value = i + 1 < args.Length ? args[i + 1] : null;
            switch (args[i])
            {
                case "--translate": o = o with { Translate = true }; continue;
                case "--limits": o = o with { Limits = true }; continue;
                case "--self": o = o with { Self = true }; continue;
                case "--coverage": o = o with { Coverage = true }; continue;
                case "--trace": o = o with { Trace = true }; continue;
                case "--list": o = o with { List = true }; continue;
                case "--filter" when value is not null: o = o with { Filter = value }; i++; continue;
                case "--mnemonics": o = o with { Mnemonics = true }; continue;
                case "--from" when value is not null: o = o with { From = [.. o.From, value] }; i++; continue;
                case "--at" when value?.Split(':') is [var seed, var batch, var index] && ulong.TryParse(seed, NumberStyles.None, CultureInfo.InvariantCulture,
                    out ulong s)
                    && ulong.TryParse(batch, NumberStyles.None, CultureInfo.InvariantCulture, out ulong b) && int.TryParse(index, NumberStyles.None,
                        CultureInfo.InvariantCulture, out int c) && c < Sandbox.MaxCases:
                    o = o with { At = [.. o.At, (s, b, c)] };
                    i++;
                    continue;
                case "--record" when value is not null: o = o with { Record = value }; i++; continue;
                case "--model" when ProcessorModel.TryParse(value, out ProcessorModel model): o = o with { Model = model }; i++; continue;
                case "--contrast" when ProcessorModel.TryParse(value, out ProcessorModel model): o = o with { Contrast = model }; i++; continue;
                case "--kvm" when value is not null: o = o with { Kvm = value }; i++; continue;
                case "--replay" when value is not null: o = o with { Replay = value }; i++; continue;
            }
            if (!ulong.TryParse(value, NumberStyles.None, CultureInfo.InvariantCulture, out ulong n))
                return null;
            switch (args[i++])
            {
                case "--cases": o = o with { Cases = (long)n }; break;
                case "--seed": o = o with { Seed = n }; break;
                case "--threads" when n is > 0 and <= 256: o = o with { Threads = (int)n }; break;
                case "--raw" when n <= 100: o = o with { Raw = (int)n }; break;
                case "--bits" when n is 16 or 32 or 64: o = o with { Bits = (int)n }; break;
                case "--batch": o = o with { Batch = (long)n }; break;
                case "--examples": o = o with { Examples = (int)n }; break;
                default: return null;
            }
        }
        return o;
    }
}
