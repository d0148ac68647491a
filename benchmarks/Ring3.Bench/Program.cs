using Ring3.Bench;

switch (args.FirstOrDefault())
{
    case "age":
        return AgeBench.Run();
    case "cpu":
        return CpuBench.Run(args[1..]);
    case "exit":
        return ExitBench.Run();
    case "requests":
        return RequestsBench.Run();
    case "dirty":
        return DirtyBench.Run();
    case "faults":
        return FaultsBench.Run();
    case "translate":
        return TranslateBench.Run();
    case "zap":
        return ZapBench.Run();
    default:
        Console.Error.WriteLine("usage: Ring3.Bench age | cpu [KERNEL...] | dirty | exit | faults | requests | translate | zap");
        return 2;
}
