/*
 * Helper inside QEMU guests, linked statically.
 *   tool out PORT VALUE     writes a byte to an I/O port
 *   tool memory MIB         keeps rewriting MIB of memory, each page with a pattern of its own; checks each page before it is rewritten
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>

enum { WORDS = 4096 / 8 };

static uint64_t mix(uint64_t x)
{
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9u;
}

static void fill(uint64_t *page, uint64_t number, uint64_t generation)
{
    uint64_t x = mix(number << 32 | generation);
    for (int i = 0; i < WORDS; i++)
        page[i] = x + (uint64_t)i * 0x100000001b3u;
}

static int holds(const uint64_t *page, uint64_t number, uint64_t generation)
{
    uint64_t x = mix(number << 32 | generation);
    for (int i = 0; i < WORDS; i++)
        if (page[i] != x + (uint64_t)i * 0x100000001b3u)
            return 0;
    return 1;
}

static int memory(uint64_t mib)
{
    uint64_t pages = mib * 256, step = 0;
    uint64_t *base = mmap(0, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *generation = calloc(pages, sizeof *generation);
    if (base == MAP_FAILED || !generation)
        return 2;
    for (uint64_t n = 0; n < pages; n++)
        fill(base + n * WORDS, n, 0);
    for (uint64_t round = 1;; round++) {
        for (uint64_t i = 0; i < pages; i++) {
            uint64_t n = mix(++step) % pages;
            if (!holds(base + n * WORDS, n, generation[n])) {
                printf("memory: page %llu is BROKEN in round %llu\n", (unsigned long long)n, (unsigned long long)round);
                return 1;
            }
            fill(base + n * WORDS, n, ++generation[n]);
        }
        printf("memory: round %llu is good\n", (unsigned long long)round);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "out")) {
        if (iopl(3))
            return 2;
        outb((unsigned char)strtoul(argv[3], 0, 0), (unsigned short)strtoul(argv[2], 0, 0));
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "memory"))
        return memory(strtoul(argv[2], 0, 0));
    return 2;
}
