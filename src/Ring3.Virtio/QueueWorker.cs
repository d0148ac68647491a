namespace Ring3.Virtio;

/// <summary>The thread of a queue: sleeps on the doorbell, and serves chains one after the other.</summary>
internal sealed class QueueWorker
{
    private readonly VirtioTransport _transport;
    private readonly VirtQueue _queue;
    private readonly int _index;
    private readonly Thread _thread;
    private bool _stop;

    public QueueWorker(VirtioTransport transport, VirtioDevice device, int index)
    {
        (_transport, _index, _queue) = (transport, index, device.Queues[index]);
        _thread = new Thread(Run) { IsBackground = true, Name = $"ring3-{device.Name}.{index}" };
        _thread.Start();
    }

    /// <summary>Ends the thread; waits for the request that it serves.</summary>
    public void Stop()
    {
        Volatile.Write(ref _stop, true);
        _queue.Doorbell.WakeAll();
        _thread.Join();
    }

    private void Run()
    {
        try
        {
            while (true)
            {
                // Before the look at what to do: who rings afterwards changes it.
                int ticket = _queue.Doorbell.Ticket;
                if (Volatile.Read(ref _stop))
                    return;
                if (!_transport.TryServe(_index, ref _stop))
                    _queue.Doorbell.Wait(ticket);
            }
        }
        catch (Exception e)
        {
            _transport.Fail(e);
        }
    }
}
