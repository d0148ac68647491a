using Ring3.Abi;

namespace Ring3.Xen;

/// <summary>Bindings by send port. Lookups take no lock; changes are serialised by the caller.</summary>
internal sealed class PortTable
{
    private const int PageShift = 10;
    private readonly PortBinding?[]?[] _pages = new PortBinding?[]?[XenAbi.Fifo.Ports >> PageShift];

    public PortBinding? Find(uint port)
    {
        if (port >= XenAbi.Fifo.Ports)
            return null;
        PortBinding?[]? page = Volatile.Read(ref _pages[port >> PageShift]);
        return page is null ? null : Volatile.Read(ref page[port & ((1 << PageShift) - 1)]);
    }

    /// <summary>Publishes a binding, or null for none. The port is below <see cref="XenAbi.Fifo.Ports"/>.</summary>
    public void Set(uint port, PortBinding? binding)
    {
        ref PortBinding?[]? page = ref _pages[port >> PageShift];
        if (page is null)
        {
            if (binding is null)
                return;
            Volatile.Write(ref page, new PortBinding?[1 << PageShift]);
        }
        Volatile.Write(ref page[port & ((1 << PageShift) - 1)], binding);
    }

    /// <summary>Removes and returns all bindings.</summary>
    public List<PortBinding> Clear()
    {
        var removed = new List<PortBinding>();
        for (int p = 0; p < _pages.Length; p++)
        {
            if (_pages[p] is not { } page)
                continue;
            foreach (PortBinding? b in page)
                if (b is not null)
                    removed.Add(b);
            Volatile.Write(ref _pages[p], null);
        }
        return removed;
    }
}
