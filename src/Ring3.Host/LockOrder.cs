using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Ring3.Host;

/// <summary>
/// Whether each thread takes its locks in the order of <see cref="LockRank"/>. Tests switch it on; elsewhere <see cref="IsChecked"/> is a constant for the
/// compiler and nothing of it is left.
/// </summary>
/// <remarks>Says before it waits what would be wrong, so an order that could deadlock is found by the first run that takes it, on one thread.</remarks>
public static class LockOrder
{
    private const string Switch = "Ring3.CheckLockOrder";

    private readonly record struct Held(LockRank Rank, object? Lock, bool Write);

    [ThreadStatic] private static List<Held>? t_held;
    [ThreadStatic] private static int t_sections;

    /// <summary>Locks are checked in this process.</summary>
    [FeatureSwitchDefinition(Switch)]
    public static bool IsChecked { get; } = AppContext.TryGetSwitch(Switch, out bool on) && on;

    /// <summary>The thread is about to wait for a lock.</summary>
    /// <param name="wanted">The lock, where it is an object.</param>
    /// <param name="recursive">Who has it already does not wait.</param>
    /// <exception cref="LockOrderException">It may not.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Entering(LockRank rank, object? wanted = null, bool recursive = false)
    {
        if (IsChecked)
            Check(rank, wanted, recursive);
    }

    /// <summary>The thread tries to get a lock without waiting, which it may under any other.</summary>
    /// <exception cref="LockOrderException">It has it already.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Trying(LockRank rank, object wanted)
    {
        if (IsChecked && IsHeld(wanted, null))
            throw new LockOrderException($"{rank} is tried by the thread that has it");
    }

    /// <summary>The thread has a lock now.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Entered(LockRank rank, object? held = null, bool write = true)
    {
        if (IsChecked)
            (t_held ??= new(16)).Add(new Held(rank, held, write));
    }

    /// <summary>The thread gives the lock back.</summary>
    /// <exception cref="LockOrderException">It has none of this rank.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Exiting(LockRank rank, object? held = null, bool write = true)
    {
        if (IsChecked)
            Remove(new Held(rank, held, write));
    }

    /// <summary>The thread must have the lock.</summary>
    /// <param name="write">For writing, for reading, or in either way.</param>
    /// <exception cref="LockOrderException">It has not.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AssertHeld(LockRank rank, object held, bool? write = null)
    {
        if (IsChecked && !IsHeld(held, write))
            throw new LockOrderException($"{rank} must be held{(write is { } w ? w ? " for writing" : " for reading" : "")}");
    }

    /// <summary>An outermost read section of RCU begins (1) or ends (-1).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Section(int change)
    {
        if (IsChecked)
            t_sections += change;
    }

    /// <summary>The thread is about to wait for all read sections, or for the worker.</summary>
    /// <exception cref="LockOrderException">It has a lock that may be waited for in a section, or is in one.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void WaitingForReaders()
    {
        if (IsChecked)
            CheckWait();
    }

    /// <summary>The thread must be in a read section.</summary>
    /// <exception cref="LockOrderException">It is not.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AssertInSection()
    {
        if (IsChecked && t_sections == 0)
            throw new LockOrderException("the caller must be in a read section");
    }

    private static bool IsHeld(object wanted, bool? write)
    {
        if (t_held is { } held)
            foreach (Held h in held)
                if (h.Lock == wanted && (write is null || h.Write == write))
                    return true;
        return false;
    }

    private static void Check(LockRank rank, object? wanted, bool recursive)
    {
        if (rank == LockRank.None)
            throw new LockOrderException("a lock without a rank");
        if (t_sections != 0 && rank < LockRank.ReadSection)
            throw new LockOrderException($"{rank} is waited for in a read section, for whose end its holders may wait");
        if (t_held is not { Count: > 0 } held)
            return;
        foreach (Held h in held)
        {
            if (wanted is null || h.Lock != wanted)
                continue;
            if (!recursive)
                throw new LockOrderException($"{rank} is waited for by the thread that has it");
            return;
        }
        foreach (Held h in held)
        {
            if (h.Rank >= rank)
                throw new LockOrderException($"{rank} is waited for under {h.Rank}");
        }
    }

    private static void CheckWait()
    {
        if (t_sections != 0)
            throw new LockOrderException("a grace period is waited for in a read section");
        if (t_held is not { } held)
            return;
        foreach (Held h in held)
        {
            if (h.Rank > LockRank.ReadSection)
                throw new LockOrderException($"a grace period is waited for under {h.Rank}");
        }
    }

    private static void Remove(Held entry)
    {
        int i = t_held is { } held ? held.LastIndexOf(entry) : -1;
        if (i < 0)
            throw new LockOrderException($"{entry.Rank} is released by a thread that does not have it");
        t_held!.RemoveAt(i);
    }
}

/// <summary>A thread takes locks in an order that could deadlock, or does without the lock what needs it.</summary>
public sealed class LockOrderException(string message) : InvalidOperationException(message);
