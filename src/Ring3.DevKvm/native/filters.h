/*
 * What a seccomp filter says of a system call, without installing it.
 */
#ifndef RING3_FILTERS_H
#define RING3_FILTERS_H

#include <linux/filter.h>
#include <stdbool.h>

/* Whether one of the calls that the core makes in a client's thread is refused. */
bool filter_confines(const struct sock_filter *program, unsigned length);
/* Whether paths can be looked at (paths.c). */
bool filter_hides_paths(const struct sock_filter *program, unsigned length);
/* Whether cpuid.c cannot let the instruction through for a moment. */
bool filter_refuses_cpuid(const struct sock_filter *program, unsigned length);

#endif
