/*
 * Packets and payloads of protocol.h, shared by the launcher and the init.
 *
 * Readers never trust a length: every get checks what is left and turns the reader bad, after
 * which all gets return zero values; callers check once, at the end.
 */
#ifndef SUBSTRATE_WIRE_H
#define SUBSTRATE_WIRE_H

#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct sub_reader {
    const uint8_t *at;
    size_t left;
    bool bad;
};

static inline const void *sub_get(struct sub_reader *r, size_t size) {
    if (r->bad || size > r->left) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *here = r->at;
    r->at += size;
    r->left -= size;
    return here;
}

/* Copies, because payloads are not aligned behind strings. */
static inline void sub_get_into(struct sub_reader *r, void *out, size_t size) {
    const void *from = sub_get(r, size);
    if (from)
        memcpy(out, from, size);
    else
        memset(out, 0, size);
}

/* A new terminated copy, or NULL: bad reader, an embedded NUL, no memory. */
static inline char *sub_get_string(struct sub_reader *r) {
    uint32_t length = 0;
    sub_get_into(r, &length, sizeof length);
    const char *from = sub_get(r, length);
    if (!from || memchr(from, 0, length)) {
        r->bad = true;
        return NULL;
    }
    char *copy = malloc((size_t)length + 1);
    if (!copy) {
        r->bad = true;
        return NULL;
    }
    memcpy(copy, from, length);
    copy[length] = 0;
    return copy;
}

struct sub_writer {
    uint8_t *data;
    size_t used, room;
    bool bad;
};

static inline void sub_put(struct sub_writer *w, const void *data, size_t size) {
    if (w->bad || size > w->room - w->used) {
        w->bad = true;
        return;
    }
    if (size) {
        memcpy(w->data + w->used, data, size);
        w->used += size;
    }
}

static inline void sub_put_string(struct sub_writer *w, const char *text) {
    uint32_t length = (uint32_t)strlen(text);
    sub_put(w, &length, sizeof length);
    sub_put(w, text, length);
}

static inline bool sub_id_is_valid(const char *id) {
    size_t length = strnlen(id, SUB_ID_MAX + 1);
    if (length == 0 || length > SUB_ID_MAX || id[0] == '.')
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = id[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '_' || c == '.' || c == '-'))
            return false;
    }
    return true;
}

/* Never blocks. 0, or -1 with errno (EAGAIN: the peer does not read). */
static inline int sub_send(int fd, uint16_t type, uint32_t request, const void *payload,
                           size_t length, const int *fds, size_t fd_count) {
    struct sub_header header = {
        .version = SUB_PROTOCOL_VERSION, .type = type, .request = request, .length = length};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)payload, length}};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(SUB_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = length ? 2 : 1};
    if (fd_count) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, fd_count * sizeof(int));
    }
    ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -1 : 0;
}

struct sub_packet {
    struct sub_header header;
    const uint8_t *payload; /* in `inline_data` or `heap` */
    uint8_t *heap;
    int fds[SUB_FDS_MAX];
    size_t fd_count;
    uint8_t inline_data[SUB_PACKET_MAX];
};

static inline void sub_packet_release(struct sub_packet *packet) {
    for (size_t i = 0; i < packet->fd_count; i++)
        if (packet->fds[i] >= 0)
            close(packet->fds[i]);
    packet->fd_count = 0;
    free(packet->heap);
    packet->heap = NULL;
}

/* Hands over one of the packet's descriptors; -1 where there is none. */
static inline int sub_packet_take_fd(struct sub_packet *packet, size_t index) {
    if (index >= packet->fd_count)
        return -1;
    int fd = packet->fds[index];
    packet->fds[index] = -1;
    return fd;
}

static inline int sub_load_memfd(struct sub_packet *packet) {
    struct stat status;
    size_t length = packet->header.length;
    if (packet->fd_count < 1 || length > SUB_MEMFD_MAX || fstat(packet->fds[0], &status) ||
        !S_ISREG(status.st_mode) || (uint64_t)status.st_size < length)
        return -1;
    /* Read, not mapped: whoever holds the memfd too could truncate it under us (SIGBUS). */
    packet->heap = malloc(length ? length : 1);
    if (!packet->heap)
        return -1;
    for (size_t done = 0; done < length;) {
        ssize_t got = pread(packet->fds[0], packet->heap + done, length - done, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        done += (size_t)got;
    }
    packet->payload = packet->heap;
    close(packet->fds[0]);
    packet->fd_count--;
    memmove(packet->fds, packet->fds + 1, packet->fd_count * sizeof(int));
    return 0;
}

/*
 * One packet. 1: there is one (release it), 0: the peer is gone, -1: errno; EAGAIN where there is
 * none now, EPROTO where the packet makes no sense (it is released, the connection is still good).
 */
static inline int sub_receive(int fd, struct sub_packet *packet) {
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(SUB_FDS_MAX * sizeof(int))];
    } control;
    struct iovec part = {packet->inline_data, sizeof packet->inline_data};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t got;
    packet->heap = NULL;
    packet->fd_count = 0;
    do
        got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got <= 0)
        return got < 0 ? -1 : 0;
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message); /* one level and type: one header */
    if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
        packet->fd_count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(packet->fds, CMSG_DATA(cmsg), packet->fd_count * sizeof(int));
    }
    bool torn = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    if (!torn && (size_t)got >= sizeof packet->header) {
        memcpy(&packet->header, packet->inline_data, sizeof packet->header);
        packet->payload = packet->inline_data + sizeof packet->header;
        bool in_memfd = (packet->header.flags & SUB_IN_MEMFD) != 0;
        if (packet->header.version == SUB_PROTOCOL_VERSION &&
            (in_memfd ? sub_load_memfd(packet) == 0
                      : packet->header.length == (size_t)got - sizeof packet->header))
            return 1;
    }
    sub_packet_release(packet);
    errno = EPROTO;
    return -1;
}

static inline void sub_close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}
#define SUB_AUTO_FD __attribute__((cleanup(sub_close_fd))) int

static inline void sub_free_string(char **text) {
    free(*text);
}
#define SUB_AUTO_STRING __attribute__((cleanup(sub_free_string))) char *

#endif
