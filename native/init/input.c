/* Bytes for a program's stdin or terminal, as fast as it takes them and no faster. */
#include "init.h"

#include <sys/epoll.h>

static void want(struct exec *exec, uint32_t events) {
    if (exec->stdin_fd >= 0 && exec->watched != events) {
        exec->watched = events;
        if (!exec->is_pty)
            loop_change(exec->stdin_fd, WATCH_STDIN, exec->index, events);
        else if (events)
            loop_watch(exec->stdin_fd, WATCH_STDIN, exec->index, events);
        else
            loop_unwatch(exec->stdin_fd);
    }
}

void input_close(struct exec *exec) {
    sub_close_fd(&exec->stdin_fd);
    free(exec->input.data);
    exec->input.data = NULL;
    exec->input.begin = exec->input.end = 0;
    if (!exec->input.closed) {
        exec->input.closed = true;
        exec->dirty |= DIRTY_STDIN;
    }
}

void input_write(struct exec *exec) {
    struct input *input = &exec->input;
    if (exec->stdin_fd < 0)
        return;
    while (input->begin < input->end) {
        ssize_t done = write(exec->stdin_fd, input->data + input->begin, input->end - input->begin);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno == EAGAIN) {
            want(exec, EPOLLOUT);
            return;
        }
        if (done < 0) {
            input_close(exec); /* EPIPE: the program does not read any more */
            return;
        }
        input->begin += (size_t)done;
        input->written += (uint64_t)done;
        exec->dirty |= DIRTY_STDIN;
    }
    input->begin = input->end = 0;
    want(exec, 0);
    if (!input->eof)
        return;
    if (exec->is_pty) {
        /* A terminal has no end of file but the character for it (termios(3), VEOF). */
        static const char end_of_file = 4;
        if (write(exec->stdin_fd, &end_of_file, 1) < 0 && errno == EAGAIN) {
            want(exec, EPOLLOUT);
            return;
        }
        input->eof = false;
        exec->dirty |= DIRTY_STDIN;
    } else {
        input_close(exec);
    }
}

/* 0, or an errno: EINVAL a gap before `offset`; ENOTCONN there is no stdin. */
int input_add(struct exec *exec, uint64_t offset, const uint8_t *data, size_t length, bool eof) {
    struct input *input = &exec->input;
    exec->dirty |= DIRTY_STDIN;
    if (exec->stdin_fd < 0)
        return input->closed ? 0 : ENOTCONN; /* closed: the acknowledgement says so */
    if (offset > input->received)
        return EINVAL;
    uint64_t known = input->received - offset;
    if (known < length) {
        data += known;
        length -= (size_t)known;
    } else {
        length = 0;
    }
    if (!input->data && length && !(input->data = malloc(SUB_STDIN_WINDOW)))
        return ENOMEM;
    if (length > SUB_STDIN_WINDOW - input->end && input->begin) {
        memmove(input->data, input->data + input->begin, input->end - input->begin);
        input->end -= input->begin;
        input->begin = 0;
    }
    bool whole = length <= SUB_STDIN_WINDOW - input->end;
    if (!whole)
        length = SUB_STDIN_WINDOW - input->end; /* the acknowledgement tells where to go on */
    if (length)
        memcpy(input->data + input->end, data, length);
    input->end += length;
    input->received += length;
    input->eof = input->eof || (eof && whole);
    input_write(exec);
    return 0;
}
