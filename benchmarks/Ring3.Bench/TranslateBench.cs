using System.Globalization;
using Ring3.Cpu;
using Ring3.Vmm;

namespace Ring3.Bench;

/// <summary>
/// <c>bench translate</c>: boots Debian's kernel to a command, and then translates every region that is left again and again, into an arena of its own.
/// Prints translate.instructions (guest instructions in one round), translate.ns (processor time for one of them, publication included, best round) and
/// translate.bytes (host code for one of them), of data that describe it translate.data_bytes.
/// </summary>
/// <remarks>SAFETY: the guest has ended, and no processor is inside; its memory and its blocks are there until the machine is disposed of.</remarks>
internal static unsafe class TranslateBench
{
    private const int Rounds = 60;

    private const string Command = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo $i | sha256sum; ls -lR /bin | wc; ls -la /proc/self; dmesg | md5sum";

    private sealed class Ignore : ISerialSink
    {
        public void Transmit(byte value) { }
    }

    internal static int Run()
    {
        LogicalProcessor? processor = null;
        ExecutionObserver.Make = p =>
        {
            processor ??= p;
            return null;
        };
        BootOptions options = new() { Cpus = 1, Append = "console=ttyS0 quiet panic=-1", Exec = Command, Messages = Console.Error };
        using Vmm.Machine machine = new(options);
        for (int i = 0; i < 4; i++)
            machine.AttachSerial(i, new Ignore());
        machine.Load(GuestPlan.Prepare(options, new GuestCache(Console.Error.WriteLine), new HostTerminal(false, 0, 0)));
        machine.Run();
        ExecutionObserver.Make = null;
        BlockCache blocks = processor!.Machine.Blocks;
        List<nint> seeds = Seeds(blocks);
        RegionBuilder builder = new(blocks, processor.Identity);
        RegionArena arena = RegionArena.Take() ?? throw new InvalidOperationException("no memory for translated code");
        double best = double.MaxValue;
        long instructions = 0, code = 0, data = 0;
        for (int round = 0; round < Rounds; round++)
        {
            (instructions, code, data) = (0, 0, 0);
            TimeSpan start = Environment.CpuUsage.TotalTime;
            foreach (nint seed in seeds)
            {
                if (!builder.Build((Block*)seed, 0) || !arena.HasRoom(builder.CodeBytes, builder.DataBytes))
                    continue;
                builder.Place(arena);
                instructions += builder.Instructions;
                code += builder.CodeBytes;
                data += builder.DataBytes;
            }
            best = Math.Min(best, (Environment.CpuUsage.TotalTime - start).TotalNanoseconds / Math.Max(instructions, 1));
            arena.Reset();
        }
        if (instructions == 0)
        {
            Console.Error.WriteLine("bench: nothing was translated");
            return 1;
        }
        Print("instructions", instructions, "");
        Print("ns", best, "ns");
        Print("bytes", code / (double)instructions, "bytes");
        Print("data_bytes", data / (double)instructions, "bytes");
        return 0;
    }

    /// <summary>Blocks for which a region was made that still holds.</summary>
    private static List<nint> Seeds(BlockCache blocks)
    {
        List<nint> seeds = [];
        foreach (nint at in blocks.AllBlocks())
            for (RegionUse* use = ((Block*)at)->Stale == 0 ? ((Block*)at)->Uses : null; use != null; use = use->Next)
                if (use->Region->Stale == 0 && use->Region->Blocks[0] == (Block*)at)
                {
                    seeds.Add(at);
                    break;
                }
        return seeds;
    }

    private static void Print(string what, double value, string unit) =>
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"translate.{what}\t{value:G6}\t{unit}"));
}
