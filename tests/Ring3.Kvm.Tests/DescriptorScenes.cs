using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>
/// Descriptors that scream: each number that becomes free is taken at once by an eventfd with a known count, which neither a signal (a write) nor a
/// drain (a read) of somebody who believes in the old descriptor leaves as it is.
/// </summary>
internal sealed class Decoys : IDisposable
{
    private const ulong Count = 1000;
    private readonly Queue<int> _decoys = [];

    /// <summary>Decoys that were written to or read.</summary>
    public int Screams { get; private set; }

    /// <summary>Takes the lowest free number. The oldest decoys make room: who has not screamed for a while has been missed.</summary>
    public void Add()
    {
        int fd = EventFd.Create();
        EventFd.Signal(fd, Count);
        _decoys.Enqueue(fd);
        if (_decoys.Count > 200)
            Look();
    }

    private void Look()
    {
        int fd = _decoys.Dequeue();
        if (EventFd.Drain(fd) != Count)
            Screams++;
        EventFd.Close(fd);
    }

    public void Dispose()
    {
        while (_decoys.Count != 0)
            Look();
    }
}

/// <summary>
/// Closed-descriptor races, under load: descriptors of the client come and go while others signal through them without end. Ring3.Mutants.Tests makes
/// the same of a copy that closes too early.
/// </summary>
internal static unsafe class DescriptorScenes
{
    private const ushort Port = 0x510;
    private const ulong Gpa = 0xd000_0000;
    private const uint Gsi = 18;

    /// <summary>What a scene has seen.</summary>
    /// <param name="Screams">Descriptors of others that were touched.</param>
    /// <param name="Late">Signals to the client's own descriptor after it had been taken away.</param>
    /// <param name="Signals">Signals that arrived: the load was there.</param>
    internal readonly record struct Result(int Screams, ulong Late, ulong Signals);

    /// <summary>A guest rings a doorbell without end while it is taken away and put back.</summary>
    internal static Result Doorbell(bool mmio, int rounds, bool untilScream = false)
    {
        using TestGuest g = new();
        if (mmio)
            g.Load(0xbf, 0x00, 0x00, 0x00, 0xd0, 0x88, 0x07, 0xeb, 0xfc); // mov edi, 0xd0000000; again: mov [rdi], al; jmp again
        else
            g.Load(0x66, 0xba, 0x10, 0x05, 0xee, 0xeb, 0xfd); // mov dx, 0x510; again: out dx, al; jmp again
        bool stop = false;
        Thread vcpu = new(() =>
        {
            while (!Volatile.Read(ref stop))
                _ = g.Cpu.Run();
        });
        vcpu.Start();
        int client = EventFd.Create();
        var doorbell = new kvm_ioeventfd { addr = mmio ? Gpa : Port, len = 1, flags = mmio ? 0u : KVM_IOEVENTFD_FLAG_PIO, fd = client };
        kvm_ioeventfd gone = doorbell with { flags = doorbell.flags | KVM_IOEVENTFD_FLAG_DEASSIGN };
        ulong signals = 0, late = 0;
        using Decoys decoys = new();
        for (int i = 0; i < rounds && !(untilScream && decoys.Screams != 0); i++)
        {
            Assert.Equal(0, g.Vm.RegisterIoeventfd(doorbell));
            Linger(i, () => EventFd.Drain(client), ref signals);
            Assert.Equal(0, g.Vm.RegisterIoeventfd(gone));
            decoys.Add();
            signals += EventFd.Drain(client);
            // KVM's promise as well: when DEASSIGN has returned, the doorbell is silent.
            Linger(i);
            late += EventFd.Drain(client);
        }
        Volatile.Write(ref stop, true);
        g.Cpu.Kick();
        vcpu.Join();
        decoys.Dispose();
        EventFd.Close(client);
        return new Result(decoys.Screams, late, signals);
    }

    /// <summary>
    /// A device raises an interrupt without end, through the event loop and by the shortcut for writes of the process's own threads, while its irqfd is
    /// taken away and put back.
    /// </summary>
    internal static Result Irqfd(int rounds, bool untilScream = false)
    {
        using TestGuest g = new(irqchip: true);
        IrqfdWrites.Enable();
        int client = EventFd.Create();
        bool stop = false;
        ulong taken = 0, signals = 0;
        Thread device = new(() =>
        {
            ulong one = 1;
            while (!Volatile.Read(ref stop))
            {
                EventFd.Signal(client);
                if (IrqfdWrites.TryWrite(client, (ulong)&one))
                    Interlocked.Increment(ref taken);
            }
        });
        device.Start();
        var irqfd = new kvm_irqfd { fd = (uint)client, gsi = Gsi };
        using Decoys decoys = new();
        for (int i = 0; i < rounds && !(untilScream && decoys.Screams != 0); i++)
        {
            Assert.Equal(0, g.Vm.RegisterIrqfd(irqfd));
            Linger(i, () => Interlocked.Exchange(ref taken, 0), ref signals);
            Assert.Equal(0, g.Vm.RegisterIrqfd(irqfd with { flags = KVM_IRQFD_FLAG_DEASSIGN }));
            decoys.Add();
        }
        Volatile.Write(ref stop, true);
        device.Join();
        decoys.Dispose();
        EventFd.Close(client);
        return new Result(decoys.Screams, 0, signals);
    }

    /// <summary>The guest ends level interrupts without end while the irqfd that hears of it is taken away and put back.</summary>
    internal static Result Resample(int rounds, bool untilScream = false)
    {
        using TestGuest g = new(irqchip: true);
        int client = EventFd.Create(), resample = EventFd.Create();
        bool stop = false;
        Thread guest = new(() =>
        {
            while (!Volatile.Read(ref stop))
                g.Vm.Irqchip!.NotifyAckedGsi(Gsi);
        });
        guest.Start();
        var irqfd = new kvm_irqfd { fd = (uint)client, gsi = Gsi, flags = KVM_IRQFD_FLAG_RESAMPLE, resamplefd = (uint)resample };
        ulong signals = 0, late = 0;
        using Decoys decoys = new();
        for (int i = 0; i < rounds && !(untilScream && decoys.Screams != 0); i++)
        {
            Assert.Equal(0, g.Vm.RegisterIrqfd(irqfd));
            Linger(i, () => EventFd.Drain(resample), ref signals);
            Assert.Equal(0, g.Vm.RegisterIrqfd(irqfd with { flags = KVM_IRQFD_FLAG_DEASSIGN }));
            // An irqfd has two descriptors.
            decoys.Add();
            decoys.Add();
            signals += EventFd.Drain(resample);
            Linger(i);
            late += EventFd.Drain(resample);
        }
        Volatile.Write(ref stop, true);
        guest.Join();
        decoys.Dispose();
        EventFd.Close(client);
        EventFd.Close(resample);
        return new Result(decoys.Screams, late, signals);
    }

    /// <summary>Long enough for the others to be anywhere; sometimes no time at all, sometimes until a signal has come: then the next is on its way.</summary>
    private static void Linger(int round, Func<ulong> take, ref ulong signals)
    {
        Linger(round);
        if ((round & 7) != 1)
            return;
        ulong taken = 0;
        Assert.True(SpinWait.SpinUntil(() => (taken = take()) != 0, 60_000), "no signal");
        signals += taken;
    }

    private static void Linger(int round)
    {
        for (int n = 0; n < 200 && (round & 15) != 0; n++)
            Thread.SpinWait(1);
    }
}
