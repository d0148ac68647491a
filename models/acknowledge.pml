/*
 * Waiting for an acknowledgement whose sender pays no fence: VcpuRequests.LeaveGuestMode and WaitForExit; FutexMutex.Exit and EnterSlow have the same shape. docs/requests.md.
 *
 * Memory: the sender's store goes through a store buffer (x86-TSO). The waiter's process-wide barrier (membarrier) empties the buffers of all threads. The futex compares its word and sleeps in one step.
 *
 * Variants, in which spin must find an error (the waiter sleeps for ever):
 *   -DNO_BARRIER      the waiter counts itself, with a fence of its own only: the sender's look at the waiters passes its own store.
 *   -DLOOKS_FIRST     the waiter looks at the sequence, then counts itself.
 *   -DSLEEPS_BLINDLY  the waiter's sleep does not compare the word.
 */
bool sequence = false, buffered = false;
byte waiters = 0;
bool asleep[2];

proctype Drain() {
end:
    do
    :: atomic { buffered -> buffered = false; sequence = true }
    od
}

inline barrier() { atomic { if :: buffered -> buffered = false; sequence = true :: else fi } }

proctype Sender() {
    buffered = true;
    if
    :: waiters != 0 -> barrier(); atomic { asleep[0] = false; asleep[1] = false } /* a system call orders */
    :: else
    fi
}

proctype Waiter(byte me) {
#ifdef LOOKS_FIRST
    if :: sequence -> goto done :: else fi;
#endif
    waiters++;
#ifndef NO_BARRIER
    barrier();
#endif
#ifdef LOOKS_FIRST
    asleep[me] = true;
    !asleep[me];
    goto done;
#endif
    do
    :: sequence -> break
    :: !sequence ->
#ifdef SLEEPS_BLINDLY
        asleep[me] = true;
#else
        atomic { if :: !sequence -> asleep[me] = true :: else fi };
#endif
        !asleep[me]
    od;
done:
    waiters--
}

init {
    atomic { run Sender(); run Drain(); run Waiter(0); run Waiter(1) }
}
