/* Integer loops. */
#include "guest.h"

static uint64_t sieve(void)
{
	enum { SIZE = 200000, TIMES = 120 };
	static uint8_t composite[SIZE];
	uint64_t sum = 0;
	for (int t = 0; t < TIMES; t++) {
		memset(composite, 0, SIZE);
		for (uint32_t i = 2; i * i < SIZE; i++)
			if (!composite[i])
				for (uint32_t j = i * i; j < SIZE; j += i)
					composite[j] = 1;
		uint32_t primes = 0;
		for (uint32_t i = 2; i < SIZE; i++)
			primes += !composite[i];
		sum = mix(sum, primes);
	}
	return sum;
}

static uint64_t crc(void)
{
	enum { SIZE = 65536, TIMES = 180 };
	static uint8_t data[SIZE];
	static uint32_t table[256];
	uint64_t seed = 1;
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int k = 0; k < 8; k++)
			c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
		table[i] = c;
	}
	for (int i = 0; i < SIZE; i++)
		data[i] = next_random(&seed);
	uint32_t c = ~0u;
	for (int t = 0; t < TIMES; t++)
		for (int i = 0; i < SIZE; i++)
			c = table[(c ^ data[i]) & 0xff] ^ c >> 8;
	return c;
}

static void sort_range(uint32_t *first, uint32_t *last)
{
	while (last - first > 12) {
		uint32_t *i = first, *j = last - 1, pivot = first[(last - first) / 2];
		while (i <= j) {
			while (*i < pivot)
				i++;
			while (*j > pivot)
				j--;
			if (i <= j) {
				uint32_t t = *i;
				*i++ = *j;
				*j-- = t;
			}
		}
		if (j - first < last - i) {
			sort_range(first, j + 1);
			first = i;
		} else {
			sort_range(i, last);
			last = j + 1;
		}
	}
	for (uint32_t *i = first + 1; i < last; i++) {
		uint32_t v = *i, *j = i;
		for (; j > first && j[-1] > v; j--)
			*j = j[-1];
		*j = v;
	}
}

static uint64_t sort(void)
{
	enum { COUNT = 50000, TIMES = 12 };
	static uint32_t values[COUNT];
	uint64_t seed = 7, sum = 0;
	for (int t = 0; t < TIMES; t++) {
		for (int i = 0; i < COUNT; i++)
			values[i] = next_random(&seed);
		sort_range(values, values + COUNT);
		for (int i = 0; i < COUNT; i += 97)
			sum = mix(sum, values[i]);
	}
	return sum;
}

static uint64_t matrix(void)
{
	enum { N = 96, TIMES = 60 };
	static int32_t a[N][N], b[N][N], c[N][N];
	uint64_t seed = 3, sum = 0;
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			a[i][j] = next_random(&seed);
			b[i][j] = next_random(&seed);
		}
	for (int t = 0; t < TIMES; t++) {
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				int32_t s = 0;
				for (int k = 0; k < N; k++)
					s = (int32_t)((uint32_t)s + (uint32_t)a[i][k] * (uint32_t)b[k][j]);
				c[i][j] = s;
			}
		a[t % N][t % 7] = c[t % 5][t % N];
		sum = mix(sum, (uint32_t)c[t % N][t % 11]);
	}
	return sum;
}

struct node { struct node *next; uint64_t value; };

static struct node *merge(struct node *a, struct node *b)
{
	struct node head, *tail = &head;
	while (a && b) {
		struct node **least = a->value <= b->value ? &a : &b;
		tail = tail->next = *least;
		*least = (*least)->next;
	}
	tail->next = a ? a : b;
	return head.next;
}

static struct node *sort_list(struct node *n)
{
	if (!n || !n->next)
		return n;
	struct node *slow = n, *fast = n->next;
	while (fast && fast->next) {
		slow = slow->next;
		fast = fast->next->next;
	}
	struct node *half = slow->next;
	slow->next = NULL;
	n = sort_list(n);
	return merge(n, sort_list(half));
}

static uint64_t list(void)
{
	enum { COUNT = 4000, TIMES = 90 };
	static struct node nodes[COUNT];
	uint64_t seed = 11, sum = 0;
	for (int t = 0; t < TIMES; t++) {
		struct node *n = NULL, *back = NULL;
		for (int i = 0; i < COUNT; i++) {
			nodes[i] = (struct node) { n, next_random(&seed) >> 40 };
			n = &nodes[i];
		}
		n = sort_list(n);
		while (n) {
			struct node *next = n->next;
			n->next = back;
			back = n;
			n = next;
		}
		for (n = back; n; n = n->next)
			sum = sum * 31 + n->value;
	}
	return sum;
}

static uint64_t mul64(void)
{
	enum { TIMES = 4500000 };
	const uint64_t p = 0xffffffffffffffc5;
	uint64_t x = 0x123456789abcdef, y = 88172645463325252;
	for (int i = 0; i < TIMES; i++) {
		unsigned __int128 m = (unsigned __int128)x * (y | 1);
		uint64_t low = m, high = m >> 64;
		/* 2^64 is 59 modulo p. */
		m = (unsigned __int128)high * 59 + low;
		low = m;
		uint64_t carry = (uint64_t)(m >> 64) * 59;
		low += carry;
		if (low < carry || low >= p)
			low -= p;
		x = low + 1;
		y = mix(y, x >> 7);
	}
	return mix(x, y);
}

/* Additions with carry over many words. */
static uint64_t bignum(void)
{
	enum { WORDS = 64, TIMES = 700000 };
	static uint64_t a[WORDS], b[WORDS];
	uint64_t seed = 5, sum = 0;
	for (int i = 0; i < WORDS; i++) {
		a[i] = next_random(&seed);
		b[i] = next_random(&seed);
	}
	for (int t = 0; t < TIMES; t++) {
		uint64_t *x = t & 1 ? a : b, *y = t & 1 ? b : a, value, left = WORDS;
		asm volatile("clc\n"
			"1: mov (%1), %3\n"
			"adc %3, (%0)\n"
			"lea 8(%0), %0\n"
			"lea 8(%1), %1\n"
			"dec %2\n"
			"jnz 1b\n"
			: "+r"(x), "+r"(y), "+r"(left), "=&r"(value) : : "memory", "cc");
		if ((t & 1023) == 0)
			sum = mix(sum, a[t >> 10 & (WORDS - 1)]);
	}
	return sum;
}

static uint64_t bits(void)
{
	enum { TIMES = 6000000 };
	uint64_t seed = 9, sum = 0;
	for (int i = 0; i < TIMES; i++) {
		uint64_t x = next_random(&seed), v = x;
		v -= v >> 1 & 0x5555555555555555;
		v = (v & 0x3333333333333333) + (v >> 2 & 0x3333333333333333);
		v = ((v + (v >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56;
		unsigned lowest = __builtin_ctzll(x | 1ull << 63), highest = __builtin_clzll(x | 1);
		sum += v + (x << highest | x >> lowest);
		sum = sum << (x & 63) | sum >> (-x & 63);
		if (x & 1ull << (sum & 63))
			sum ^= __builtin_bswap64(x);
	}
	return sum;
}

const struct program int_programs[] = {
	{ "sieve", sieve }, { "crc", crc }, { "sort", sort }, { "matrix", matrix }, { "list", list }, { "mul64", mul64 }, { "bignum", bignum }, { "bits", bits }, { 0 },
};
