#include <errno.h>

#include "decode.h"

const char *operation_name(uint16_t op) {
#define NAME(name) #name,
    static const char *const names[] = {SUB_OPERATIONS(NAME)};
#undef NAME
    return op < SUB_OP_COUNT ? names[op] : "unknown";
}

/* The C name of an errno, "E<number>" being nobody's: NULL for those without. */
const char *errno_name(int32_t error) {
#define ERROR(name)                                                                                \
    case name:                                                                                     \
        return #name
    switch (error) {
        ERROR(EPERM);
        ERROR(ENOENT);
        ERROR(ESRCH);
        ERROR(EINTR);
        ERROR(EIO);
        ERROR(ENXIO);
        ERROR(E2BIG);
        ERROR(ENOEXEC);
        ERROR(EBADF);
        ERROR(ECHILD);
        ERROR(EAGAIN);
        ERROR(ENOMEM);
        ERROR(EACCES);
        ERROR(EFAULT);
        ERROR(ENOTBLK);
        ERROR(EBUSY);
        ERROR(EEXIST);
        ERROR(EXDEV);
        ERROR(ENODEV);
        ERROR(ENOTDIR);
        ERROR(EISDIR);
        ERROR(EINVAL);
        ERROR(ENFILE);
        ERROR(EMFILE);
        ERROR(ENOTTY);
        ERROR(ETXTBSY);
        ERROR(EFBIG);
        ERROR(ENOSPC);
        ERROR(ESPIPE);
        ERROR(EROFS);
        ERROR(EMLINK);
        ERROR(EPIPE);
        ERROR(EDOM);
        ERROR(ERANGE);
        ERROR(EDEADLK);
        ERROR(ENAMETOOLONG);
        ERROR(ENOLCK);
        ERROR(ENOSYS);
        ERROR(ENOTEMPTY);
        ERROR(ELOOP);
        ERROR(ENODATA);
        ERROR(ETIME);
        ERROR(ENOLINK);
        ERROR(EPROTO);
        ERROR(EBADMSG);
        ERROR(EOVERFLOW);
        ERROR(EILSEQ);
        ERROR(EUSERS);
        ERROR(ENOTSOCK);
        ERROR(EDESTADDRREQ);
        ERROR(EMSGSIZE);
        ERROR(EPROTOTYPE);
        ERROR(ENOPROTOOPT);
        ERROR(EPROTONOSUPPORT);
        ERROR(ESOCKTNOSUPPORT);
        ERROR(EOPNOTSUPP);
        ERROR(EPFNOSUPPORT);
        ERROR(EAFNOSUPPORT);
        ERROR(EADDRINUSE);
        ERROR(EADDRNOTAVAIL);
        ERROR(ENETDOWN);
        ERROR(ENETUNREACH);
        ERROR(ENETRESET);
        ERROR(ECONNABORTED);
        ERROR(ECONNRESET);
        ERROR(ENOBUFS);
        ERROR(EISCONN);
        ERROR(ENOTCONN);
        ERROR(ESHUTDOWN);
        ERROR(ETIMEDOUT);
        ERROR(ECONNREFUSED);
        ERROR(EHOSTDOWN);
        ERROR(EHOSTUNREACH);
        ERROR(EALREADY);
        ERROR(EINPROGRESS);
        ERROR(ESTALE);
        ERROR(EDQUOT);
        ERROR(ECANCELED);
    default:
        return NULL;
    }
#undef ERROR
}
