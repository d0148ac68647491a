using System.Diagnostics;

namespace Ring3.Sync;

/// <summary>A sleeping mutex for long critical sections (slots lock). Not recursive. Allocates nothing.</summary>
/// <param name="name">For messages.</param>
/// <param name="anonymous">Does not note its owner: cheaper, and nobody can ask who holds it.</param>
public sealed class FutexMutex(string name, bool anonymous = false)
{
    private const int Free = 0, Held = 1, Contended = 2;
    private readonly FutexWord _state = new();
    private int _owner;

    public string Name { get; } = name;

    /// <summary>Acquires; <c>using (mutex.Enter())</c> releases at the end of the block.</summary>
    public Scope Enter()
    {
        Debug.Assert(!IsHeldByMe, "mutex is not recursive");
        if (Interlocked.CompareExchange(ref _state.Value, Held, Free) != Free)
            EnterSlow();
        NoteOwner();
        return new Scope(this);
    }

    /// <summary>Acquires if nobody holds it.</summary>
    public bool TryEnter()
    {
        if (Interlocked.CompareExchange(ref _state.Value, Held, Free) != Free)
            return false;
        NoteOwner();
        return true;
    }

    public void Exit()
    {
        Debug.Assert(anonymous || IsHeldByMe, "mutex released by a thread that does not hold it");
        if (!anonymous)
            _owner = 0;
        if (Interlocked.Exchange(ref _state.Value, Free) == Contended)
            _state.Wake(1);
    }

    private void NoteOwner()
    {
        if (!anonymous)
            _owner = Environment.CurrentManagedThreadId;
    }

    public bool IsHeldByMe => _owner == Environment.CurrentManagedThreadId;

    [Conditional("DEBUG")]
    public void AssertHeld() => Debug.Assert(IsHeldByMe, $"{Name} must be held");

    private void EnterSlow()
    {
        for (int i = 0; i < 50; i++)
        {
            if (Volatile.Read(ref _state.Value) == Free && Interlocked.CompareExchange(ref _state.Value, Held, Free) == Free)
                return;
            Thread.SpinWait(20);
        }
        while (Interlocked.Exchange(ref _state.Value, Contended) != Free)
            _state.Wait(Contended);
    }

    /// <summary>A held mutex.</summary>
    public readonly ref struct Scope(FutexMutex mutex)
    {
        public void Dispose() => mutex.Exit();
    }
}
