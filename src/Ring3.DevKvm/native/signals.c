#include "ring3.h"
void signals_install(void) {}
void signals_after_runtime(void) {}
void signals_after_fork(void) {}
void signals_deliver(struct thread *self, const kernel_sigset *mask) {(void)self;(void)mask;}
void signals_unblock_runtime(void) {}
void signals_catch_default(kernel_sigset set) {(void)set;}
void signals_cancel(struct thread *self) {(void)self;}
