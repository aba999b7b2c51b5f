/*
 * Closing, copying and making descriptors.
 *
 * A close is not recorded: it only ends the sums of its number (descriptors.h). Copies are, so that
 * a reader can follow what bytes went to. Sockets, pipes and the like lead to no file: they are
 * noted as numbers that no record explains, until a connect, bind or accept does.
 */
#define _GNU_SOURCE 1

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "descriptors.h"
#include "hook.h"
#include "system.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1u << 2)
#endif

/* --- closing ---------------------------------------------------------------------------------- */

#define CLOSE_HOOK(symbol)                                                                         \
    HOOK(int, symbol, (int fd)) {                                                                  \
        int (*next)(int) = NEXT(symbol, int (*)(int));                                             \
        sub_descriptor_unnamed(fd);                                                                \
        return next != NULL ? next(fd) : (int)sub_libc_result(SYS1(SYS_close, fd));                \
    }

CLOSE_HOOK(close)
CLOSE_HOOK(__close)

HOOK(void, closefrom, (int first)) {
    void (*next)(int) = NEXT(closefrom, void (*)(int));
    unsigned from = first > 0 ? (unsigned)first : 0;
    sub_descriptors_unnamed_from(from, ~0u);
    if (next != NULL)
        next(first);
    else if (SYS3(SYS_close_range, from, ~0u, 0) != 0) { /* before Linux 5.9 */
        for (unsigned fd = from; fd < 65536; fd++)
            SYS1(SYS_close, fd);
    }
}

HOOK(int, close_range, (unsigned first, unsigned last, int flags)) {
    int (*next)(unsigned, unsigned, int) = NEXT(close_range, int (*)(unsigned, unsigned, int));
    if (((unsigned)flags & CLOSE_RANGE_CLOEXEC) == 0)
        sub_descriptors_unnamed_from(first, last);
    return next != NULL ? next(first, last, flags)
                        : (int)sub_libc_result(SYS3(SYS_close_range, first, last, flags));
}

/* Streams and directories hold a descriptor that libc closes inside. */
#define CLOSE_STREAM_HOOK(symbol, type, number)                                                    \
    HOOK(int, symbol, (type * stream)) {                                                           \
        int (*next)(type *) = NEXT(symbol, int (*)(type *));                                       \
        if (next == NULL)                                                                          \
            return (int)sub_libc_result(-ENOSYS);                                                  \
        if (stream != NULL && sub_mode == SUB_ON) {                                                \
            int error = errno;                                                                     \
            sub_descriptor_unnamed(number(stream)); /* -1 with EBADF where there is none */        \
            errno = error;                                                                         \
        }                                                                                          \
        return next(stream);                                                                       \
    }

CLOSE_STREAM_HOOK(fclose, FILE, fileno)
CLOSE_STREAM_HOOK(_IO_fclose, FILE, fileno)
CLOSE_STREAM_HOOK(pclose, FILE, fileno)
CLOSE_STREAM_HOOK(closedir, DIR, dirfd)

/* --- copying ---------------------------------------------------------------------------------- */

static void record_copy(enum sub_operation op, uint64_t start, int from, int to) {
    if (to < 0)
        return;
    if (start == 0) {
        sub_descriptor_unnamed(to);
        return;
    }
    uint32_t state = sub_descriptor_state(from);
    sub_change_descriptor(to, (state & 1u) == 0);
    struct sub_record *record = sub_begin(SUB_DUP, (uint16_t)op, start, 0);
    if (record == NULL)
        return;
    record->result = to;
    record->arg[0] = from;
    record->flags |= (state & 1u) != 0 ? SUB_FLAG_UNNAMED : 0;
    sub_copy_place(record, from, to);
    sub_commit(record);
}

HOOK(int, dup, (int from)) {
    uint64_t start = sub_enter_class(SUB_CLASS_TRANSFER);
    int (*next)(int) = NEXT(dup, int (*)(int));
    int to = next != NULL ? next(from) : (int)sub_libc_result(SYS1(SYS_dup, from));
    record_copy(SUB_OP_dup, start, from, to);
    return to;
}

