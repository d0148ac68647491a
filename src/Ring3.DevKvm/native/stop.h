/*
 * The launchers' end: one line that says what is wrong, and the status. For programs that have not become the client's yet.
 */
#ifndef RING3_STOP_H
#define RING3_STOP_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static _Noreturn void stop(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
static _Noreturn void stop(int status, const char *format, ...)
{
	va_list arguments;

	fputs("ring3: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(status);
}

#endif
