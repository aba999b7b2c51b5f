/*
 * Connections and name look-ups.
 */
#define _GNU_SOURCE 1

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "hook.h"
#include "system.h"

#define ANSWERS_MAX 16

static void record_connect(enum sub_operation op, uint64_t start, int fd,
                           const struct sockaddr *address, socklen_t length, int result) {
    int error = sub_error(result < 0);
    uint32_t bytes =
        length < sizeof(struct sockaddr_storage) ? length : sizeof(struct sockaddr_storage);
    uint32_t flags = 0;
    /* EINPROGRESS and the like come after the kernel read the address; these need not. */
    if ((error == EFAULT || error == EINVAL || error == EBADF || error == ENOTSOCK ||
         error == EPERM || error == EACCES) &&
        !sub_readable(address, bytes)) {
        bytes = 0;
        flags = SUB_FLAG_FAULT;
    }
    if (address == NULL)
        bytes = 0;
    struct sub_record *record = sub_begin(SUB_CONNECT, (uint16_t)op, start, sub_field_size(bytes));
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    record->flags |= flags;
    record->arg[0] = fd;
    sub_put((unsigned char *)(record + 1), SUB_TAG_ADDRESS, address, bytes);
    sub_commit(record);
}

typedef int connect_function(int, const struct sockaddr *, socklen_t);

#define CONNECT_HOOK(symbol)                                                                       \
    HOOK(int, symbol, (int fd, const struct sockaddr *address, socklen_t length)) {                \
        uint64_t start = sub_enter();                                                              \
        connect_function *next = NEXT(symbol, connect_function *);                                 \
        int result = next != NULL ? next(fd, address, length)                                      \
                                  : (int)sub_libc_result(SYS3(SYS_connect, fd, address, length));  \
        if (start != 0)                                                                            \
            record_connect(SUB_OP_##symbol, start, fd, address, length, result);                   \
        return result;                                                                             \
    }

CONNECT_HOOK(connect)
CONNECT_HOOK(__connect)

static void record_answers(uint64_t start, const char *node, const char *service, int result,
                           const struct addrinfo *answers) {
    struct sub_text name = sub_text(node, 0);
    struct sub_text port = sub_text(service, 0);
    uint32_t fields = sub_text_size(name) + sub_text_size(port);
    int count = 0;
    for (const struct addrinfo *answer = answers; answer != NULL && count < ANSWERS_MAX;
         answer = answer->ai_next, count++)
        fields += sub_field_size(answer->ai_addrlen < sizeof(struct sockaddr_storage)
                                     ? answer->ai_addrlen
                                     : sizeof(struct sockaddr_storage));
    int error = result == EAI_SYSTEM ? errno : 0;
    struct sub_record *record = sub_begin(SUB_RESOLVE, SUB_OP_getaddrinfo, start, fields);
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    unsigned char *at = sub_put_text((unsigned char *)(record + 1), SUB_TAG_NAME, name);
    at = sub_put_text(at, SUB_TAG_SERVICE, port);
    for (const struct addrinfo *answer = answers; count > 0; answer = answer->ai_next, count--)
        at = sub_put(at, SUB_TAG_ADDRESS, answer->ai_addr,
                     answer->ai_addrlen < sizeof(struct sockaddr_storage)
                         ? answer->ai_addrlen
                         : sizeof(struct sockaddr_storage));
    sub_commit(record);
}

HOOK(int, getaddrinfo,
     (const char *node, const char *service, const struct addrinfo *hints,
      struct addrinfo **answers)) {
    typedef int resolve_function(const char *, const char *, const struct addrinfo *,
                                 struct addrinfo **);
    uint64_t start = sub_enter();
    resolve_function *next = NEXT(getaddrinfo, resolve_function *);
    if (next == NULL) {
        errno = ENOSYS;
        return EAI_SYSTEM;
    }
    int result = next(node, service, hints, answers);
    if (start != 0)
        record_answers(start, node, service, result, result == 0 ? *answers : NULL);
    return result;
}
