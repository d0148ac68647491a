// A guest's program with a connection to port 5000 of the host. It says on the console when it has one, how that ends, and what another one brings.
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORT = 5000 };

static void say(const char *text)
{
    int fd = open("/dev/ttyS0", O_WRONLY | O_NOCTTY);
    if (fd >= 0 && write(fd, text, strlen(text)) >= 0)
        close(fd);
}

static int dial(void)
{
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = PORT };
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    return fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0 ? fd : -1;
}

int main(void)
{
    char line[256], data[64];
    int fd = dial();
    if (fd < 0) {
        snprintf(line, sizeof line, "no connection: %s\n", strerror(errno));
        say(line);
        return 1;
    }
    say("is-connected\n");
    ssize_t n = read(fd, data, sizeof data);
    snprintf(line, sizeof line, "the first has ended: %s\n", n < 0 ? strerror(errno) : n == 0 ? "in order" : "it has not");
    say(line);
    fd = dial();
    n = fd >= 0 && write(fd, "hello", 5) == 5 ? read(fd, data, sizeof data) : -1;
    snprintf(line, sizeof line, "the second says %.*s\n", n < 0 ? 0 : (int)n, data);
    say(line);
    return 0;
}
