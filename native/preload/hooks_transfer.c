/*
 * Reading and writing: calls and bytes, summed by descriptor. Calls that failed moved nothing and
 * are not counted.
 *
 * What streams (stdio) move does not come by here: libc reads and writes for them inside. Nor does
 * what a program moves through a mapping.
 */
#define _GNU_SOURCE 1

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hook.h"
#include "sums.h"
#include "system.h"

/*
 * TRANSFER_HOOK(symbol, parameters, types, arguments; what to do without libc; does it write).
 * All of them start with the descriptor and return the number of bytes.
 */
#define TRANSFER_HOOK(symbol, parameters, types, arguments, fallback, writes)                      \
    HOOK(ssize_t, symbol, parameters) {                                                            \
        ssize_t(*next) types = NEXT(symbol, ssize_t(*) types);                                     \
        ssize_t moved = next != NULL ? next arguments : (ssize_t)sub_libc_result(fallback);        \
        if (likely(moved >= 0) && sub_wants(SUB_CLASS_TRANSFER))                                   \
            sub_count_transfer(SUB_OP_##symbol, fd, writes, (uint64_t)moved, NULL, 0);             \
        return moved;                                                                              \
    }

#define READ_HOOK(symbol)                                                                          \
    TRANSFER_HOOK(symbol, (int fd, void *bytes, size_t size), (int, void *, size_t),               \
                  (fd, bytes, size), SYS3(SYS_read, fd, bytes, size), false)
#define WRITE_HOOK(symbol)                                                                         \
    TRANSFER_HOOK(symbol, (int fd, const void *bytes, size_t size), (int, const void *, size_t),   \
                  (fd, bytes, size), SYS3(SYS_write, fd, bytes, size), true)

READ_HOOK(read)
READ_HOOK(__read)
WRITE_HOOK(write)
WRITE_HOOK(__write)

#define PREAD_HOOK(symbol)                                                                         \
    TRANSFER_HOOK(symbol, (int fd, void *bytes, size_t size, off_t at),                            \
                  (int, void *, size_t, off_t), (fd, bytes, size, at),                             \
                  SYS4(SYS_pread64, fd, bytes, size, at), false)
#define PWRITE_HOOK(symbol)                                                                        \
    TRANSFER_HOOK(symbol, (int fd, const void *bytes, size_t size, off_t at),                      \
                  (int, const void *, size_t, off_t), (fd, bytes, size, at),                       \
                  SYS4(SYS_pwrite64, fd, bytes, size, at), true)

PREAD_HOOK(pread)
PREAD_HOOK(pread64)
PREAD_HOOK(__pread64)
PWRITE_HOOK(pwrite)
PWRITE_HOOK(pwrite64)
PWRITE_HOOK(__pwrite64)

/* The FORTIFY variants get the size of the buffer as well, and abort where it is too small. */
TRANSFER_HOOK(__read_chk, (int fd, void *bytes, size_t size, size_t room),
              (int, void *, size_t, size_t), (fd, bytes, size, room),
              SYS3(SYS_read, fd, bytes, size), false)

#define PREAD_CHK_HOOK(symbol)                                                                     \
    TRANSFER_HOOK(symbol, (int fd, void *bytes, size_t size, off_t at, size_t room),               \
                  (int, void *, size_t, off_t, size_t), (fd, bytes, size, at, room),               \
                  SYS4(SYS_pread64, fd, bytes, size, at), false)

PREAD_CHK_HOOK(__pread_chk)
PREAD_CHK_HOOK(__pread64_chk)

/* --- vectors ---------------------------------------------------------------------------------- */

#define VECTOR_HOOK(symbol, number, writes)                                                        \
    TRANSFER_HOOK(symbol, (int fd, const struct iovec *vector, int count),                         \
                  (int, const struct iovec *, int), (fd, vector, count),                           \
                  SYS3(number, fd, vector, count), writes)

VECTOR_HOOK(readv, SYS_readv, false)
VECTOR_HOOK(writev, SYS_writev, true)

/* The kernel takes the offset in two words, and looks at the first alone on 64-bit machines. */
#define VECTOR_AT_HOOK(symbol, number, writes)                                                     \
    TRANSFER_HOOK(symbol, (int fd, const struct iovec *vector, int count, off_t at),               \
                  (int, const struct iovec *, int, off_t), (fd, vector, count, at),                \
                  SYS5(number, fd, vector, count, at, 0), writes)

VECTOR_AT_HOOK(preadv, SYS_preadv, false)
VECTOR_AT_HOOK(preadv64, SYS_preadv, false)
VECTOR_AT_HOOK(pwritev, SYS_pwritev, true)
VECTOR_AT_HOOK(pwritev64, SYS_pwritev, true)

#define VECTOR_2_HOOK(symbol, number, writes)                                                      \
    TRANSFER_HOOK(symbol, (int fd, const struct iovec *vector, int count, off_t at, int flags),    \
                  (int, const struct iovec *, int, off_t, int), (fd, vector, count, at, flags),    \
                  SYS6(number, fd, vector, count, at, 0, flags), writes)

VECTOR_2_HOOK(preadv2, SYS_preadv2, false)
VECTOR_2_HOOK(preadv64v2, SYS_preadv2, false)
VECTOR_2_HOOK(pwritev2, SYS_pwritev2, true)
VECTOR_2_HOOK(pwritev64v2, SYS_pwritev2, true)

/* --- sockets ---------------------------------------------------------------------------------- */

#define SEND_HOOK(symbol)                                                                          \
    TRANSFER_HOOK(symbol, (int fd, const void *bytes, size_t size, int flags),                     \
                  (int, const void *, size_t, int), (fd, bytes, size, flags),                      \
                  SYS6(SYS_sendto, fd, bytes, size, flags, NULL, 0), true)
#define RECEIVE_HOOK(symbol)                                                                       \
    TRANSFER_HOOK(symbol, (int fd, void *bytes, size_t size, int flags),                           \
                  (int, void *, size_t, int), (fd, bytes, size, flags),                            \
                  SYS6(SYS_recvfrom, fd, bytes, size, flags, NULL, NULL), false)

SEND_HOOK(send)
SEND_HOOK(__send)
RECEIVE_HOOK(recv)
RECEIVE_HOOK(__recv)

TRANSFER_HOOK(__recv_chk, (int fd, void *bytes, size_t size, size_t room, int flags),
              (int, void *, size_t, size_t, int), (fd, bytes, size, room, flags),
              SYS6(SYS_recvfrom, fd, bytes, size, flags, NULL, NULL), false)
TRANSFER_HOOK(recvfrom,
              (int fd, void *bytes, size_t size, int flags, struct sockaddr *address,
               socklen_t *length),
              (int, void *, size_t, int, struct sockaddr *, socklen_t *),
              (fd, bytes, size, flags, address, length),
              SYS6(SYS_recvfrom, fd, bytes, size, flags, address, length), false)
TRANSFER_HOOK(__recvfrom_chk,
              (int fd, void *bytes, size_t size, size_t room, int flags, struct sockaddr *address,
               socklen_t *length),
              (int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *),
              (fd, bytes, size, room, flags, address, length),
              SYS6(SYS_recvfrom, fd, bytes, size, flags, address, length), false)
TRANSFER_HOOK(recvmsg, (int fd, struct msghdr *message, int flags), (int, struct msghdr *, int),
              (fd, message, flags), SYS3(SYS_recvmsg, fd, message, flags), false)

/* Who a datagram went to is seen nowhere else: there is no connect. The kernel has read it. */
HOOK(ssize_t, sendto,
     (int fd, const void *bytes, size_t size, int flags, const struct sockaddr *address,
      socklen_t length)) {
    typedef ssize_t send_function(int, const void *, size_t, int, const struct sockaddr *,
                                  socklen_t);
    send_function *next = NEXT(sendto, send_function *);
    ssize_t moved =
        next != NULL
            ? next(fd, bytes, size, flags, address, length)
            : (ssize_t)sub_libc_result(SYS6(SYS_sendto, fd, bytes, size, flags, address, length));
    if (likely(moved >= 0) && sub_wants(SUB_CLASS_TRANSFER))
        sub_count_transfer(SUB_OP_sendto, fd, true, (uint64_t)moved, address,
                           address != NULL ? length : 0);
    return moved;
}

static void count_message(enum sub_operation op, int fd, const struct msghdr *message,
                          uint64_t bytes) {
    sub_count_transfer(op, fd, true, bytes, message->msg_name,
                       message->msg_name != NULL ? message->msg_namelen : 0);
}

HOOK(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags)) {
    typedef ssize_t send_function(int, const struct msghdr *, int);
    send_function *next = NEXT(sendmsg, send_function *);
    ssize_t moved = next != NULL ? next(fd, message, flags)
                                 : (ssize_t)sub_libc_result(SYS3(SYS_sendmsg, fd, message, flags));
    if (likely(moved >= 0) && sub_wants(SUB_CLASS_TRANSFER))
        count_message(SUB_OP_sendmsg, fd, message, (uint64_t)moved);
    return moved;
}

