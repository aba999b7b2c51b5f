/*
 * Pseudo-terminals: libc opens /dev/ptmx inside, and the other end through an ioctl or by a name
 * that it asked for, so neither passes a symbol.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "descriptors.h"
#include "hook.h"

static void record_terminal(enum sub_operation op, uint64_t start, const char *path, int flags,
                            int fd, int error) {
    struct sub_call call = {
        .type = SUB_OPEN,
        .op = (uint16_t)op,
        .error = error,
        .start_ns = start,
        .result = fd,
        .arg = {AT_FDCWD, flags, 0, 0},
        .path = path,
    };
    sub_record_call(&call);
}

void sub_record_master(enum sub_operation op, uint64_t start, int flags, int fd, int error) {
    sub_descriptor_named(fd);
    record_terminal(op, start, "/dev/ptmx", flags, fd, error);
}

#define MASTER_HOOK(symbol, parameters, types, arguments, flags)                                   \
    HOOK(int, symbol, parameters) {                                                                \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        int(*next) types = NEXT(symbol, int(*) types);                                             \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        int fd = next arguments;                                                                   \
        if (start != 0)                                                                            \
            sub_record_master(SUB_OP_##symbol, start, flags, fd, sub_error(fd < 0));               \
        else                                                                                       \
            sub_descriptor_unnamed(fd);                                                            \
        return fd;                                                                                 \
    }

MASTER_HOOK(posix_openpt, (int flags), (int), (flags), flags)
MASTER_HOOK(getpt, (void), (void), (), O_RDWR)

/* Only the kernel knows which number the other end got: one of the few questions to it. */
HOOK(int, openpty,
     (int *master, int *slave, char *name, const struct termios *modes,
      const struct winsize *size)) {
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    typedef int openpty_function(int *, int *, char *, const struct termios *,
                                 const struct winsize *);
    openpty_function *next = NEXT(openpty, openpty_function *);
    if (next == NULL) {
        errno = ENOSYS;
        return -1;
    }
    int result = next(master, slave, name, modes, size);
    if (result != 0) {
        if (start != 0)
            sub_record_master(SUB_OP_openpty, start, O_RDWR, -1, sub_error(true));
        return result;
    }
    if (start == 0) {
        sub_descriptor_unnamed(*master);
        sub_descriptor_unnamed(*slave);
        return result;
    }
    sub_record_master(SUB_OP_openpty, start, O_RDWR, *master, 0);
    char path[64];
    size_t length = sub_descriptor_path(*slave, path, sizeof(path) - 1);
    path[length] = '\0';
    if (length != 0)
        sub_descriptor_named(*slave);
    else
        sub_descriptor_unnamed(*slave);
    record_terminal(SUB_OP_openpty, start, length != 0 ? path : NULL, O_RDWR | O_NOCTTY, *slave, 0);
    return result;
}
