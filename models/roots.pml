/*
 * Roots of the two-dimensional MMU: references, invalidation, the zap worker, "zap all fast" and the notifier: docs/tdp-mmu.md, src/Ring3.Mmu/TdpMmu.Roots.cs and TdpMmu.ZapRoots.cs.
 *
 * One root that maps one page, one vCPU that uses it, two threads that invalidate all roots (two slot deletions), one host unmapping (notifier), one worker. References: one of the vCPU, one of the MMU until invalidation.
 * mmu_lock is modelled as a plain lock: everything that the protocol does under it, in either mode, it does in one hold.
 *
 * Variants; spin must find an error in all of them:
 *   -DQUEUE_TWICE     an already invalid root is queued again: a reference is dropped twice.
 *   -DQUEUE_LATE      the zap is queued after mmu_lock was released: whoever takes the lock meets an invalid root that nobody is going to zap.
 *   -DSKIP_UNWAITED   "zap all fast" does not wait for a root that it skipped because another thread has made it invalid.
 *   -DPUT_FIRST       the zapper drops its reference before it has zapped: the notifier no longer finds a root that maps.
 *   -DCHECK_FIRST     teardown looks at the lists before it has flushed the queue.
 *   -DPUT_ZAPS        the thread that drops the last reference zaps in place: the vCPU does the work, however long it takes.
 */
bool lock = false;
int references = 2;
bool invalid = false;
bool mmu_reference = true;
bool listed = true;           /* reachable by notifiers */
bool mapped = true;           /* the root maps the page */
byte queued = 0;
byte zapping = 0;
bool zapped = false;          /* "zap all fast" waits for this, whoever zaps */
bool vcpu_has_root = true;
bool obsolete_request = false;
bool in_guest = false;
bool vcpu_zapped = false;

#define ENTER atomic { !lock -> lock = true }
#define LEAVE lock = false
/* True whenever mmu_lock can be taken: an invalid root has its zap. */
#define HAS_ITS_ZAP (!invalid || queued > 0 || zapping > 0 || zapped)

inline queue_zap() { queued++ }

/* Caller holds mmu_lock. */
inline put_root(by_vcpu) {
    references--;
    assert(references >= 0);
    if
    :: references == 0 ->
        if
        :: mapped && !invalid ->
            /* The last put of a root that maps: it becomes invalid, and its zap owns a new reference. */
            references = 1; invalid = true;
#ifdef PUT_ZAPS
            if :: by_vcpu -> vcpu_zapped = true :: else fi;
            mapped = false; zapped = true; references = 0; listed = false
#else
            queue_zap()
#endif
        :: mapped && invalid ->
#ifdef PUT_ZAPS
            if :: by_vcpu -> vcpu_zapped = true :: else fi;
            mapped = false; zapped = true; listed = false
#else
            listed = false   /* only a put that comes before its zap gets here */
#endif
        :: else -> listed = false
        fi
    :: else
    fi
}

proctype Vcpu() {
    byte rounds = 0;
    do
    :: rounds < 3 ->
        rounds++;
        if
        :: obsolete_request ->
            obsolete_request = false;
            if
            :: vcpu_has_root && invalid -> ENTER; vcpu_has_root = false; put_root(true); LEAVE
            :: else
            fi
        :: else
        fi;
        atomic { if :: vcpu_has_root && !obsolete_request -> in_guest = true :: else fi };
        in_guest = false
    :: else -> break
    od;
    if
    :: vcpu_has_root -> ENTER; vcpu_has_root = false; put_root(true); LEAVE
    :: else
    fi
}

/* A slot is deleted: on return no vCPU reaches the page through a root that existed at the call, and all of them are zapped. */
proctype Invalidator() {
    bool mine = false, obsolete = false;
    ENTER;
    obsolete = listed;
    if
#ifdef QUEUE_TWICE
    :: listed ->
#else
    :: listed && !invalid ->
#endif
        if
        :: mmu_reference -> mmu_reference = false    /* the zap inherits it */
        :: !mmu_reference && !invalid -> references++  /* the MMU let go before: the zap gets one of its own */
        :: else                                      /* queued again: nobody gives this zap a reference */
        fi;
        invalid = true;
        mine = true;
#ifndef QUEUE_LATE
        queue_zap()
#endif
    :: else
    fi;
    obsolete_request = true;
    !in_guest;           /* the request waits */
    assert(HAS_ITS_ZAP);
    LEAVE;
#ifdef QUEUE_LATE
    if :: mine -> queue_zap() :: else fi;
#endif
#ifdef SKIP_UNWAITED
    obsolete = mine;
#endif
    (!obsolete || zapped);   /* every root that was there is waited for, also one that was skipped */
    assert(!mapped)
}

proctype Worker() {
end:
    do
    :: atomic { queued > 0 -> queued--; zapping++ };
        ENTER;
#ifdef PUT_FIRST
        put_root(false);
        LEAVE; ENTER;    /* it yields */
        mapped = false;
        zapped = true;
#else
        assert(listed);
        LEAVE; ENTER;    /* it yields before it gets to the page */
        mapped = false;
        zapped = true;
        put_root(false);
#endif
        LEAVE;
        zapping--
    od
}

/* Memory pressure: the MMU lets go of a root before anybody invalidates it. */
proctype Trim() {
    ENTER;
    if
    :: mmu_reference && listed && !invalid -> mmu_reference = false; put_root(false)
    :: else
    fi;
    LEAVE
}

/* The host takes the page away: when the call returns nothing may map it. */
proctype Notifier() {
    ENTER;
    if :: listed -> mapped = false :: else fi;
    assert(!mapped);
    LEAVE
}

init {
    atomic { run Worker(); run Vcpu(); run Invalidator(); run Invalidator(); run Notifier(); run Trim() };
    /* Teardown: everything has ended, the queue is flushed, nothing is left behind. */
    (_nr_pr == 2);
#ifndef CHECK_FIRST
    (queued == 0 && zapping == 0);
#endif
    assert(references == 0 && !listed && !mapped && !mmu_reference);
    assert(!vcpu_zapped)
}
