/*
 * One leaf entry of the two-dimensional MMU between the processor's walk, lockless aging, a zap and a fault: docs/locking.md, src/Ring3.Mmu/TdpMmu.Age.cs, TdpMmu.SetSpte.cs, TdpMmu.Fault.cs, src/Ring3.Cpu/Paging/NestedWalk.cs.
 *
 * The entry: present, the page it maps (0 or 1), Accessed, Dirty. The processor sets A and D, the ager clears A, the zapper takes the entry away and gives page 0 back to its owner, the fault installs page 1.
 * Every one of them changes the entry by compare-exchange of the value it has read; the zapper exchanges. The table page is freed after a grace period.
 *
 * Young information may be lost. What may not: a Dirty bit (a page that was written is reported clean), a mapping (the entry comes back after a zap), an access to a freed table.
 *
 * Variants; spin must find an error in all of them:
 *   -DPLAIN_CLEAR   the ager writes back what it read, without comparing: it undoes a zap, or loses D.
 *   -DPLAIN_SET     the processor sets A and D without comparing: the same from the other side.
 *   -DNO_RCU        the ager's read section is missing: it writes into a freed table.
 */
#define P  1
#define G  2     /* page 1 instead of page 0 */
#define A  4
#define D  8

byte spte = P;
bool linked = true;           /* the table is part of the tree */
bool freed = false;           /* its memory has another owner */
byte readers = 0;             /* RCU: read sections that may have seen the table linked */
bool page_given_back = false; /* page 0 belongs to somebody else */
bool written = false;         /* the processor has written to page 0 through the entry */
bool reported_dirty = false;
bool flushed = false;
byte cached = 0;              /* the processor's translation: an entry value, or 0 */
bool zap_done = false;

proctype Processor() {
    byte old, new;
    byte n = 0;
    do
    :: n < 3 ->
        n++;
        /* A write. A walk is atomic with respect to the freeing of tables: the flush request waits for it. */
        atomic {
            if
            :: cached & D -> old = cached
            :: else ->
                if
                :: linked -> assert(!freed); old = spte
                :: else -> old = 0
                fi
            fi
        };
        if
        :: (old & P) && !(cached & D) ->
#ifdef PLAIN_SET
            atomic { spte = old | A | D; cached = old | A | D };
#else
            atomic { if :: spte == old -> spte = old | A | D; cached = old | A | D :: else -> old = 0 fi };
#endif
        :: else
        fi;
        atomic {
            if
            :: (cached & P) && !(cached & G) -> assert(!page_given_back); written = true
            :: else
            fi
        }
    :: else -> break
    od
}

proctype Ager() {
    byte old;
#ifndef NO_RCU
    atomic { if :: linked -> readers++ :: else -> goto out fi };
#else
    atomic { if :: linked -> skip :: else -> goto out fi };
#endif
    assert(!freed);
    old = spte;
    if
    :: (old & P) && (old & A) ->
        assert(!freed);
#ifdef PLAIN_CLEAR
        spte = old & ~A
#else
        atomic { if :: spte == old -> spte = old & ~A :: else fi }
#endif
    :: else
    fi;
#ifndef NO_RCU
    readers--;
#endif
out: skip
}

proctype Zapper() {
    byte old;
    atomic { old = spte; spte = 0 };
    /* The flush: the processor drops its translation before the page goes. */
    atomic { cached = 0; flushed = true };
    if :: old & D -> reported_dirty = true :: else fi;
    assert(!written || reported_dirty);
    page_given_back = true;
    assert(!(spte & P) || (spte & G));
    zap_done = true;
    /* A fault maps the new page. */
    atomic { if :: spte == 0 -> spte = P | G :: else fi };
    assert((spte & G) && (spte & P));
    /* And later the whole table goes: unlinked, flushed, grace period, freed. */
    linked = false;
    cached = 0;
    readers == 0;
    freed = true
}

init { atomic { run Processor(); run Ager(); run Zapper() } }
