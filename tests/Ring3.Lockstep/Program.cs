using System.Diagnostics;
using System.Globalization;
using System.Text;
using Ring3.Cpu;
using Ring3.Vmm;

namespace Ring3.Lockstep;

/// <summary>
/// Boots a machine of one processor whose every stay in the guest is executed by the translator and by the interpreter, and compared.
/// usage: Ring3.Lockstep [--kernel FILE] [--initrd FILE] [--append TEXT] [--exec COMMAND] [--memory MIB] [--threshold N] [--millions N]
/// </summary>
internal static class Program
{
    private sealed class Console1(ulong limit, Func<ulong> instructions, Action end) : ISerialSink
    {
        private readonly StringBuilder _line = new();

        public void Transmit(byte value)
        {
            if (instructions() > limit)
                end();
            if (value is not (byte)'\n')
            {
                _line.Append((char)value);
                return;
            }
            Console.WriteLine(_line.ToString().TrimEnd('\r'));
            _line.Clear();
        }
    }

    private sealed class Ignore : ISerialSink
    {
        public void Transmit(byte value) { }
    }

    private static int Main(string[] arguments)
    {
        BootOptions options = new() { Cpus = 1, TranslationThreshold = 128, Append = "console=ttyS0 quiet panic=-1", Messages = Console.Error };
        ulong limit = ulong.MaxValue;
        for (int i = 0; i + 1 < arguments.Length; i += 2)
        {
            string value = arguments[i + 1];
            options = arguments[i] switch
            {
                "--kernel" => options with { Kernel = value },
                "--initrd" => options with { Initrd = [value] },
                "--append" => options with { Append = value },
                "--exec" => options with { Exec = value },
                "--memory" => options with { MemoryBytes = ulong.Parse(value, CultureInfo.InvariantCulture) << 20 },
                "--threshold" => options with { TranslationThreshold = int.Parse(value, CultureInfo.InvariantCulture) },
                "--millions" => Limited(options, value),
                _ => throw new ArgumentException($"what is {arguments[i]}?"),
            };
        }
        BootOptions Limited(BootOptions o, string value)
        {
            limit = ulong.Parse(value, CultureInfo.InvariantCulture) * 1_000_000;
            return o;
        }

        LockstepObserver? observer = null;
        LogicalProcessor? leader = null;
        ExecutionObserver.Make = p =>
        {
            // The observer's own processor comes from its constructor.
            ExecutionObserver.Make = null;
            leader = p;
            return observer = new LockstepObserver(p)
            {
                Report = text =>
                {
                    Console.Out.Flush();
                    Console.WriteLine("DIFFERENCE in " + text);
                    Environment.Exit(1);
                },
            };
        };
        using Vmm.Machine machine = new(options);
        machine.AttachSerial(0, new Console1(limit, () => observer!.Instructions, () => machine.End(Vmm.MachineEnd.Quit, 0)));
        for (int i = 1; i < 4; i++)
            machine.AttachSerial(i, new Ignore());
        machine.Load(GuestPlan.Prepare(options, new GuestCache(Console.Error.WriteLine), new HostTerminal(false, 0, 0)));
        Stopwatch time = Stopwatch.StartNew();
        MachineResult result = machine.Run();
        Console.WriteLine($"lockstep: {observer!.Stays} stays, {observer.Instructions / 1_000_000.0:f1} million instructions,"
            + $" {leader!.Translator.Counters.Translated / 1_000_000.0:f1} translated, "
            + $"{observer.PagesCompared} pages compared, no difference ({observer.UndefinedDifferences} in undefined flags);"
            + $" {result.End} after {time.Elapsed.TotalSeconds:f1} s");
        return leader.Translator.Counters.Translated > 0 ? 0 : 1;
    }
}
