/*
 * A VM changes its tables from a radix tree to a hashed table and to a new tree, while lockless aging and a processor use what the partition-table entry names: docs/aging.md, src/Ring3.Mmu.Power/PowerMmu.cs.
 *
 * The entry is one word {radix, table}. The switch makes a table ready, stores the word with release, waits until the processor has left (flush), waits for a grace period, and frees the old table. Aging loads the word once, in a
 * read section. Memory order is modelled by writing out what a processor may do: a missing release lets the stores change places, a missing acquire lets the loads.
 *
 * What must not happen: anybody uses a table that is not ready, or one that has been freed.
 *
 * Variants; spin must find an error in all of them:
 *   -DNO_RELEASE    the word may become visible before the contents of the new table.
 *   -DTWO_WORDS     mode and table are two variables and the mode is published first.
 *   -DNO_ACQUIRE    two variables, published in the right order, but the reader may load the table before the mode.
 *   -DNO_GRACE      the tree is freed without a grace period.
 *   -DNO_FLUSH      the tree is freed while a processor may be inside a walk.
 */
#if defined(TWO_WORDS) || defined(NO_ACQUIRE)
#define APART
#endif

bool radix = true;            /* with APART two variables, else always changed in one step */
byte root = 0;
bool ready[2];
bool freed[2];
bool in_section = false;
byte sections = 0;            /* read sections begun */
bool in_walk = false;

inline use(t) { assert(ready[t] && !freed[t]) }

proctype Ager() {
    byte n = 0, t;
    bool r;
    do
    :: n < 3 ->
        n++;
        atomic { in_section = true; sections++ };
#ifdef APART
        if
#ifdef NO_ACQUIRE
        :: t = root; r = radix
#endif
        :: r = radix; t = root
        fi;
#else
        atomic { r = radix; t = root };
#endif
        if
        :: r -> use(t); use(t)
        :: else        /* not handled: the locked path */
        fi;
        in_section = false
    :: else -> break
    od
}

proctype Processor() {
    byte n = 0, t;
    bool r;
    do
    :: n < 3 ->
        n++;
        /* The walk begins with the whole entry, whatever software has. */
        atomic { in_walk = true; r = radix; t = root };
#ifndef APART
        if :: r -> use(t); use(t) :: else fi;
#endif
        in_walk = false
    :: else -> break
    od
}

proctype Switch() {
    byte seen;
    /* To hash. The old root stays in the word; it means nothing there. */
    radix = false;
#ifndef NO_FLUSH
    !in_walk;
#endif
#ifndef NO_GRACE
    /* Sections that were open now have ended; younger ones see the new word. */
    seen = sections;
    !in_section || sections != seen;
#endif
    freed[0] = true;
    /* To radix. */
#if defined(TWO_WORDS)
    radix = true;
    ready[1] = true;
    root = 1
#elif defined(NO_ACQUIRE)
    ready[1] = true;
    root = 1;
    radix = true
#elif defined(NO_RELEASE)
    if
    :: ready[1] = true; atomic { radix = true; root = 1 }
    :: atomic { radix = true; root = 1 }; ready[1] = true
    fi
#else
    ready[1] = true;
    atomic { radix = true; root = 1 }
#endif
}

init { ready[0] = true; atomic { run Ager(); run Processor(); run Switch() } }
