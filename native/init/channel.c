/*
 * The host's end of the conversation. The host may read late or not at all: answers wait in a
 * bounded queue, events are flags on the exec and are made when they can be sent, so nothing that
 * matters is lost and nothing piles up.
 */
#include "init.h"

#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#define QUEUE_MAX 8192
#define NOTE_INTERVAL (2 * MS) /* at most one OUTPUT event of an exec in that time */

struct reply {
    struct reply *next;
    uint16_t type;
    uint32_t request, length;
    uint8_t payload[];
};

static struct reply *first, **last = &first;
static size_t queued;

void channel_reply(uint16_t type, uint32_t request, const void *payload, size_t length) {
    if (!first && sub_send(self.channel, type, request, payload, length, NULL, 0) == 0)
        return;
    struct reply *reply = queued < QUEUE_MAX ? malloc(sizeof *reply + length) : NULL;
    if (!reply)
        return; /* a host that asks and does not read; it will ask again */
    *reply = (struct reply){NULL, type, request, (uint32_t)length};
    if (length)
        memcpy(reply->payload, payload, length);
    *last = reply;
    last = &reply->next;
    queued++;
}

void channel_error(uint32_t request, int error, const char *text) {
    uint8_t space[256];
    struct sub_writer writer = {space, 0, sizeof space, false};
    struct sub_error head = {.error = error, .op = -1};
    sub_put(&writer, &head, sizeof head);
    sub_put_string(&writer, text);
    sub_put_string(&writer, "");
    channel_reply(SUB_I_ERROR, request, space, writer.used);
}

static bool flush_replies(void) {
    while (first) {
        struct reply *reply = first;
        if (sub_send(self.channel, reply->type, reply->request, reply->payload, reply->length, NULL,
                     0) &&
            errno == EAGAIN)
            return false;
        first = reply->next;
        if (!first)
            last = &first;
        queued--;
        free(reply);
    }
    return true;
}

#define STATE_ROOM                                                                                 \
    (sizeof(struct sub_state) + sizeof(uint32_t) + sizeof((struct exec *)0)->directory)

/* The length of what says all about an exec. */
static size_t put_state(const struct exec *exec, uint8_t space[STATE_ROOM]) {
    struct sub_writer writer = {space, 0, STATE_ROOM, false};
    sub_put(&writer, &exec->state, sizeof exec->state);
    if (exec->directory[0])
        sub_put_string(&writer, exec->directory);
    return writer.used;
}

static bool send_event(struct exec *exec, uint8_t bit) {
    if (bit == DIRTY_OUTPUT) {
        struct sub_output event = {.log_bytes = exec->state.log_bytes};
        memcpy(event.exec_id, exec->state.exec_id, SUB_ID_MAX);
        return sub_send(self.channel, SUB_I_OUTPUT, 0, &event, sizeof event, NULL, 0) == 0;
    }
    if (bit == DIRTY_STDIN) {
        struct sub_stdin_ack ack = {.received = exec->input.received,
                                    .written = exec->input.written,
                                    .closed = exec->input.closed};
        memcpy(ack.exec_id, exec->state.exec_id, SUB_ID_MAX);
        return sub_send(self.channel, SUB_I_STDIN_ACK, 0, &ack, sizeof ack, NULL, 0) == 0;
    }
    uint8_t space[STATE_ROOM];
    size_t length = put_state(exec, space);
    return sub_send(self.channel, SUB_I_EXITED, 0, space, length, NULL, 0) == 0;
}

/* In the order a reader wants them: what was written, then that it ended. */
int channel_flush(void) {
    bool later = false;
    static const uint8_t order[] = {DIRTY_STDIN, DIRTY_OUTPUT, DIRTY_EXITED};
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    bool blocked = !flush_replies();
    for (uint32_t i = 0; i < execs_high && !blocked; i++) {
        struct exec *exec = execs_at(i);
        if (!exec || !exec->dirty || exec->forgotten || exec->state.phase == SUB_PHASE_STARTING)
            continue;
        for (size_t bit = 0; bit < sizeof order && !blocked; bit++) {
            if (!(exec->dirty & order[bit]))
                continue;
            if (order[bit] == DIRTY_OUTPUT && now - exec->last_note_ns < NOTE_INTERVAL) {
                later = true;
                continue;
            }
            blocked = !send_event(exec, order[bit]) && errno == EAGAIN;
            if (!blocked)
                exec->dirty &= (uint8_t)~order[bit];
            if (order[bit] == DIRTY_OUTPUT)
                exec->last_note_ns = now;
        }
    }
    static bool was_blocked;
    if (blocked != was_blocked) {
        was_blocked = blocked;
        loop_change(self.channel, WATCH_CHANNEL, 0, EPOLLIN | (blocked ? EPOLLOUT : 0));
    }
    return later ? (int)(NOTE_INTERVAL / MS) : -1;
}

/* ---- requests -------------------------------------------------------------------------------- */

static void welcome(uint32_t request, uint64_t nonce) {
    struct sub_welcome answer = {.nonce = nonce,
                                 .pid_namespace = self.pid_namespace,
                                 .mono_ns = clock_ns(CLOCK_MONOTONIC),
                                 .boot_ns = clock_ns(CLOCK_BOOTTIME),
                                 .kill_mode =
                                     self.cgroup_fd >= 0 ? SUB_KILL_CGROUP : SUB_KILL_SUBREAPER,
                                 .exec_count = (uint32_t)execs_count()};
    channel_reply(SUB_I_WELCOME, request, &answer, sizeof answer);
}

