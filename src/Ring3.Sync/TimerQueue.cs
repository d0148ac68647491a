namespace Ring3.Sync;

/// <summary>
/// Binary heap of armed timers, earliest first. Not thread-safe: its owner locks. Grows, never shrinks; arming allocates nothing once it is large
/// enough.
/// </summary>
public sealed class TimerQueue
{
    private HostTimer[] _heap = new HostTimer[16];
    private int _count;

    public int Count => _count;

    /// <summary>The earliest deadline, or <see cref="long.MaxValue"/>.</summary>
    public long NextDeadlineNs => _count == 0 ? long.MaxValue : _heap[0].DeadlineNs;

    /// <summary>Adds the timer or moves it to the new deadline.</summary>
    public void Arm(HostTimer timer, long deadlineNs)
    {
        timer.DeadlineNs = deadlineNs;
        if (timer.HeapIndex < 0)
        {
            if (_count == _heap.Length)
                Array.Resize(ref _heap, _count * 2);
            Place(timer, _count++);
        }
        SiftUp(timer.HeapIndex);
        SiftDown(timer.HeapIndex);
    }

    /// <summary>Removes the timer; false if it was not armed.</summary>
    public bool Cancel(HostTimer timer)
    {
        int i = timer.HeapIndex;
        if (i < 0)
            return false;
        timer.HeapIndex = -1;
        HostTimer last = _heap[--_count];
        _heap[_count] = null!;
        if (i == _count)
            return true;
        Place(last, i);
        SiftUp(i);
        SiftDown(last.HeapIndex);
        return true;
    }

    /// <summary>Takes the earliest timer if its deadline is not after <paramref name="nowNs"/>.</summary>
    public HostTimer? PopExpired(long nowNs)
    {
        if (_count == 0 || _heap[0].DeadlineNs > nowNs)
            return null;
        HostTimer timer = _heap[0];
        _ = Cancel(timer);
        return timer;
    }

    /// <summary>Takes any armed timer; null when there is none.</summary>
    public HostTimer? PopAny() => PopExpired(long.MaxValue);

    private void Place(HostTimer timer, int i)
    {
        _heap[i] = timer;
        timer.HeapIndex = i;
    }

    private void SiftUp(int i)
    {
        HostTimer timer = _heap[i];
        while (i > 0 && _heap[(i - 1) / 2].DeadlineNs > timer.DeadlineNs)
        {
            Place(_heap[(i - 1) / 2], i);
            i = (i - 1) / 2;
        }
        Place(timer, i);
    }

    private void SiftDown(int i)
    {
        HostTimer timer = _heap[i];
        for (int child; (child = 2 * i + 1) < _count; i = child)
        {
            if (child + 1 < _count && _heap[child + 1].DeadlineNs < _heap[child].DeadlineNs)
                child++;
            if (_heap[child].DeadlineNs >= timer.DeadlineNs)
                break;
            Place(_heap[child], i);
        }
        Place(timer, i);
    }
}
