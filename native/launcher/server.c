/* Connections of host processes, and the event loop. */
#include "launcher.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

struct connection {
    struct connection *next;
    int fd;
    pid_t peer;
    bool lost; /* freed at the end of the round: others may still point at it */
};

static struct connection *connections;
static int epoll_fd = -1;

int server_watch(int fd, enum watch_kind kind) {
    if (epoll_fd < 0)
        epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)kind << 32 | (uint32_t)fd};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

bool server_is_host(pid_t pid) {
    for (struct connection *connection = connections; connection; connection = connection->next)
        if (connection->peer == pid && !connection->lost)
            return true;
    return false;
}

static void lose(struct connection *connection) {
    if (connection->lost)
        return;
    /* While we still know what it did: hosts remove the segments that they have read. */
    ledger_read_all();
    connection->lost = true;
    sub_close_fd(&connection->fd);
    worlds_connection_lost(connection);
}

void server_reply(struct connection *to, uint16_t type, uint32_t request, const void *payload,
                  size_t length, const int *fds, size_t fd_count) {
    /* A host that lets its socket fill up is stuck: it will reconnect and ask again. */
    if (!to->lost && sub_send(to->fd, type, request, payload, length, fds, fd_count))
        lose(to);
}

void server_reply_fail(struct connection *to, uint32_t request, const struct fail *fail) {
    uint8_t space[sizeof(struct sub_error) + 8 + sizeof fail->text + 512];
    struct sub_writer writer = {space, 0, sizeof space, false};
    struct sub_error head = {.error = fail->error, .op = fail->op};
    sub_put(&writer, &head, sizeof head);
    sub_put_string(&writer, fail->text);
    sub_put_string(&writer, fail_hint(fail));
    server_reply(to, SUB_L_ERROR, request, space, writer.used, NULL, 0);
}

void server_broadcast(uint16_t type, const void *payload, size_t length) {
    for (struct connection *c = connections; c; c = c->next)
        server_reply(c, type, 0, payload, length, NULL, 0);
}

static void serve(struct connection *from, const struct sub_packet *packet) {
    const struct sub_header *header = &packet->header;
    struct sub_reader reader = {packet->payload, header->length, false};
    static char text[8192];
    SUB_AUTO_STRING id = NULL;
    struct fail fail = {.op = -1};
    switch (header->type) {
    case SUB_L_HELLO:
        server_reply(from, SUB_L_WELCOME, header->request, text, probe_report(text, sizeof text),
                     NULL, 0);
        return;
    case SUB_L_CREATE:
        worlds_create(from, packet);
        return;
    case SUB_L_LIST:
        worlds_list(from, header->request);
        return;
    case SUB_L_LEDGER:
        worlds_sync_ledger(from, header->request, packet->payload, header->length);
        return;
    case SUB_L_LIMITS:
        worlds_limit(from, header->request, packet->payload, header->length);
        return;
    case SUB_L_SHUTDOWN:
        worlds_shutdown(from, header->request);
        return;
    case SUB_L_ATTACH:
    case SUB_L_REMOVE:
        id = sub_get_string(&reader);
        if (!id || !sub_id_is_valid(id))
            fail_set(&fail, EINVAL, "world id");
        else if (header->type == SUB_L_ATTACH)
            worlds_attach(from, header, id);
        else
            worlds_remove(from, header->request, id);
        break;
    default:
        fail_set(&fail, ENOSYS, "launcher request 0x%04x", header->type);
    }
    if (fail.text[0])
        server_reply_fail(from, header->request, &fail);
}

static void read_connection(int fd) {
    static struct sub_packet packet;
    struct connection *connection = connections;
    while (connection && connection->fd != fd)
        connection = connection->next;
    if (!connection)
        return;
    /* A bounded number per round, so that one host cannot starve the reaping. */
    for (int i = 0; i < 16 && !connection->lost; i++) {
        int got = sub_receive(connection->fd, &packet);
        if (got > 0) {
            serve(connection, &packet);
            sub_packet_release(&packet);
        } else if (got < 0 && errno == EAGAIN) {
            return;
        } else {
            lose(connection);
        }
    }
}

static void accept_connection(int listener) {
    SUB_AUTO_FD fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) ||
        (peer.uid != config.uid && peer.uid != 0))
        return;
    struct connection *connection = calloc(1, sizeof *connection);
    if (!connection || server_watch(fd, WATCH_CONNECTION)) {
        free(connection);
        return;
    }
    connection->fd = fd;
    connection->peer = peer.pid;
    connection->next = connections;
    connections = connection;
    fd = -1;
}

static void sweep_lost(void) {
    for (struct connection **at = &connections; *at;) {
        struct connection *connection = *at;
        if (connection->lost) {
            *at = connection->next;
            free(connection);
        } else {
            at = &connection->next;
        }
    }
}

static void read_signals(int signals) {
    struct signalfd_siginfo info;
    bool stop = false;
    while (read(signals, &info, sizeof info) == sizeof info)
        stop = stop || info.ssi_signo != SIGCHLD;
    if (stop)
        worlds_shutdown(NULL, 0);
    worlds_reap();
}

void server_run(int listener, int signals) {
    /* Whoever started us has yet to connect, however short the lingering. */
    int patience_s = config.linger_s < 10 ? 10 : config.linger_s;
    for (;;) {
        bool idle = !connections && !worlds_count();
        struct epoll_event events[32];
        if (connections)
            patience_s = config.linger_s;
        int count = epoll_wait(epoll_fd, events, 32, idle ? patience_s * 1000 : -1);
        if (count == 0 && idle)
            return;
        for (int i = 0; i < count; i++) {
            int fd = (int)(uint32_t)events[i].data.u64;
            switch ((enum watch_kind)(events[i].data.u64 >> 32)) {
            case WATCH_LISTENER:
                accept_connection(listener);
                break;
            case WATCH_SIGNALS:
                read_signals(signals);
                break;
            case WATCH_CONNECTION:
                read_connection(fd);
                break;
            case WATCH_REPORT:
                worlds_read_report(fd);
                worlds_reap();
                break;
            case WATCH_LEDGER:
                ledger_read();
                break;
            }
        }
        sweep_lost();
        if (worlds_is_shutting_down() && !worlds_count())
            return;
    }
}
