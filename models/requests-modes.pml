/*
 * Modes and masks: a vCPU that is in the guest or reads tables outside it, a TLB flush that concerns all modes, a request for "has been outside guest mode" that sets no bit and concerns In and Exiting, and a plain notice.
 * docs/requests.md, src/Ring3.Kvm/Requests/VcpuRequests.cs.
 *
 * Memory: the vCPU's stores to its poll word, its mode and its exit sequence go through a store buffer (x86-TSO); a fence waits until it is empty. Leaving has no fence.
 *
 * The flusher unlinks a table, makes a waiting request and frees the table. The outsider changes what the guest works with, makes its request and gives the old version away. Neither may be in use then.
 *
 * Variants, in which spin must find an error:
 *   -DMASK_WITHOUT_READING  the flush does not concern ReadingShadowPageTables: the reader meets the freed table.
 *   -DMASK_WITHOUT_EXITING  the outsider trusts a kick that somebody else has sent: the guest still runs with the old version.
 *   -DREADS_WITHOUT_MODE    the reader does not declare itself.
 *   -DREADS_WITHOUT_FENCE   the reader looks at its requests before its mode is visible.
 *   -DSEQUENCE_AFTER_MODE   the requester notes the exit sequence after it has looked at the mode: the vCPU has left and come back in between, and is waited for although nothing makes it leave again.
 */
mtype = { Outside, In, Exiting, Reading };
mtype = { PollWord, Mode, Sequence };

mtype mode = Outside;
byte poll_word = 0, exit_seq = 0;
byte flush_bit = 0, event_bit = 0;
chan buffer = [4] of { mtype, byte };

byte version = 1;             /* what the guest works with, read on entry */
bool released = false;        /* version 1 was given away */
bool unlinked = false;        /* the table cannot be found any more */
bool cached = true;           /* the vCPU's own pointer to it, dropped by a flush */
bool freed = false;
byte requesters = 3;
#define MAX_STAYS 2

/* The hardware drains the buffer whenever it likes. */
proctype Drain() {
    mtype what;
    byte value;
end:
    do
    :: atomic { buffer?what,value ->
        if
        :: what == PollWord -> poll_word = value
        :: what == Mode -> mode = value
        :: what == Sequence -> exit_seq = value
        fi }
    od
}

inline fence() { empty(buffer) }

inline leave() {
    buffer!Mode,Outside;
    seq++;
    buffer!Sequence,seq
}

proctype Vcpu() {
    byte seq = 0, mine, stays = 0;
    bool kicked;
    do
    :: stays == MAX_STAYS -> break
    :: stays < MAX_STAYS ->
        stays++;
        atomic { if :: flush_bit -> flush_bit = 0; cached = false :: else fi };
        event_bit = 0;
        if
        :: /* The guest. */
            buffer!PollWord,0;
            buffer!Mode,In;
            fence();
            if
            :: flush_bit || event_bit -> skip
            :: else ->
                mine = version;
                do
                :: poll_word -> break
                :: else ->
                    atomic { assert(!(mine == 1 && released)); assert(!(cached && freed)) };
                    /* It may also leave of itself. */
                    if :: break :: skip fi;
                    if :: poll_word || requesters == 0 -> break fi
                od
            fi;
            leave()
        :: skip; /* A walk of the tables outside the guest. */
#ifndef READS_WITHOUT_MODE
            buffer!Mode,Reading;
#ifndef READS_WITHOUT_FENCE
            fence();
#endif
#endif
            if
            :: flush_bit -> skip
            :: else ->
                if
                :: cached || !unlinked -> skip; assert(!freed)
                :: else
                fi
            fi;
            leave()
        fi
    od
}

/* Sees the mode; moves In to Exiting. */
inline take_mode(seen) {
    atomic { seen = mode; if :: mode == In -> mode = Exiting :: else fi }
}

proctype Flusher() {
    mtype seen;
    byte noted;
    unlinked = true;
    flush_bit = 1;
    noted = exit_seq;
    take_mode(seen);
    if
    :: seen == In -> poll_word = 1; exit_seq != noted
    :: seen == Exiting -> poll_word = 1; exit_seq != noted
    :: seen == Reading ->
#ifndef MASK_WITHOUT_READING
        exit_seq != noted
#else
        skip
#endif
    :: else
    fi;
    freed = true;
    requesters--
}

proctype Outsider() {
    mtype seen;
    byte noted;
    version = 2;
#ifdef SEQUENCE_AFTER_MODE
    take_mode(seen);
    if :: seen == In -> poll_word = 1 :: else fi;
    noted = exit_seq;
#else
    noted = exit_seq;
    take_mode(seen);
    if :: seen == In -> poll_word = 1 :: else fi;
#endif
    if
    :: seen == In -> exit_seq != noted
    :: seen == Exiting ->
#ifndef MASK_WITHOUT_EXITING
        poll_word = 1; exit_seq != noted
#else
        skip
#endif
    :: else /* not concerned: outside, or a reader of tables */
    fi;
    released = true;
    requesters--
}

proctype Notifier() {
    mtype seen;
    event_bit = 1;
    take_mode(seen);
    if :: seen == In -> poll_word = 1 :: else fi;
    requesters--
}

init {
    atomic { run Vcpu(); run Drain(); run Flusher(); run Outsider(); run Notifier() }
}