/* Each message of the vector is a transfer, and has its address. */
#define SENDMMSG_HOOK(symbol)                                                                      \
    HOOK(int, symbol, (int fd, struct mmsghdr *messages, unsigned count, int flags)) {             \
        typedef int send_function(int, struct mmsghdr *, unsigned, int);                           \
        send_function *next = NEXT(symbol, send_function *);                                       \
        int sent = next != NULL                                                                    \
                       ? next(fd, messages, count, flags)                                          \
                       : (int)sub_libc_result(SYS4(SYS_sendmmsg, fd, messages, count, flags));     \
        if (sent > 0 && sub_wants(SUB_CLASS_TRANSFER)) {                                           \
            for (int i = 0; i < sent; i++)                                                         \
                count_message(SUB_OP_##symbol, fd, &messages[i].msg_hdr, messages[i].msg_len);     \
        }                                                                                          \
        return sent;                                                                               \
    }

SENDMMSG_HOOK(sendmmsg)
SENDMMSG_HOOK(__sendmmsg)

HOOK(int, recvmmsg,
     (int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)) {
    typedef int receive_function(int, struct mmsghdr *, unsigned, int, struct timespec *);
    receive_function *next = NEXT(recvmmsg, receive_function *);
    int got = next != NULL
                  ? next(fd, messages, count, flags, timeout)
                  : (int)sub_libc_result(SYS5(SYS_recvmmsg, fd, messages, count, flags, timeout));
    if (got > 0 && sub_wants(SUB_CLASS_TRANSFER)) {
        for (int i = 0; i < got; i++)
            sub_count_transfer(SUB_OP_recvmmsg, fd, false, messages[i].msg_len, NULL, 0);
    }
    return got;
}

/* --- from descriptor to descriptor ------------------------------------------------------------ */

static void count_copy(enum sub_operation op, int from, int to, ssize_t moved) {
    if (moved < 0 || !sub_wants(SUB_CLASS_TRANSFER))
        return;
    sub_count_transfer(op, from, false, (uint64_t)moved, NULL, 0);
    sub_count_transfer(op, to, true, (uint64_t)moved, NULL, 0);
}

#define SENDFILE_HOOK(symbol)                                                                      \
    HOOK(ssize_t, symbol, (int to, int from, off_t *at, size_t size)) {                            \
        typedef ssize_t copy_function(int, int, off_t *, size_t);                                  \
        copy_function *next = NEXT(symbol, copy_function *);                                       \
        ssize_t moved = next != NULL                                                               \
                            ? next(to, from, at, size)                                             \
                            : (ssize_t)sub_libc_result(SYS4(SYS_sendfile, to, from, at, size));    \
        count_copy(SUB_OP_##symbol, from, to, moved);                                              \
        return moved;                                                                              \
    }

SENDFILE_HOOK(sendfile)
SENDFILE_HOOK(sendfile64)

#define COPY_HOOK(symbol, number)                                                                  \
    HOOK(ssize_t, symbol,                                                                          \
         (int from, off_t *from_at, int to, off_t *to_at, size_t size, unsigned flags)) {          \
        typedef ssize_t copy_function(int, off_t *, int, off_t *, size_t, unsigned);               \
        copy_function *next = NEXT(symbol, copy_function *);                                       \
        ssize_t moved =                                                                            \
            next != NULL                                                                           \
                ? next(from, from_at, to, to_at, size, flags)                                      \
                : (ssize_t)sub_libc_result(SYS6(number, from, from_at, to, to_at, size, flags));   \
        count_copy(SUB_OP_##symbol, from, to, moved);                                              \
        return moved;                                                                              \
    }

COPY_HOOK(copy_file_range, SYS_copy_file_range)
COPY_HOOK(splice, SYS_splice)
