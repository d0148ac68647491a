// Measures a disk and a stream socket, in a guest or on the host. Lines: result NAME VALUE.
//   io read FILE MIB         MiB/s of reads of 1 MiB one behind the other, four at a time, past the page cache
//   io random FILE SECONDS   reads of 4 KiB a second at random places: 32 at a time, and one after the other
//   io serve PORT            serves one connection after the other: 'r' gets MIB MiB, 's' takes them and answers with a byte
//   io net HOST PORT MIB     MiB/s received from such a server, and sent to it
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LARGE = 1 << 20, SMALL = 4096, MOST = 32 };

static void fail(const char *what)
{
    fprintf(stderr, "io: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t random_number(void)
{
    static uint64_t x = 88172645463325252;
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

// Reads blocks of a size, so many at a time, until count blocks are read or the time is over; how many a second.
static double reads(int fd, uint64_t blocks, size_t size, int depth, uint64_t count, double seconds, int random)
{
    static char *buffers;
    if (!buffers && posix_memalign((void **)&buffers, SMALL, (size_t)LARGE * 4))
        fail("memory");
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, MOST, &context) != 0)
        fail("io_setup");
    struct iocb requests[MOST], *free_ones[MOST];
    struct io_event events[MOST];
    int idle = depth;
    for (int i = 0; i < depth; i++)
        free_ones[i] = &requests[i];
    uint64_t asked = 0, done = 0;
    double start = now(), end = start;
    while (done < count) {
        int over = end - start > seconds;
        if (over && idle == depth)
            break;
        int n = 0;
        struct iocb *batch[MOST];
        while (!over && idle > 0 && asked < count) {
            struct iocb *r = free_ones[--idle];
            memset(r, 0, sizeof *r);
            r->aio_fildes = (uint32_t)fd;
            r->aio_lio_opcode = IOCB_CMD_PREAD;
            r->aio_buf = (uintptr_t)(buffers + (size_t)(r - requests) * size);
            r->aio_nbytes = size;
            r->aio_offset = (int64_t)((random ? random_number() : asked) % blocks * size);
            r->aio_data = (uintptr_t)r;
            batch[n++] = r;
            asked++;
        }
        for (int at = 0; at < n;) {
            long r = syscall(SYS_io_submit, context, n - at, batch + at);
            if (r <= 0)
                fail("io_submit");
            at += (int)r;
        }
        long got = syscall(SYS_io_getevents, context, 1, MOST, events, NULL);
        if (got < 0)
            fail("io_getevents");
        for (long i = 0; i < got; i++) {
            if (events[i].res != (int64_t)size) {
                errno = events[i].res < 0 ? (int)-events[i].res : EIO;
                fail("read");
            }
            free_ones[idle++] = (struct iocb *)(uintptr_t)events[i].data;
        }
        done += (uint64_t)got;
        end = now();
    }
    syscall(SYS_io_destroy, context);
    return (double)done / (end - start);
}

static uint64_t disk(const char *path, int *fd)
{
    *fd = open(path, O_RDONLY | O_DIRECT);
    if (*fd < 0)
        fail(path);
    int64_t bytes = lseek(*fd, 0, SEEK_END);
    if (bytes < LARGE)
        fail(path);
    return (uint64_t)bytes;
}

static void all(int fd, char *data, size_t bytes, int sending)
{
    while (bytes != 0) {
        ssize_t n = sending ? send(fd, data, bytes, MSG_NOSIGNAL) : recv(fd, data, bytes, 0);
        if (n <= 0)
            fail(sending ? "send" : "receive");
        data += n;
        bytes -= (size_t)n;
    }
}

// Moves MiB in blocks; the receiver answers when it has all of them.
static void move(int fd, long mib, int sending)
{
    static char block[LARGE];
    memset(block, 'x', sizeof block);
    for (long i = 0; i < mib; i++)
        all(fd, block, sizeof block, sending);
    all(fd, block, 1, !sending);
}

static void serve(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 4) != 0
        || getsockname(listener, (struct sockaddr *)&address, &length) != 0)
        fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            fail("accept");
        if (fork() == 0) {
            char words[5];
            all(fd, words, sizeof words, 0);
            uint32_t mib;
            memcpy(&mib, words + 1, sizeof mib);
            move(fd, (long)mib, words[0] == 'r');
            exit(0);
        }
        close(fd);
    }
}

static double talk(const char *host, int port, long mib, char what)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect");
    char words[5] = { what };
    uint32_t count = (uint32_t)mib;
    memcpy(words + 1, &count, sizeof count);
    double start = now();
    all(fd, words, sizeof words, 1);
    move(fd, mib, what == 's');
    double took = now() - start;
    close(fd);
    return (double)mib / took;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int fd;
    if (strcmp(what, "read") == 0 && argc == 4) {
        uint64_t bytes = disk(argv[2], &fd);
        printf("result read_mb_s %.1f\n", reads(fd, bytes / LARGE, LARGE, 4, strtoul(argv[3], NULL, 10), 60, 0) * LARGE / 1e6);
    } else if (strcmp(what, "random") == 0 && argc == 4) {
        uint64_t bytes = disk(argv[2], &fd);
        double seconds = strtod(argv[3], NULL);
        printf("result iops %.0f\n", reads(fd, bytes / SMALL, SMALL, MOST, UINT64_MAX, seconds, 1));
        printf("result iops_one %.0f\n", reads(fd, bytes / SMALL, SMALL, 1, UINT64_MAX, seconds, 1));
    } else if (strcmp(what, "serve") == 0 && argc == 3) {
        serve(atoi(argv[2]));
    } else if (strcmp(what, "net") == 0 && argc == 5) {
        printf("result receive_mb_s %.1f\n", talk(argv[2], atoi(argv[3]), strtol(argv[4], NULL, 10), 'r') * LARGE / 1e6);
        printf("result send_mb_s %.1f\n", talk(argv[2], atoi(argv[3]), strtol(argv[4], NULL, 10), 's') * LARGE / 1e6);
    } else {
        fprintf(stderr, "usage: io read FILE MIB | random FILE SECONDS | serve PORT | net HOST PORT MIB\n");
        return 2;
    }
    return 0;
}
