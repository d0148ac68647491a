/*
 * ring3-direct PROGRAM NAME [ARGS...]: becomes PROGRAM with Ring3 as its /dev/kvm, where no library can stand in front of it. See direct.h.
 */
#include <stdint.h>

_Noreturn void r3_direct_main(int argc, char **argv, char **environment, uintptr_t own_code);

int main(int argc, char **argv, char **environment)
{
	r3_direct_main(argc, argv, environment, (uintptr_t)main);
}
