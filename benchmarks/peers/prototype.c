/* Prototype of a collector without Python, to measure its cost: an epoll loop reads GETs as players send them and writes
 * each as a record with its checksum to a mapped file before it answers. No timeouts, no bodies, no segments, and it
 * trusts its clients. Usage: prototype PORT FILE; SIGTERM truncates the file to the stored records. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "record.h"

enum { ROOM = 512 << 20, BUFFER = 16 << 10, EVENTS = 256, MAX_FD = 1 << 16 };

typedef struct {
    uint32_t address, used;
    uint8_t data[BUFFER];
} connection;

static connection *connections[MAX_FD];
static volatile sig_atomic_t stopping;

static void stop(int number) { (void)number; stopping = 1; }

static void check(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static int is_header(const uint8_t *line, const uint8_t *colon, const char *name, size_t length) {
    return (size_t)(colon - line) == length && strncasecmp((const char *)line, name, length) == 0;
}

/* Finds the fields of a request whose head is [p, end). Returns 0 when it is no GET of /collect. */
static int parse(const uint8_t *p, const uint8_t *end, span fields[FIELD_COUNT]) {
    static const char start[] = "GET /collect?";
    memset(fields, 0, sizeof(span) * FIELD_COUNT);
    const uint8_t *line_end = memchr(p, '\r', (size_t)(end - p));
    if (!line_end || line_end - p < 13 + 9 || memcmp(p, start, 13)) return 0;
    fields[FIELD_METHOD - 1] = (span){p, 3};
    fields[FIELD_PATH - 1] = (span){p + 4, 8};
    fields[FIELD_QUERY - 1] = (span){p + 13, (uint32_t)(line_end - 9 - (p + 13))};
    for (p = line_end + 2; p < end && (line_end = memchr(p, '\r', (size_t)(end - p))); p = line_end + 2) {
        const uint8_t *colon = memchr(p, ':', (size_t)(line_end - p));
        if (!colon || line_end - colon < 2) continue;
        span value = {colon + 2, (uint32_t)(line_end - colon - 2)};
        if (is_header(p, colon, "User-Agent", 10)) fields[FIELD_USER_AGENT - 1] = value;
        else if (is_header(p, colon, "Referer", 7)) fields[FIELD_REFERER - 1] = value;
        else if (is_header(p, colon, "X-Forwarded-For", 15)) fields[FIELD_FORWARDED_FOR - 1] = value;
    }
    return 1;
}

int main(int count, char **arguments) {
    check(count == 3, "prototype PORT FILE");
    crc32c_setup();
    signal(SIGTERM, stop);
    int file = open(arguments[2], O_RDWR | O_CREAT | O_TRUNC, 0644);
    check(file >= 0 && posix_fallocate(file, 0, ROOM) == 0, arguments[2]);
    uint8_t *journal = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    check(journal != MAP_FAILED, "mmap");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in here = {AF_INET, htons((uint16_t)atoi(arguments[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    check(bind(listener, (struct sockaddr *)&here, sizeof here) == 0 && listen(listener, 4096) == 0, "listen");
    int loop = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &interest);

    uint32_t seed = record_seed(1);
    uint64_t sequence = 0;
    size_t used = 0;
    while (!stopping) {
        int ready = epoll_wait(loop, events, EVENTS, 1000);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                struct sockaddr_in peer;
                socklen_t size = sizeof peer;
                int client = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK);
                if (client < 0 || client >= MAX_FD) continue;
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                connections[client] = malloc(sizeof(connection));
                check(connections[client] != NULL, "malloc");
                connections[client]->address = peer.sin_addr.s_addr;
                connections[client]->used = 0;
                interest = (struct epoll_event){.events = EPOLLIN, .data.fd = client};
                epoll_ctl(loop, EPOLL_CTL_ADD, client, &interest);
                continue;
            }
            connection *c = connections[fd];
            ssize_t got = read(fd, c->data + c->used, BUFFER - c->used);
            if (got <= 0) {
                close(fd);
                free(c);
                continue;
            }
            c->used += (uint32_t)got;
            const uint8_t *end = memmem(c->data, c->used, "\r\n\r\n", 4);
            if (!end) continue;
            span fields[FIELD_COUNT];
            char answer[256];
            int status = 404;
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            if (parse(c->data, end + 2, fields)) {
                fields[FIELD_REMOTE_ADDR - 1] = (span){(const uint8_t *)&c->address, 4};
                size_t size = record_size(fields);
                status = 503;
                if (used + size <= ROOM) {
                    record_write(journal + used, size, seed, ++sequence,
                                 (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000, fields);
                    record_commit(journal + used);
                    used += size;
                    status = 200;
                }
            }
            int length = snprintf(answer, sizeof answer,
                                  "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n"
                                  "Cache-Control: no-store\r\nCross-Origin-Resource-Policy: cross-origin\r\n"
                                  "Access-Control-Allow-Origin: *\r\n\r\n%010ld",
                                  status, status == 200 ? "OK" : "Not stored", (long)now.tv_sec);
            size_t head = (size_t)(end + 4 - c->data);
            memmove(c->data, end + 4, c->used - head);
            c->used -= (uint32_t)head;
            if (write(fd, answer, (size_t)length) != length) {
                close(fd);
                free(c);
            }
        }
    }
    check(ftruncate(file, (off_t)used) == 0, "ftruncate");
    return 0;
}