/* Onto itself it changes nothing. */
#define DUP2_HOOK(symbol)                                                                          \
    HOOK(int, symbol, (int from, int to)) {                                                        \
        uint64_t start = sub_enter_class(SUB_CLASS_TRANSFER);                                      \
        int (*next)(int, int) = NEXT(symbol, int (*)(int, int));                                   \
        int result = next != NULL ? next(from, to)                                                 \
                     : from != to ? (int)sub_libc_result(SYS3(SYS_dup3, from, to, 0))              \
                     : (int)sub_libc_result(SYS3(SYS_fcntl, from, F_GETFD, 0)) < 0 ? -1            \
                                                                                   : to;           \
        if (from != to)                                                                            \
            record_copy(SUB_OP_##symbol, start, from, result);                                     \
        return result;                                                                             \
    }

DUP2_HOOK(dup2)
DUP2_HOOK(__dup2)

HOOK(int, dup3, (int from, int to, int flags)) {
    uint64_t start = sub_enter_class(SUB_CLASS_TRANSFER);
    int (*next)(int, int, int) = NEXT(dup3, int (*)(int, int, int));
    int result = next != NULL ? next(from, to, flags)
                              : (int)sub_libc_result(SYS3(SYS_dup3, from, to, flags));
    record_copy(SUB_OP_dup3, start, from, result);
    return result;
}

/* The third argument is an int, a long or a pointer, or none: a word in any case. */
#define FCNTL_HOOK(symbol)                                                                         \
    HOOK(int, symbol, (int fd, int command, ...)) {                                                \
        va_list arguments;                                                                         \
        va_start(arguments, command);                                                              \
        void *argument = va_arg(arguments, void *);                                                \
        va_end(arguments);                                                                         \
        bool copies = command == F_DUPFD || command == F_DUPFD_CLOEXEC;                            \
        uint64_t start = copies ? sub_enter_class(SUB_CLASS_TRANSFER) : 0;                         \
        int (*next)(int, int, ...) = NEXT(symbol, int (*)(int, int, ...));                         \
        int result = next != NULL ? next(fd, command, argument)                                    \
                                  : (int)sub_libc_result(SYS3(SYS_fcntl, fd, command, argument));  \
        if (copies)                                                                                \
            record_copy(SUB_OP_##symbol, start, fd, result);                                       \
        return result;                                                                             \
    }

FCNTL_HOOK(fcntl)
FCNTL_HOOK(__fcntl)
FCNTL_HOOK(fcntl64)

/* --- making what leads to no file ------------------------------------------------------------- */

/* MAKER_HOOK(symbol, parameters, types, arguments; what to do without libc) */
#define MAKER_HOOK(symbol, parameters, types, arguments, fallback)                                 \
    HOOK(int, symbol, parameters) {                                                                \
        int(*next) types = NEXT(symbol, int(*) types);                                             \
        int made = next != NULL ? next arguments : (int)sub_libc_result(fallback);                 \
        sub_descriptor_unnamed(made);                                                              \
        return made;                                                                               \
    }

#define SOCKET_HOOK(symbol)                                                                        \
    MAKER_HOOK(symbol, (int family, int type, int protocol), (int, int, int),                      \
               (family, type, protocol), SYS3(SYS_socket, family, type, protocol))

SOCKET_HOOK(socket)
SOCKET_HOOK(__socket)
MAKER_HOOK(eventfd, (unsigned value, int flags), (unsigned, int), (value, flags),
           SYS2(SYS_eventfd2, value, flags))
MAKER_HOOK(timerfd_create, (int clock, int flags), (int, int), (clock, flags),
           SYS2(SYS_timerfd_create, clock, flags))
MAKER_HOOK(signalfd, (int fd, const sigset_t *signals, int flags), (int, const sigset_t *, int),
           (fd, signals, flags), SYS4(SYS_signalfd4, fd, signals, 8, flags))
MAKER_HOOK(epoll_create, (int size), (int), (size), size > 0 ? SYS1(SYS_epoll_create1, 0) : -EINVAL)
MAKER_HOOK(epoll_create1, (int flags), (int), (flags), SYS1(SYS_epoll_create1, flags))
MAKER_HOOK(inotify_init, (void), (void), (), SYS1(SYS_inotify_init1, 0))
MAKER_HOOK(inotify_init1, (int flags), (int), (flags), SYS1(SYS_inotify_init1, flags))

#define PAIR_HOOK(symbol, parameters, types, arguments, fallback)                                  \
    HOOK(int, symbol, parameters) {                                                                \
        int(*next) types = NEXT(symbol, int(*) types);                                             \
        int result = next != NULL ? next arguments : (int)sub_libc_result(fallback);               \
        if (result == 0) {                                                                         \
            sub_descriptor_unnamed(pair[0]);                                                       \
            sub_descriptor_unnamed(pair[1]);                                                       \
        }                                                                                          \
        return result;                                                                             \
    }

PAIR_HOOK(pipe, (int pair[2]), (int *), (pair), SYS2(SYS_pipe2, pair, 0))
PAIR_HOOK(__pipe, (int pair[2]), (int *), (pair), SYS2(SYS_pipe2, pair, 0))
PAIR_HOOK(pipe2, (int pair[2], int flags), (int *, int), (pair, flags),
          SYS2(SYS_pipe2, pair, flags))
PAIR_HOOK(socketpair, (int family, int type, int protocol, int pair[2]), (int, int, int, int *),
          (family, type, protocol, pair), SYS4(SYS_socketpair, family, type, protocol, pair))
