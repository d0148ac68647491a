namespace Ring3.Host.Tests;

/// <summary>Programs of <see cref="SystemCallFilter"/>, run by an interpreter of the instructions that seccomp knows of them.</summary>
public class SystemCallFilterTests
{
    private const uint X86_64 = 0xc000003e, I386 = 0x40000003;
    private const uint Kill = 0x8000_0000, Allow = 0x7fff_0000, Eperm = 0x0005_0001;

    /// <summary>
    /// What the kernel would do with a call. SPEC: seccomp(2), struct seccomp_data: number, architecture, instruction pointer, six arguments.
    /// </summary>
    private static uint Run(SystemCallFilter filter, int number, ulong[] arguments, uint architecture = X86_64)
    {
        var data = new uint[16];
        (data[0], data[1]) = ((uint)number, architecture);
        for (int i = 0; i < arguments.Length; i++)
            (data[4 + 2 * i], data[5 + 2 * i]) = ((uint)arguments[i], (uint)(arguments[i] >> 32));
        ulong[] program = filter.Program();
        uint a = 0;
        for (int pc = 0; ; pc++)
        {
            ulong instruction = program[pc];
            (uint operand, int yes, int no) = ((uint)(instruction >> 32), (int)(instruction >> 16 & 0xff), (int)(instruction >> 24 & 0xff));
            switch ((ushort)instruction)
            {
                case 0x20: a = data[operand / 4]; break;
                case 0x54: a &= operand; break;
                case 0x15: pc += a == operand ? yes : no; break;
                case 0x35: pc += a >= operand ? yes : no; break;
                case 0x06: return operand;
                default: throw new InvalidOperationException($"instruction {instruction:x} at {pc}");
            }
        }
    }

    private static uint Run(SystemCallFilter filter, SystemCall call, params ulong[] arguments) => Run(filter, (int)call, arguments);

    [Fact]
    public void Calls_ThatNobodyAllows_Fail()
    {
        var filter = new SystemCallFilter();
        filter.Allow(SystemCall.read, SystemCall.futex);
        Assert.Equal(Allow, Run(filter, SystemCall.read, 1, 2, 3));
        Assert.Equal(Allow, Run(filter, SystemCall.futex));
        for (int number = 0; number < 1024; number++)
        {
            if (number is not ((int)SystemCall.read or (int)SystemCall.futex))
                Assert.Equal(Eperm, Run(filter, number, []));
        }
    }

    [Fact]
    public void OtherAbis_EndTheProcess()
    {
        var filter = new SystemCallFilter();
        filter.Allow(SystemCall.read);
        Assert.Equal(Kill, Run(filter, 0, [], I386));
        Assert.Equal(Kill, Run(filter, 0x4000_0000, []));
        Assert.Equal(Kill, Run(filter, -1, []));
        Assert.Equal(Eperm, Run(filter, 0x3fff_ffff, []));
    }

    [Fact]
    public void Arguments_AreCompared_WhereTheMaskIs()
    {
        var filter = new SystemCallFilter();
        filter.AllowWhen(SystemCall.kill, ArgumentIs.Int(0, 77), ArgumentIs.Int(1, 9));
        filter.AllowWhen(SystemCall.kill, ArgumentIs.Int(0, 5));
        filter.AllowWhen(SystemCall.prlimit64, new ArgumentIs(2, ulong.MaxValue, 0));
        filter.AllowWhen(SystemCall.clone, new ArgumentIs(0, 0xff00, 0x1200));
        Assert.Equal(Allow, Run(filter, SystemCall.kill, 77, 9));
        Assert.Equal(Allow, Run(filter, SystemCall.kill, 5, 15));
        // The kernel takes 32 bits of it.
        Assert.Equal(Allow, Run(filter, SystemCall.kill, 5 | 1UL << 32, 15));
        Assert.Equal(Eperm, Run(filter, SystemCall.kill, 77, 15));
        Assert.Equal(Eperm, Run(filter, SystemCall.kill, 6, 9));
        Assert.Equal(Allow, Run(filter, SystemCall.prlimit64, 0, 0, 0));
        Assert.Equal(Eperm, Run(filter, SystemCall.prlimit64, 0, 0, 1));
        Assert.Equal(Eperm, Run(filter, SystemCall.prlimit64, 0, 0, 1UL << 32));
        Assert.Equal(Allow, Run(filter, SystemCall.clone, 0x1234));
        Assert.Equal(Eperm, Run(filter, SystemCall.clone, 0x1334));
    }

    [Fact]
    public void Allowed_BeatsAllowedWhen_AndErrorsAreTheirs()
    {
        var filter = new SystemCallFilter();
        filter.AllowWhen(SystemCall.ioctl, ArgumentIs.Int(1, 1));
        filter.Allow(SystemCall.ioctl);
        filter.Fail(SystemCall.clone3, 38);
        Assert.Equal(Allow, Run(filter, SystemCall.ioctl, 0, 2));
        Assert.Equal(0x0005_0000u | 38, Run(filter, SystemCall.clone3));
    }
}