static void send_states(uint32_t request) {
    for (uint32_t i = 0; i < execs_high; i++) {
        struct exec *exec = execs_at(i);
        if (!exec || exec->forgotten)
            continue;
        exec->state.stdin_received = exec->input.received;
        exec->state.stdin_written = exec->input.written;
        if (exec->state.phase != SUB_PHASE_EXITED)
            exec->state.remaining = tree_count(exec);
        uint8_t space[STATE_ROOM];
        channel_reply(SUB_I_STATE, request, space, put_state(exec, space));
    }
    channel_reply(SUB_I_OK, request, NULL, 0);
}

static void send_processes(uint32_t request) {
    static uint8_t space[SUB_PACKET_MAX - sizeof(struct sub_header)];
    static struct sub_proc list[(sizeof space - 8) / sizeof(struct sub_proc)];
    bool truncated;
    uint32_t head[2];
    head[0] = (uint32_t)tree_list(list, sizeof list / sizeof list[0], &truncated);
    head[1] = truncated;
    memcpy(space, head, sizeof head);
    memcpy(space + sizeof head, list, head[0] * sizeof list[0]);
    channel_reply(SUB_I_PROC_LIST, request, space, sizeof head + head[0] * sizeof list[0]);
}

static void answer(uint32_t request, int error, const char *what) {
    if (error)
        channel_error(request, error, what);
    else
        channel_reply(SUB_I_OK, request, NULL, 0);
}

static void take_stdin(struct sub_reader *reader, uint32_t request) {
    struct sub_stdin head;
    sub_get_into(reader, &head, sizeof head);
    struct exec *exec = reader->bad ? NULL : execs_find(head.exec_id);
    int error = exec ? input_add(exec, head.offset, reader->at, reader->left, head.eof) : ENOENT;
    if (error)
        channel_error(request, error, "stdin");
}

static void take_signal(struct sub_reader *reader, uint32_t request) {
    struct sub_signal head;
    sub_get_into(reader, &head, sizeof head);
    struct exec *exec = reader->bad ? NULL : execs_find(head.exec_id);
    answer(request, exec ? execs_signal(exec, head.signo, head.scope) : ENOENT, "signal");
}

static void take_resize(struct sub_reader *reader, uint32_t request) {
    struct sub_resize head;
    sub_get_into(reader, &head, sizeof head);
    struct exec *exec = reader->bad ? NULL : execs_find(head.exec_id);
    struct winsize size = {.ws_row = head.rows, .ws_col = head.cols};
    int error = !exec                                        ? ENOENT
                : exec->outputs[2] < 0                       ? ENOTTY
                : ioctl(exec->outputs[2], TIOCSWINSZ, &size) ? errno
                                                             : 0;
    answer(request, error, "resize");
}

static void take_forget(struct sub_reader *reader, uint32_t request) {
    char id[SUB_ID_MAX];
    sub_get_into(reader, id, sizeof id);
    struct exec *exec = reader->bad ? NULL : execs_find(id);
    if (exec && exec->state.phase != SUB_PHASE_EXITED) {
        channel_error(request, EBUSY, "forget");
        return;
    }
    if (exec)
        execs_forget(exec);
    answer(request, 0, "forget"); /* also where it is not known: idempotent */
}

static void take_freeze(struct sub_reader *reader, uint32_t request) {
    uint32_t wanted[2], answer_words[2];
    sub_get_into(reader, wanted, sizeof wanted);
    if (reader->bad) {
        channel_error(request, EINVAL, "freeze");
        return;
    }
    answer_words[1] = limits_freeze(wanted[0] != 0);
    answer_words[0] = limits_frozen();
    channel_reply(SUB_I_FROZEN, request, answer_words, sizeof answer_words);
}

static void serve(struct sub_packet *packet) {
    uint32_t request = packet->header.request;
    struct sub_reader reader = {packet->payload, packet->header.length, false};
    uint64_t nonce;
    switch (packet->header.type) {
    case SUB_I_HELLO:
        sub_get_into(&reader, &nonce, sizeof nonce);
        welcome(request, nonce);
        return;
    case SUB_I_START:
        execs_start(request, packet);
        return;
    case SUB_I_SHELL_RUN:
        shells_run(request, packet);
        return;
    case SUB_I_STDIN:
        take_stdin(&reader, request);
        return;
    case SUB_I_SIGNAL:
        take_signal(&reader, request);
        return;
    case SUB_I_RESIZE:
        take_resize(&reader, request);
        return;
    case SUB_I_STATUS:
        send_states(request);
        return;
    case SUB_I_FORGET:
        take_forget(&reader, request);
        return;
    case SUB_I_PROCS:
        send_processes(request);
        return;
    case SUB_I_FREEZE:
        take_freeze(&reader, request);
        return;
    default:
        channel_error(request, ENOSYS, "unknown request");
    }
}

void channel_read(void) {
    static struct sub_packet packet;
    for (int i = 0; i < 16; i++) {
        int got = sub_receive(self.channel, &packet);
        if (got > 0) {
            serve(&packet);
            sub_packet_release(&packet);
        } else if (got < 0 && errno == EPROTO) {
            continue;
        } else if (got < 0 && (errno == EAGAIN || errno == ENOMEM || errno == ENOBUFS)) {
            return; /* what the kernel has no room for now is still there at the next look */
        } else {
            /* Launcher and host are both gone: nobody can ever ask again. Else the host hears why. */
            _exit(got < 0 ? errno : 0);
        }
    }
}
