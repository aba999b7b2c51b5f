/*
 * Connections: made, awaited and taken.
 */
#define _GNU_SOURCE 1

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "descriptors.h"
#include "hook.h"
#include "system.h"

/* What the caller passed as an address, or 0 bytes and a flag where it cannot be read. */
static uint32_t address_bytes(const struct sockaddr *address, socklen_t length, int error,
                              uint32_t *flags) {
    uint32_t bytes =
        length < sizeof(struct sockaddr_storage) ? length : sizeof(struct sockaddr_storage);
    if (address == NULL)
        return 0;
    /* EINPROGRESS and the like come after the kernel read the address; these need not. */
    if ((error == EFAULT || error == EINVAL || error == EBADF || error == ENOTSOCK ||
         error == EPERM || error == EACCES) &&
        !sub_readable(address, bytes)) {
        *flags |= SUB_FLAG_FAULT;
        return 0;
    }
    return bytes;
}

static void record_address(uint16_t type, enum sub_operation op, uint64_t start, int fd,
                           const struct sockaddr *address, socklen_t length, int result) {
    int error = sub_error(result < 0);
    uint32_t flags = 0;
    uint32_t bytes = address_bytes(address, length, error, &flags);
    struct sub_record *record = sub_begin(type, (uint16_t)op, start, sub_field_size(bytes));
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    record->flags |= flags;
    record->arg[0] = fd;
    sub_put((unsigned char *)(record + 1), SUB_TAG_ADDRESS, address, bytes);
    sub_commit(record);
    /* What is sent from here on goes there. */
    if (result == 0 || error == EINPROGRESS)
        sub_descriptor_named(fd);
}

typedef int address_function(int, const struct sockaddr *, socklen_t);

#define ADDRESS_HOOK(symbol, type, number)                                                         \
    HOOK(int, symbol, (int fd, const struct sockaddr *address, socklen_t length)) {                \
        uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);                                       \
        address_function *next = NEXT(symbol, address_function *);                                 \
        int result = next != NULL ? next(fd, address, length)                                      \
                                  : (int)sub_libc_result(SYS3(number, fd, address, length));       \
        if (start != 0)                                                                            \
            record_address(type, SUB_OP_##symbol, start, fd, address, length, result);             \
        return result;                                                                             \
    }

ADDRESS_HOOK(connect, SUB_CONNECT, SYS_connect)
ADDRESS_HOOK(__connect, SUB_CONNECT, SYS_connect)
ADDRESS_HOOK(bind, SUB_BIND, SYS_bind)

HOOK(int, listen, (int fd, int backlog)) {
    uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);
    int (*next)(int, int) = NEXT(listen, int (*)(int, int));
    int result =
        next != NULL ? next(fd, backlog) : (int)sub_libc_result(SYS2(SYS_listen, fd, backlog));
    if (start == 0)
        return result;
    int error = sub_error(result < 0);
    struct sub_record *record = sub_begin(SUB_LISTEN, SUB_OP_listen, start, 0);
    if (record == NULL)
        return result;
    record->result = result;
    record->error = error;
    record->arg[0] = fd;
    record->arg[1] = backlog;
    sub_commit(record);
    return result;
}

/*
 * Callers often want no address, and asking accept for one of ours could make it fail (a peer that
 * is gone already is ECONNABORTED then): the kernel is asked afterwards.
 */
static void record_accept(enum sub_operation op, uint64_t start, int fd, int accepted) {
    int error = sub_error(accepted < 0);
    if (start == 0) {
        sub_descriptor_unnamed(accepted);
        return;
    }
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    if (accepted < 0 || sub_quiet || SYS3(SYS_getpeername, accepted, &peer, &length) != 0)
        length = 0;
    if (length > sizeof(peer))
        length = sizeof(peer);
    struct sub_record *record =
        sub_begin(SUB_ACCEPT, (uint16_t)op, start, length != 0 ? sub_field_size(length) : 0);
    if (record == NULL)
        return;
    record->result = accepted;
    record->error = error;
    record->arg[0] = fd;
    if (length != 0)
        sub_put((unsigned char *)(record + 1), SUB_TAG_ADDRESS, &peer, length);
    sub_commit(record);
    sub_descriptor_named(accepted);
}

HOOK(int, accept, (int fd, struct sockaddr *address, socklen_t *length)) {
    typedef int accept_function(int, struct sockaddr *, socklen_t *);
    uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);
    accept_function *next = NEXT(accept, accept_function *);
    int accepted = next != NULL ? next(fd, address, length)
                                : (int)sub_libc_result(SYS4(SYS_accept4, fd, address, length, 0));
    record_accept(SUB_OP_accept, start, fd, accepted);
    return accepted;
}

HOOK(int, accept4, (int fd, struct sockaddr *address, socklen_t *length, int flags)) {
    typedef int accept_function(int, struct sockaddr *, socklen_t *, int);
    uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);
    accept_function *next = NEXT(accept4, accept_function *);
    int accepted = next != NULL
                       ? next(fd, address, length, flags)
                       : (int)sub_libc_result(SYS4(SYS_accept4, fd, address, length, flags));
    record_accept(SUB_OP_accept4, start, fd, accepted);
    return accepted;
}
