/*
 * Linked into the ring3 command that is compiled ahead of time, for x86-64-v3 (Directory.Build.props). Runs before the runtime, which would end the process with SIGABRT on a lesser processor.
 */
#include <unistd.h>

__attribute__((constructor)) static void check_baseline(void)
{
	static const char message[] = "ring3: this processor does not have AVX2, BMI2 and FMA (x86-64-v3), for which this program is compiled\n";

	__builtin_cpu_init();
	if (__builtin_cpu_supports("x86-64-v3"))
		return;
	if (write(STDERR_FILENO, message, sizeof message - 1) < 0)
		_exit(74);
	_exit(71);
}
