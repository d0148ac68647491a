using Ring3.Bench;

switch (args.FirstOrDefault())
{
    case "cpu":
        return CpuBench.Run(args[1..]);
    default:
        Console.Error.WriteLine("usage: Ring3.Bench cpu [KERNEL...]");
        return 2;
}
