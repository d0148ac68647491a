/*
 * Requests, kicks and waiting between one vCPU and the threads that want something of it: docs/requests.md, src/Ring3.Kvm/Requests/VcpuRequests.cs.
 *
 * Memory: sequentially consistent, except that the vCPU's store to its mode may linger in a store buffer until a fence or until the hardware drains it (x86-TSO). That is the one reordering the entry protocol has to survive.
 *
 * Two requesters each make one waiting TLB-flush request and then reuse the memory. A third party makes a plain request that must be handled at last, also by a halted vCPU.
 *
 * Variants, each the historical bug that the protocol exists to avoid; spin must find an error in all of them:
 *   -DNO_FENCE      the vCPU looks at its requests before its mode is visible: a request is lost (store buffering).
 *   -DKICK_IS_SYNC  a waiter that finds ExitingGuestMode trusts the kick of another and returns: the guest still runs.
 *   -DNO_RECHECK    the vCPU declares itself blocked after it has tested for work: a wake-up is lost.
 */
mtype = { Outside, In, Exiting };

mtype mode = Outside;         /* what others see */
mtype buffered = Outside;     /* the vCPU's own view */
bool pending_store = false;

byte flush_bits = 0;          /* one request bit: TLB flush */
bool event_bit = false;       /* one request bit: event */
bool poll_word = false;       /* the kick */
byte exit_seq = 0;
bool blocked = false;
byte wake_seq = 0;

bool stale[2];                /* the guest may still use translation i */
bool reused[2];               /* requester i has given the memory away */
bool handled = false;         /* the event */
byte requesters = 3;
byte leaves = 0;              /* exits that nobody asked for: bounded, to keep the model finite */
#define MAX_LEAVES 1

inline set_mode(m) { buffered = m; pending_store = true }
inline fence() { atomic { if :: pending_store -> mode = buffered; pending_store = false :: else fi } }

/* The hardware drains the buffer whenever it likes. */
proctype Drain() {
end:
    do
    :: atomic { pending_store -> mode = buffered; pending_store = false }
    od
}

inline handle_requests() {
    atomic { if :: flush_bits > 0 -> flush_bits = 0; stale[0] = false; stale[1] = false :: else fi }
    atomic { if :: event_bit -> event_bit = false; handled = true :: else fi }
}

/* Leaving has no fence: whoever sees the sequence also sees the mode, because stores drain in order. What a later drain means for others is in requests-modes.pml. */
inline leave() {
    set_mode(Outside);
    fence();
    exit_seq++
}

proctype Vcpu() {
    byte token;
    do
    :: requesters == 0 && handled -> break
    :: requesters == 0 && !handled && !event_bit -> assert(false) /* the event is lost */
    :: !(requesters == 0 && !event_bit) ->
        handle_requests();
        /* Enter. */
        poll_word = false;
        set_mode(In);
#ifndef NO_FENCE
        fence();
#endif
        if
        :: flush_bits > 0 || event_bit -> leave()
        :: else ->
            /* In the guest: it uses whatever it has translations for, until it polls a kick or leaves of itself. */
            do
            :: poll_word -> break
            :: !poll_word ->
                atomic { assert(!(stale[0] && reused[0])); assert(!(stale[1] && reused[1])) };
                if :: leaves < MAX_LEAVES -> leaves++; break :: poll_word || requesters == 0 fi
            od;
            leave();
            /* It halts until somebody makes an event. */
            if
            :: skip
            :: leaves < MAX_LEAVES -> leaves++;
#ifdef NO_RECHECK
                if
                :: event_bit || handled -> skip
                :: else -> token = wake_seq; blocked = true; wake_seq != token; blocked = false
                fi
#else
                token = wake_seq;
                blocked = true;
                if
                :: event_bit || handled -> skip
                :: else -> wake_seq != token
                fi;
                blocked = false
#endif
            fi
        fi
    od
}

inline kick_if_in(seen) {
    atomic {
        seen = mode;
        if
        :: mode == In -> mode = Exiting   /* a store of the vCPU that is still buffered lands on top */
        :: else
        fi
    }
}

proctype Flusher(byte me) {
    mtype seen;
    byte seq;
    stale[me] = true;
    /* The translation is gone from the tables; now from the processor. */
    atomic { flush_bits = 1 };
    seq = exit_seq;
    kick_if_in(seen);
    if
    :: seen == In -> poll_word = true; exit_seq != seq
    :: seen == Exiting ->
#ifndef KICK_IS_SYNC
        poll_word = true; exit_seq != seq
#else
        skip
#endif
    :: else
    fi;
    reused[me] = true;
    requesters--
}

proctype Notifier() {
    mtype seen;
    event_bit = true;
    if
    :: blocked -> wake_seq++
    :: else ->
        kick_if_in(seen);
        if :: seen == In -> poll_word = true :: else fi
    fi;
    requesters--
}

init {
    atomic { run Vcpu(); run Drain(); run Flusher(0); run Flusher(1); run Notifier() }
}
