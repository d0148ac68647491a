/*
 * The Accessed bit of an entry that points to a table, as aging uses it to skip the table: docs/aging.md, src/Ring3.Mmu/Formats/YoungScan.cs, src/Ring3.Cpu/Paging/NestedWalk.cs.
 *
 * One table with two leaves. A walk sets A in the table's entry, then in the leaf. A pass that finds A clear in the table's entry skips the table; else it clears that bit and then looks at the leaves.
 *
 * What is claimed: a walk that is not under way at a moment when a pass makes its first change is reported by the pass it falls into, or by the next one. One that is under way may be missed: that information may be lost.
 *
 * Variants; spin must find an error in all of them:
 *   -DCLEAR_LAST      the table's bit is cleared after the leaves: an access in between is skipped by the next pass.
 *   -DCLEAR_PARTIAL   a pass over the first leaf alone clears the table's bit: the second leaf is skipped by the next pass.
 *   -DNO_TABLE_BIT    a processor that sets A in leaves only (as radix trees have it), with a pass that skips all the same.
 */
bool table_a = true;
bool leaf_a[2];
byte passes = 0;              /* passes that have begun to change entries */
bool missable[2];             /* the walk was under way when a pass began */
bool reported[2];

proctype Walk(byte leaf) {
    byte began;
    began = passes;
#ifndef NO_TABLE_BIT
    if :: !table_a -> table_a = true :: else fi;
#endif
    atomic { leaf_a[leaf] = true; missable[leaf] = (began != passes) }
}

inline look(i) {
    atomic { if :: leaf_a[i] -> leaf_a[i] = false; reported[i] = true :: else fi }
}

inline pass(whole) {
    if
    :: !table_a -> passes++
    :: else ->
#ifdef CLEAR_LAST
        passes++;
        look(0);
        if :: whole -> look(1); table_a = false :: else fi
#else
#ifdef CLEAR_PARTIAL
        atomic { table_a = false; passes++ };
#else
        if :: whole -> atomic { table_a = false; passes++ } :: else -> passes++ fi;
#endif
        look(0);
        if :: whole -> look(1) :: else fi
#endif
    fi
}

init {
    atomic { run Walk(0); run Walk(1) };
    /* A pass over all, one over the first leaf, one over all. Then the walks end, and one more pass must have seen both. */
    pass(true);
    pass(false);
    pass(true);
    _nr_pr == 1;
    pass(true);
    assert((reported[0] || missable[0]) && (reported[1] || missable[1]))
}
