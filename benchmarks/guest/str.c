/* Strings and hashes. The C library's own choose their code by CPUID, so these are written out: the same instructions everywhere. */
#include "guest.h"
#include <emmintrin.h>

enum { TEXT = 256 << 10 };
static char text[TEXT + 32] __attribute__((aligned(16)));

/* Words of 1 to 80 letters. */
static void fill_text(char separator)
{
	uint64_t seed = 47;
	for (int i = 0; i < TEXT;) {
		uint64_t r = next_random(&seed);
		for (int n = r % 8 ? r >> 8 & 7 : r >> 8 & 63; n >= 0 && i < TEXT; n--)
			text[i++] = 'a' + (r >> n & 15);
		if (i < TEXT)
			text[i++] = separator;
	}
	text[TEXT - 1] = separator;
}

/* First byte of a value; reads whole vectors around it. */
static const char *find(const char *s, char value)
{
	const __m128i all = _mm_set1_epi8(value);
	const char *vector = (const char *)((uintptr_t)s & -16l);
	unsigned found = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_load_si128((const __m128i *)vector), all)) & ~0u << (s - vector);
	while (!found) {
		vector += 16;
		found = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_load_si128((const __m128i *)vector), all));
	}
	return vector + __builtin_ctz(found);
}

static uint64_t length(void)
{
	uint64_t sum = 0;
	fill_text(0);
	for (int t = 0; t < 120; t++)
		for (const char *p = text; p < text + TEXT; p++) {
			const char *end = find(p, 0);
			sum = sum * 31 + (end - p);
			p = end;
		}
	return sum;
}

static uint64_t memchr_(void)
{
	uint64_t sum = 0;
	fill_text('\n');
	for (int t = 0; t < 4000; t++) {
		int at = TEXT - 1 - t % 4096 - (t % 7) * 24 * 1024;
		char kept = text[at];
		text[at] = '@';
		for (const char *p = text + t; p < text + at; p = find(p, '@'))
			sum = mix(sum, find(p, '@') - text);
		text[at] = kept;
	}
	return sum;
}

/* rep movsb of 8 to 32 KiB. */
static uint64_t rep_movs(void)
{
	static char to[TEXT];
	uint64_t seed = 53, sum = 0;
	fill_text(' ');
	for (int t = 0; t < 35000; t++) {
		uint64_t r = next_random(&seed);
		size_t count = 8192 + r % 24577;
		const char *from = text + (r >> 20) % (TEXT - 32769);
		char *dest = to + (r >> 40) % (TEXT - 32769), *d = dest;
		asm volatile("rep movsb" : "+S"(from), "+D"(d), "+c"(count) : : "memory");
		sum += dest[r & 4095];
	}
	for (int i = 0; i < TEXT; i++)
		sum = sum * 31 + to[i];
	return sum;
}

/* rep stosq, repe cmpsb, repne scasb of some hundred bytes. */
static uint64_t rep_short(void)
{
	static char a[4096], b[4096];
	uint64_t seed = 59, sum = 0;
	for (int t = 0; t < 250000; t++) {
		uint64_t r = next_random(&seed);
		size_t words = 8 + r % 56, bytes = words * 8;
		void *d = a, *d2 = b;
		asm volatile("rep stosq" : "+D"(d), "=c"(sum) : "c"(words), "a"(r | 1) : "memory");
		asm volatile("rep stosq" : "+D"(d2), "=c"(sum) : "c"(words), "a"(r | 1) : "memory");
		b[(r >> 20) % bytes] ^= 0x55;
		const char *s = a;
		d = b;
		size_t left = bytes;
		asm volatile("repe cmpsb" : "+S"(s), "+D"(d), "+c"(left) : : "memory", "cc");
		a[bytes - 1] = 0;
		d2 = a;
		size_t rest = 64;
		asm volatile("repne scasb" : "+D"(d2), "+c"(rest) : "a"(0) : "memory", "cc");
		seed = mix(seed, left + rest * 1000) | 1;
	}
	return seed;
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static uint64_t sha256(void)
{
	static uint32_t k[64], state[8];
	/* The constants are the fractions of the cube roots of the first primes, and the start those of the square roots. */
	int n = 0;
	for (int p = 2; n < 64; p++) {
		int prime = 1;
		for (int d = 2; d * d <= p; d++)
			prime &= p % d != 0;
		if (!prime)
			continue;
		/* The largest x whose cube, or square, is at most p shifted by three, or two, times 32 bits. */
		unsigned __int128 x = 0, y = 0;
		for (int bit = 35; bit >= 0; bit--) {
			unsigned __int128 try = x | (unsigned __int128)1 << bit;
			if (try * try * try <= (unsigned __int128)p << 96)
				x = try;
			try = y | (unsigned __int128)1 << bit;
			if (try * try <= (unsigned __int128)p << 64)
				y = try;
		}
		if (n < 8)
			state[n] = y;
		k[n++] = x;
	}
	fill_text(' ');
	for (int t = 0; t < 24; t++)
		for (const unsigned char *block = (unsigned char *)text; block + 64 <= (unsigned char *)text + TEXT; block += 64) {
			uint32_t w[64], s[8];
			for (int i = 0; i < 16; i++)
				w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
			for (int i = 16; i < 64; i++) {
				uint32_t a = w[i - 15], b = w[i - 2];
				w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
			}
			memcpy(s, state, sizeof s);
			for (int i = 0; i < 64; i++) {
				uint32_t e = s[4], a = s[0];
				uint32_t t1 = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
				uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
				for (int j = 7; j > 0; j--)
					s[j] = s[j - 1];
				s[4] += t1;
				s[0] = t1 + t2;
			}
			for (int i = 0; i < 8; i++)
				state[i] += s[i];
		}
	return (uint64_t)state[0] << 32 | state[7];
}

/* A byte at a time: words are folded to capitals, hashed and counted. */
static uint64_t words(void)
{
	static uint32_t counts[4096];
	uint64_t sum = 0;
	fill_text(' ');
	for (int t = 0; t < 70; t++) {
		uint32_t hash = 5381;
		for (const char *p = text; p < text + TEXT; p++) {
			if (*p == ' ') {
				counts[hash & 4095]++;
				hash = 5381;
			} else {
				hash = hash * 33 ^ (*p >= 'a' && *p <= 'z' ? *p - 32 : *p);
			}
		}
	}
	for (int i = 0; i < 4096; i++)
		sum = mix(sum, counts[i]);
	return sum;
}

const struct program str_programs[] = {
	{ "strlen", length }, { "memchr", memchr_ }, { "rep_movs", rep_movs }, { "rep_short", rep_short }, { "sha256", sha256 }, { "words", words }, { 0 },
};
