/* Branches that are hard to foresee: interpreters, indirect calls, recursion, code that is made while it runs. */
#include "guest.h"
#include <sys/mman.h>

/* Instructions of a small stack machine. */
enum { PUSH, LOAD, STORE, ADD, SUB, MUL, XOR, SHIFT, LESS, JUMP, JUMP_IF, DUP, DROP, HALT };

/* i = 0; do sum = (sum * 31 + (i ^ sum >> 5)) ^ (i < 1000 ? 7 : i); while (++i < limit); and 3 less. */
static const int64_t bytecode[] = {
	PUSH, 0, STORE, 0, PUSH, 1, STORE, 1,
	/* 8 */ LOAD, 1, PUSH, 31, MUL, LOAD, 0, LOAD, 1, PUSH, 5, SHIFT, XOR, ADD,
	/* 22 */ LOAD, 0, PUSH, 1000, LESS, JUMP_IF, 33, LOAD, 0, JUMP, 35,
	/* 33 */ PUSH, 7, /* 35 */ XOR, STORE, 1, LOAD, 0, PUSH, 1, ADD, DUP, STORE, 0,
	/* 46 */ LOAD, 2, LESS, JUMP_IF, 8,
	/* 51 */ LOAD, 1, DUP, DROP, PUSH, 3, SUB, HALT,
};

static uint64_t switched(void)
{
	uint64_t stack[16], *top = stack, variables[4] = { 0, 0, 500000, 0 };
	for (const int64_t *p = bytecode;;)
		switch (*p++) {
		case PUSH: *top++ = *p++; break;
		case LOAD: *top++ = variables[*p++]; break;
		case STORE: variables[*p++] = *--top; break;
		case ADD: top--; top[-1] += *top; break;
		case SUB: top--; top[-1] -= *top; break;
		case MUL: top--; top[-1] *= *top; break;
		case XOR: top--; top[-1] ^= *top; break;
		case SHIFT: top--; top[-1] >>= *top; break;
		case LESS: top--; top[-1] = top[-1] < *top; break;
		case JUMP: p = bytecode + *p; break;
		case JUMP_IF: p = *--top ? bytecode + *p : p + 1; break;
		case DUP: *top = top[-1]; top++; break;
		case DROP: top--; break;
		case HALT: return top[-1];
		default: fail("bytecode");
		}
}

static uint64_t threaded(void)
{
	static void *const labels[] = { &&push, &&load, &&store, &&add, &&sub, &&mul, &&xor, &&shift, &&less, &&jump, &&jump_if, &&dup, &&drop, &&halt };
	uint64_t stack[16], *top = stack, variables[4] = { 0, 0, 700000, 0 };
	const int64_t *p = bytecode;
#define NEXT goto *labels[*p++]
	NEXT;
push: *top++ = *p++; NEXT;
load: *top++ = variables[*p++]; NEXT;
store: variables[*p++] = *--top; NEXT;
add: top--; top[-1] += *top; NEXT;
sub: top--; top[-1] -= *top; NEXT;
mul: top--; top[-1] *= *top; NEXT;
xor: top--; top[-1] ^= *top; NEXT;
shift: top--; top[-1] >>= *top; NEXT;
less: top--; top[-1] = top[-1] < *top; NEXT;
jump: p = bytecode + *p; NEXT;
jump_if: p = *--top ? bytecode + *p : p + 1; NEXT;
dup: *top = top[-1]; top++; NEXT;
drop: top--; NEXT;
halt: return top[-1];
#undef NEXT
}

struct shape { uint64_t (*area)(const struct shape *, uint64_t); uint32_t a, b; };

static uint64_t area_0(const struct shape *s, uint64_t x) { return x + s->a * s->b; }
static uint64_t area_1(const struct shape *s, uint64_t x) { return x ^ s->a * s->a; }
static uint64_t area_2(const struct shape *s, uint64_t x) { return x * 3 + s->b; }
static uint64_t area_3(const struct shape *s, uint64_t x) { return (x >> 3) + (s->a ^ s->b); }
static uint64_t area_4(const struct shape *s, uint64_t x) { return x - s->a; }

