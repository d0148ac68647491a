/*
 * Event channels of a Xen guest: two senders, the vCPU's shadow of evtchn_pending_sel, its merge before an entry, and the guest's handler. docs/xen.md, src/Ring3.Xen/XenVcpu.cs.
 *
 * A sender sets its port's pending bit, then the selector bit: in the guest's vcpu_info when that can be reached without waiting, else in the shadow; only the one who changes the bit tells the vCPU. The page comes and goes at any
 * time. The vCPU's thread moves the shadow to the guest before it enters; it may have to wait for the page, and the write may fail after all. The guest clears the upcall flag, takes the selector, and serves the ports it names.
 *
 * Memory: sequentially consistent; every step that is one process step here is one locked instruction or one aligned access there. Two ports share one selector bit (same word), a third has its own.
 *
 * Variants, each a mistake that the order of the merge exists to avoid; spin must find an error in all of them:
 *   -DCLEAR_FIRST    the shadow is taken before the guest's word is written: a write that fails loses its bits.
 *   -DCLEAR_ALL      the shadow is set to zero after the write: bits added meanwhile are lost.
 *   -DPLAIN_OR       the guest's selector is read and written back without a lock: a sender's bit in between is lost.
 *   -DFLAG_FIRST     the sender sets the upcall flag before the selector: the guest consumes the flag, finds nothing, and the selector stays unseen.
 *   -DNO_RECHECK     the vCPU sleeps without looking at the shadow after it has declared itself blocked.
 */
#define PORTS 3
#define SEL(p) (p == 2 -> 2 : 1)

bool pending[PORTS];          /* shared info */
bool served[PORTS];
byte sel = 0;                 /* vcpu_info: evtchn_pending_sel */
bool upcall = false;          /* vcpu_info: evtchn_upcall_pending */
byte shadow = 0;
bool present = true;          /* the page of vcpu_info can be reached without waiting */
byte flips = 0;
bool request = false;         /* KVM_REQ_UNBLOCK */
bool blocked = false;
bool woken = false;
byte senders = PORTS;
bool finished = false;

inline notify() {
    request = true;
    atomic { if :: blocked -> woken = true :: else fi }
}

/* The page is invalidated and translated again, twice at most. A holder of the cache's lock keeps it: the steps under the lock are atomic with the check. */
proctype Page() {
end:
    do
    :: atomic { flips < 2 && present -> present = false; flips++ }
    :: atomic { !present -> present = true }
    od
}

proctype Sender(byte p) {
    bool newly = false;
    bool reached = false;
    pending[p] = true;
    /* under the read lock: the page stays while it is used */
    atomic {
        if
        :: present ->
            reached = true;
#ifdef FLAG_FIRST
            upcall = true
#else
            newly = (sel & SEL(p)) == 0; sel = sel | SEL(p)
#endif
        :: else
        fi
    }
    if
    :: reached ->
#ifdef FLAG_FIRST
        atomic { newly = (sel & SEL(p)) == 0; sel = sel | SEL(p) }
#else
        if :: newly -> upcall = true :: else fi
#endif
    :: else ->
        atomic { newly = (shadow & SEL(p)) == 0; shadow = shadow | SEL(p) }
    fi;
    if :: newly -> notify() :: else fi;
    senders--
}

inline merge() {
    bits = shadow;
    if
    :: bits != 0 ->
#ifdef CLEAR_FIRST
        atomic { shadow = shadow & (7 - bits) };
#endif
        wrote = false;
#ifdef PLAIN_OR
        atomic { if :: present -> old = sel; wrote = true :: else fi };
        if :: wrote -> sel = old | bits; upcall = true :: else fi;
#else
        atomic { if :: present -> sel = sel | bits; wrote = true :: else fi };
        if :: wrote -> upcall = true :: else fi;
#endif
#ifndef CLEAR_FIRST
#ifdef CLEAR_ALL
        if :: wrote -> shadow = 0 :: else fi
#else
        if :: wrote -> atomic { shadow = shadow & (7 - bits) } :: else fi
#endif
#else
        skip
#endif
    :: else
    fi
}

inline guest() {
    do
    :: upcall ->
        upcall = false;
        atomic { taken = sel; sel = 0 };
        i = 0;
        do
        :: i < PORTS ->
            atomic { if :: (taken & SEL(i)) != 0 && pending[i] -> pending[i] = false; served[i] = true :: else fi };
            i++
        :: else -> break
        od
    :: else -> break
    od
}

proctype Vcpu() {
    byte bits, old, taken, i;
    bool wrote;
    do
    :: served[0] && served[1] && served[2] -> finished = true; break
    :: else ->
        request = false;
        merge();
        guest();
        /* HLT: declare, then look, then sleep */
#ifdef NO_RECHECK
        if
        :: shadow == 0 && !upcall && !request -> blocked = true; goto asleep
        :: else
        fi
#else
        blocked = true;
        if
        :: shadow == 0 && !upcall && !request ->
            goto asleep
        :: else -> blocked = false
        fi
#endif
        goto awake;
asleep:
        if
        :: woken
        :: senders == 0 && !woken ->
            /* nobody will come any more: everything must have been served */
            assert(served[0] && served[1] && served[2]); finished = true; goto finish
        fi;
awake:
        atomic { blocked = false; woken = false }
    od;
finish:
    skip
}

init {
    atomic {
        run Page();
        run Sender(0);
        run Sender(1);
        run Sender(2);
        run Vcpu()
    }
}
