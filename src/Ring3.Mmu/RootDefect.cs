namespace Ring3.Mmu;

/// <summary>The mistakes of this protocol's history, for the controls of its tests: each test must fail with the defect it is about. Looked at in cold paths only.</summary>
internal enum RootDefect
{
    None,
    /// <summary>An already invalid root is scheduled again: one zap, and one reference that nobody drops.</summary>
    QueueTwice,
    /// <summary>The zap is scheduled after mmu_lock has been released.</summary>
    QueueAfterUnlock,
    /// <summary>The zapper drops its reference before it zaps: notifiers do not find a root that still maps.</summary>
    PutBeforeZap,
    /// <summary>"Zap all fast" returns without waiting for roots that it skipped.</summary>
    IgnoreSkipped,
    /// <summary>Teardown looks at the lists before it has flushed the queue.</summary>
    CheckBeforeFlush,
    /// <summary>Leaves are dropped without a look at what tracks them.</summary>
    DropState,
}
