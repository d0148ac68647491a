using Ring3.Bench;

switch (args.FirstOrDefault())
{
    case "cpu":
        return CpuBench.Run(args[1..]);
    case "exit":
        return ExitBench.Run();
    case "xen":
        return XenBench.Run();
    default:
        Console.Error.WriteLine("usage: Ring3.Bench cpu [KERNEL...] | exit | xen");
        return 2;
}
