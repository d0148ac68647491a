/* Memory: fresh pages, latency, bandwidth. */
#include "guest.h"
#include <emmintrin.h>
#include <sys/mman.h>

static uint64_t page_init(void)
{
	enum { BYTES = 16 << 20, TIMES = 4 };
	uint64_t sum = 0;
	for (int t = 0; t < TIMES; t++) {
		uint64_t *p = pages(BYTES);
		for (size_t i = 0; i < BYTES / 8; i += 512)
			for (int k = 0; k < 64; k++)
				p[i + k] = i + k + t;
		for (size_t i = 0; i < BYTES / 8; i += 512)
			sum = mix(sum, p[i + (i >> 9 & 63)]);
		munmap(p, BYTES);
	}
	return sum;
}

/* A random cycle through all lines of some memory. */
static uint64_t chase(size_t bytes, int steps)
{
	enum { LINE = 64 };
	uint32_t count = bytes / LINE;
	char *memory = pages(bytes);
	uint32_t *order = pages(count * 4);
	uint64_t seed = 29;
	for (uint32_t i = 0; i < count; i++)
		order[i] = i;
	for (uint32_t i = count - 1; i > 0; i--) {
		uint32_t j = next_random(&seed) % i, t = order[i];
		order[i] = order[j];
		order[j] = t;
	}
	for (uint32_t i = 0; i < count; i++)
		*(void **)(memory + (size_t)order[i] * LINE) = memory + (size_t)order[(i + 1) % count] * LINE;
	void **p = (void **)memory;
	for (int i = 0; i < steps; i++)
		p = *p;
	return (char *)p - memory;
}

static uint64_t chase_in(void) { return chase(256 << 10, 6000000); }

static uint64_t chase_out(void) { return chase(32 << 20, 300000); }

/* 16 bytes at a time, lengths from 64 bytes to 16 KiB. */
static uint64_t copy(void)
{
	enum { BYTES = 1 << 20 };
	char *from = pages(BYTES), *to = pages(BYTES);
	uint64_t seed = 31, sum = 0;
	for (int i = 0; i < BYTES; i++)
		from[i] = next_random(&seed);
	for (int t = 0; t < 200000; t++) {
		uint64_t r = next_random(&seed);
		size_t length = 64u << (r & 7), at = (r >> 8) % (BYTES - 32768), dest = (r >> 32) % (BYTES - 32768);
		length += r >> 56;
		char *const end = to + dest + length;
		const char *s = from + at;
		for (char *d = to + dest; d < end; d += 32, s += 32) {
			__m128i x = _mm_loadu_si128((const __m128i *)s), y = _mm_loadu_si128((const __m128i *)(s + 16));
			_mm_storeu_si128((__m128i *)d, x);
			_mm_storeu_si128((__m128i *)(d + 16), y);
		}
		sum += to[dest + length / 2];
	}
	for (int i = 0; i < BYTES; i += 61)
		sum = mix(sum, (unsigned char)to[i]);
	return sum;
}

/* a = b + s * c over more than any cache. */
static uint64_t triad(void)
{
	enum { COUNT = 1 << 20, TIMES = 12 };
	double *a = pages(COUNT * 8), *b = pages(COUNT * 8), *c = pages(COUNT * 8);
	uint64_t sum = 0;
	for (int i = 0; i < COUNT; i++) {
		b[i] = i * 0.5;
		c[i] = i & 1023;
	}
	for (int t = 0; t < TIMES; t++) {
		for (int i = 0; i < COUNT; i++)
			a[i] = b[i] + 3.0 * c[i];
		double *swap = a;
		a = b;
		b = swap;
	}
	for (int i = 0; i < COUNT; i += 997)
		sum = mix_double(sum, b[i]);
	return sum;
}

/* Read, modify, write at random. */
static uint64_t scatter(void)
{
	enum { COUNT = 4 << 20, TIMES = 3000000 };
	uint32_t *p = pages(COUNT * 4);
	uint64_t seed = 37, sum = 0;
	for (int i = 0; i < TIMES; i++) {
		uint64_t r = next_random(&seed);
		p[r % COUNT] += (uint32_t)(r >> 32);
	}
	for (int i = 0; i < COUNT; i += 7)
		sum += p[i];
	return sum;
}

/* Sums of bytes, words and structures with a stride. */
static uint64_t strides(void)
{
	enum { BYTES = 1 << 20, TIMES = 40 };
	uint8_t *p = pages(BYTES);
	uint64_t seed = 41, sum = 0;
	for (int i = 0; i < BYTES; i++)
		p[i] = next_random(&seed);
	for (int t = 0; t < TIMES; t++) {
		for (int i = 0; i < BYTES; i++)
			sum += (int8_t)p[i];
		for (int i = 0; i < BYTES - 8; i += 3) {
			uint16_t v;
			memcpy(&v, p + i, 2);
			sum ^= (uint64_t)v << (i & 31);
		}
		for (int column = 0; column < 4096; column += 512)
			for (int i = column; i < BYTES; i += 4096)
				sum = sum * 3 + p[i]++;
	}
	return sum;
}

const struct program mem_programs[] = {
	{ "page_init", page_init }, { "chase_in", chase_in }, { "chase_out", chase_out }, { "copy", copy }, { "triad", triad }, { "scatter", scatter }, { "strides", strides }, { 0 },
};
