/* From pipes and terminals to framed records in the log. */
#include "init.h"

#include <sys/epoll.h>
#include <sys/ioctl.h>

#define CHUNK 65536

/* A frame that does not reach the file whole is taken back: a reader must never lose its place. */
static void fail_log(struct exec *exec, int error) {
    exec->state.flags |= SUB_STATE_LOG_FAILED;
    exec->state.log_errno = error;
    (void)!ftruncate(exec->log_fd, (off_t)exec->state.log_bytes);
}

/* Whose output it is: what a shell's streams bring is its current command's. */
static struct exec *owner_of(struct exec *exec) {
    return exec->shell && exec->shell->current ? exec->shell->current : exec;
}

static void keep(struct exec *exec, int stream, uint8_t *frame, size_t length) {
    uint64_t room = exec->output_limit - exec->output_kept;
    if (length > room) {
        exec->state.flags |= SUB_STATE_TRUNCATED;
        length = (size_t)room;
    }
    if (!length || exec->log_fd < 0 || exec->state.flags & SUB_STATE_LOG_FAILED)
        return;
    struct sub_frame head = {.mono_ns = clock_ns(CLOCK_MONOTONIC),
                             .stream = (uint8_t)(SUB_STREAM_OUT + stream),
                             .length = (uint32_t)length};
    memcpy(frame, &head, sizeof head);
    size_t total = sizeof head + length;
    ssize_t written;
    do
        written = write(exec->log_fd, frame, total);
    while (written < 0 && errno == EINTR);
    if (written < 0 || (size_t)written != total) {
        fail_log(exec, written < 0 ? errno : ENOSPC);
        return;
    }
    exec->output_kept += length;
    exec->state.log_bytes += total;
    exec->dirty |= DIRTY_OUTPUT;
}

/* At most `limit` bytes. False when there is nothing more now. */
static bool read_some(struct exec *exec, int stream, size_t limit) {
    static uint8_t frame[sizeof(struct sub_frame) + CHUNK];
    if (exec->outputs[stream] < 0)
        return false;
    ssize_t got = read(exec->outputs[stream], frame + sizeof(struct sub_frame),
                       limit < CHUNK ? limit : CHUNK);
    if (got > 0) {
        exec->state.out_bytes[stream] += (uint64_t)got;
        if (owner_of(exec) != exec)
            owner_of(exec)->state.out_bytes[stream] += (uint64_t)got;
        keep(owner_of(exec), stream, frame, (size_t)got);
        return true;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (exec->is_pty && !exec->main_exited) {
        /*
         * EIO: nobody has the terminal open now. A program closes its streams before it exits, and
         * closing our end then would end it by SIGHUP; one may also open the terminal again.
         */
        loop_unwatch(exec->outputs[stream]);
        exec->pty_quiet = true;
        exec->pty_quiet_since_ns = clock_ns(CLOCK_MONOTONIC);
        return false;
    }
    sub_close_fd(&exec->outputs[stream]);
    return false;
}

void output_look_again(struct exec *exec) {
    exec->pty_quiet = false;
    loop_watch(exec->outputs[2], WATCH_PTY, exec->index, EPOLLIN);
}

void output_read(struct exec *exec, int stream) {
    read_some(exec, stream, CHUNK);
}

/*
 * What has been written so far, and no more: a background child may go on writing for ever, and the
 * exec has ended nevertheless.
 */
void output_drain(struct exec *exec) {
    for (int stream = 0; stream < 3; stream++) {
        int waiting = 0;
        if (exec->outputs[stream] < 0 || ioctl(exec->outputs[stream], FIONREAD, &waiting))
            continue;
        for (size_t left = waiting > 0 ? (size_t)waiting : 1; left;) {
            uint64_t before = exec->state.out_bytes[stream];
            if (!read_some(exec, stream, left))
                break;
            uint64_t got = exec->state.out_bytes[stream] - before;
            left = got < left ? left - (size_t)got : 0;
        }
    }
}

bool output_is_open(const struct exec *exec) {
    return exec->outputs[0] >= 0 || exec->outputs[1] >= 0 || exec->outputs[2] >= 0;
}
