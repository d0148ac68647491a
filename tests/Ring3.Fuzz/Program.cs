using System.Globalization;

namespace Ring3.Fuzz;

/// <summary>
/// Hostile guests: random instruction streams in every processor mode, and random bytes as kernels. Each run must end by itself or by a kick, without
/// an exception in the
/// hypervisor, a hang, a leak, or a byte written outside the guest's memory. And hostile clients: random calls of /dev/kvm's front door.
/// </summary>
internal static class Program
{
    private const string Usage = "usage: Ring3.Fuzz streams|kernels|ioctls|xen|virtio [--runs N] [--seed S] [--only RUN] [--threads T]";

    private static int Main(string[] args)
    {
        if (args.Length == 0 || args[0] is not ("streams" or "kernels" or "ioctls" or "xen" or "virtio"))
            return Fail(Usage);
        long runs = 1000, seed = 1, only = -1, threads = 1;
        for (int i = 1; i < args.Length; i += 2)
        {
            if (i + 1 == args.Length || !long.TryParse(args[i + 1], CultureInfo.InvariantCulture, out long value))
                return Fail(Usage);
            switch (args[i])
            {
                case "--runs": runs = value; break;
                case "--seed": seed = value; break;
                case "--threads" when args[0] == "ioctls" && value is > 0 and <= 16: threads = value; break;
                case "--only": only = value; break;
                default: return Fail(Usage);
            }
        }
        IHostileRun target = args[0] switch
        {
            "streams" => new StreamRun(),
            "kernels" => new KernelRun(),
            "xen" => new XenRun(),
            "virtio" => new VirtioRun(),
            _ => new IoctlRun((int)threads),
        };
        return new Campaign(target, args[0], seed).Execute(runs, only);
    }

    private static int Fail(string message)
    {
        Console.Error.WriteLine(message);
        return 2;
    }
}