static uint64_t indirect(void)
{
	enum { COUNT = 1024 };
	static uint64_t (*const areas[])(const struct shape *, uint64_t) = { area_0, area_1, area_2, area_3, area_4 };
	static struct shape shapes[COUNT];
	uint64_t seed = 71, sum = 0;
	for (int i = 0; i < COUNT; i++) {
		uint64_t r = next_random(&seed);
		shapes[i] = (struct shape) { areas[r % 5], (uint32_t)r >> 8, (uint32_t)(r >> 40) };
	}
	for (int t = 0; t < 6000; t++)
		for (int i = 0; i < COUNT; i++)
			sum = shapes[i].area(&shapes[i], sum);
	return sum;
}

static __attribute__((noinline, optimize("no-optimize-sibling-calls", "no-inline"))) uint32_t fibonacci(uint32_t n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

static __attribute__((noinline)) uint32_t ackermann(uint32_t m, uint32_t n)
{
	return m == 0 ? n + 1 : ackermann(m - 1, n == 0 ? 1 : ackermann(m, n - 1));
}

static uint64_t recursion(void)
{
	return mix(fibonacci(34), ackermann(2, 900));
}

/* An expression's tree, evaluated by recursion through its nodes' functions. */
struct term { int64_t (*value)(const struct term *, int64_t); const struct term *left, *right; int64_t constant; };

static int64_t value_constant(const struct term *t, int64_t x) { (void)x; return t->constant; }
static int64_t value_x(const struct term *t, int64_t x) { (void)t; return x; }
static int64_t value_add(const struct term *t, int64_t x) { return (int64_t)((uint64_t)t->left->value(t->left, x) + (uint64_t)t->right->value(t->right, x)); }
static int64_t value_mul(const struct term *t, int64_t x) { return (int64_t)((uint64_t)t->left->value(t->left, x) * (uint64_t)t->right->value(t->right, x)); }
static int64_t value_if(const struct term *t, int64_t x) { return t->left->value(t->left, x) & 4 ? t->right->value(t->right, x) : x; }

static uint64_t tree(void)
{
	enum { COUNT = 255 };
	static struct term terms[COUNT];
	uint64_t seed = 73, sum = 0;
	for (int i = COUNT - 1; i >= 0; i--) {
		uint64_t r = next_random(&seed);
		if (2 * i + 2 < COUNT)
			terms[i] = (struct term) { r % 5 == 0 ? value_if : r % 5 < 3 ? value_add : value_mul, &terms[2 * i + 1], &terms[2 * i + 2], 0 };
		else
			terms[i] = (struct term) { r & 1 ? value_x : value_constant, NULL, NULL, (int64_t)(r >> 50) };
	}
	for (int x = 0; x < 200000; x++)
		sum = mix(sum, terms[0].value(&terms[0], x));
	return sum;
}

/* Code of a function is written, called some thousand times, and written anew. */
static uint64_t self_modifying(void)
{
	enum { STEPS = 24 };
	uint8_t *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t seed = 79, x = 1;
	if (code == MAP_FAILED)
		fail("mmap");
	for (int t = 0; t < 800; t++) {
		uint8_t *p = code + t % 8 * 256;
		uint64_t (*function)(uint64_t) = (uint64_t (*)(uint64_t))(uintptr_t)p;
		/* mov rax, rdi ; add rax, 1 */
		p = mempcpy(p, "\x48\x89\xf8\x48\x83\xc0\x01", 7);
		for (int i = 0; i < STEPS; i++) {
			uint64_t r = next_random(&seed);
			uint32_t immediate = r >> 32;
			switch (r & 3) {
			case 0: /* add rax, imm32 */ p = mempcpy(p, "\x48\x05", 2); break;
			case 1: /* xor rax, imm32 */ p = mempcpy(p, "\x48\x35", 2); break;
			case 2: /* imul rax, rax, imm32 */ p = mempcpy(p, "\x48\x69\xc0", 3); immediate |= 1; break;
			default: /* rol rax, 9 ; sub rax, imm32 */ p = mempcpy(p, "\x48\xc1\xc0\x09\x48\x2d", 6); break;
			}
			p = mempcpy(p, &immediate, 4);
		}
		*p = 0xc3;
		for (int i = 0; i < 2500; i++)
			x = function(x);
		/* And the addition's operand, of code that has just run. */
		code[t % 8 * 256 + 6] = t;
		x += function(x);
	}
	return x;
}

const struct program interp_programs[] = {
	{ "switch", switched }, { "threaded", threaded }, { "indirect", indirect }, { "recursion", recursion }, { "tree", tree }, { "self_modifying", self_modifying }, { 0 },
};
