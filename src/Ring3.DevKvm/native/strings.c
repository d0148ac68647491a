/*
 * Linked into libring3-core.so: its own memory routines.
 *
 * Invariant: what the core calls is what the core was built with. A client may define these names for itself (KVM's selftests do, byte by
 * byte), and the dynamic linker would give the client's to the core. Hidden, so that nobody else gets these.
 */
#include <stddef.h>
#include <stdint.h>

void *memset(void *at, int value, size_t length)
{
	void *to = at;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
	return at;
}

void *memcpy(void *restrict at, const void *restrict from, size_t length)
{
	void *to = at;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
	return at;
}

int memcmp(const void *left, const void *right, size_t length)
{
	const uint8_t *l = left, *r = right;

	for (; length >= sizeof(uint64_t); length -= sizeof(uint64_t), l += sizeof(uint64_t), r += sizeof(uint64_t)) {
		uint64_t a, b;

		__builtin_memcpy(&a, l, sizeof a);
		__builtin_memcpy(&b, r, sizeof b);
		if (a != b)
			break;
	}
	for (; length; length--, l++, r++) {
		if (*l != *r)
			return *l - *r;
	}
	return 0;
}
