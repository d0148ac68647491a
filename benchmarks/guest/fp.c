/* Floating point: SSE2 scalar and packed, x87. */
#include "guest.h"
#include <emmintrin.h>
#include <math.h>

static double root(double x)
{
	double y;
	asm("sqrtsd %1, %0" : "=x"(y) : "x"(x));
	return y;
}

static uint64_t nbody(void)
{
	enum { BODIES = 5, STEPS = 500000 };
	static double body[BODIES][7] = {
		{ 0, 0, 0, 0, 0, 0, 39.5 }, { 4.8, -1.2, -0.1, 0.6, 2.8, -0.02, 0.037 }, { 8.3, 4.1, -0.4, -1.0, 1.8, 0.008, 0.011 },
		{ 12.9, -15.1, -0.2, 1.1, 0.9, -0.01, 0.0017 }, { 15.4, -25.9, 0.2, 1.0, 0.6, -0.03, 0.002 },
	};
	for (int s = 0; s < STEPS; s++) {
		for (int i = 0; i < BODIES; i++)
			for (int j = i + 1; j < BODIES; j++) {
				double *a = body[i], *b = body[j], x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2], square = x * x + y * y + z * z;
				double force = 0.001 / (square * root(square));
				a[3] -= x * b[6] * force;
				a[4] -= y * b[6] * force;
				a[5] -= z * b[6] * force;
				b[3] += x * a[6] * force;
				b[4] += y * a[6] * force;
				b[5] += z * a[6] * force;
			}
		for (int i = 0; i < BODIES; i++)
			for (int k = 0; k < 3; k++)
				body[i][k] += 0.001 * body[i][k + 3];
	}
	uint64_t sum = 0;
	for (int i = 0; i < BODIES; i++)
		for (int k = 0; k < 6; k++)
			sum = mix_double(sum, body[i][k]);
	return sum;
}

enum { N = 96 };
static double left[N][N], right[N][N], product[N][N];

static void fill_matrices(void)
{
	uint64_t seed = 17;
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			left[i][j] = (double)(next_random(&seed) >> 40) / (1 << 24);
			right[i][j] = (double)(next_random(&seed) >> 40) / (1 << 24);
		}
}

static uint64_t matrix_sum(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++)
			sum = mix_double(sum, product[i][j]);
	return sum;
}

static uint64_t matmul(void)
{
	fill_matrices();
	for (int t = 0; t < 80; t++) {
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				double s = 0;
				for (int k = 0; k < N; k++)
					s += left[i][k] * right[k][j];
				product[i][j] = s;
			}
		left[t % N][t % N] += product[t % N][t % N] * 0.01;
	}
	return matrix_sum();
}

static uint64_t matmul_packed(void)
{
	fill_matrices();
	for (int t = 0; t < 180; t++) {
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j += 4) {
				__m128d s0 = _mm_setzero_pd(), s1 = s0;
				for (int k = 0; k < N; k++) {
					__m128d a = _mm_set1_pd(left[i][k]);
					s0 = _mm_add_pd(s0, _mm_mul_pd(a, _mm_loadu_pd(&right[k][j])));
					s1 = _mm_add_pd(s1, _mm_mul_pd(a, _mm_loadu_pd(&right[k][j + 2])));
				}
				_mm_storeu_pd(&product[i][j], s0);
				_mm_storeu_pd(&product[i][j + 2], s1);
			}
		left[t % N][t % N] += product[t % N][t % N] * 0.01;
	}
	return matrix_sum();
}

/* Long double is x87: a series, a Horner scheme, FSQRT, FRNDINT. */
static uint64_t x87(void)
{
	long double series = 0, x = 0.7L, y = 1;
	for (int i = 1; i < 1500000; i++) {
		series += (i & 1 ? 1.0L : -1.0L) / (2 * i - 1);
		long double p = ((((x * 0.00139L - 0.0417L) * x + 0.5L) * x - 1.25L) * x + 3.5L) * x + 0.125L;
		long double r;
		asm("fsqrt" : "=t"(r) : "0"(p * p + y));
		asm("frndint" : "=t"(y) : "0"(r * 16));
		y = y / 16 + (r > 2 ? -0.5L : 0.5L);
		x = x < 1.5L ? x + 0.0001L : 0.3L;
	}
	return mix_double(mix_double(mix_double(0, series), y), x);
}

static uint64_t convert(void)
{
	uint64_t seed = 23, sum = 0;
	float f = 0;
	double d = 0;
	for (int i = 0; i < 2000000; i++) {
		uint64_t r = next_random(&seed);
		d += (double)(int64_t)r * 0x1p-40 + (double)(int32_t)r;
		f = (float)d + (float)(int32_t)(r >> 32) * 0.25f;
		sum += (uint64_t)(int64_t)d ^ (uint32_t)(int32_t)(f * 0x1p-12f);
		if (d > 1e9 || d < -1e9)
			d *= 0x1p-16;
	}
	return mix_double(sum, d + f);
}

static uint64_t mandelbrot(void)
{
	uint64_t sum = 0;
	for (int row = 0; row < 320; row++)
		for (int column = 0; column < 240; column++) {
			double a = column / 80.0 - 2, b = row / 160.0 - 1, x = 0, y = 0;
			int n = 0;
			for (; n < 400; n++) {
				double xx = x * x, yy = y * y;
				if (xx + yy > 4)
					break;
				y = 2 * x * y + b;
				x = xx - yy + a;
			}
			sum = sum * 31 + n;
		}
	return sum;
}

/* Four floats at a time: reciprocals by Newton's method, comparisons, masks, shuffles. */
static uint64_t packed_float(void)
{
	enum { COUNT = 4096, TIMES = 9000 };
	static float v[COUNT] __attribute__((aligned(16)));
	for (int i = 0; i < COUNT; i++)
		v[i] = 1.0f + i * 0.001f;
	__m128 total = _mm_setzero_ps();
	for (int t = 0; t < TIMES; t++) {
		const __m128 more = _mm_set1_ps(0.5f + (t & 15) * 0.03125f);
		for (int i = 0; i < COUNT; i += 4) {
			__m128 x = _mm_load_ps(v + i), y = _mm_div_ps(_mm_set1_ps(1), x), above = _mm_cmpgt_ps(y, _mm_set1_ps(0.5f));
			y = _mm_sub_ps(_mm_add_ps(y, y), _mm_mul_ps(_mm_mul_ps(x, y), y));
			y = _mm_or_ps(_mm_and_ps(above, _mm_sqrt_ps(y)), _mm_andnot_ps(above, y));
			total = _mm_add_ps(_mm_mul_ps(total, _mm_set1_ps(0.999f)), _mm_shuffle_ps(y, x, 0x4e));
			_mm_store_ps(v + i, _mm_add_ps(_mm_mul_ps(x, _mm_set1_ps(0.75f)), _mm_mul_ps(y, more)));
		}
	}
	float out[4];
	_mm_storeu_ps(out, total);
	uint64_t sum = 0;
	for (int i = 0; i < 4; i++)
		sum = mix_double(sum, out[i]);
	for (int i = 0; i < COUNT; i++)
		sum = mix_double(sum, v[i]);
	return sum;
}

const struct program fp_programs[] = {
	{ "nbody", nbody }, { "matmul", matmul }, { "matmul_packed", matmul_packed }, { "x87", x87 }, { "convert", convert }, { "mandelbrot", mandelbrot },
	{ "packed_float", packed_float }, { 0 },
};
