#include "attempt.h"

#include <stdbool.h>

#define ATTEMPTS_MAX 256

static struct {
    const char *name;
    attempt *function;
} attempts[ATTEMPTS_MAX];
static size_t count;
static bool shown;
char **words;
FILE *report;

void register_attempt(const char *name, attempt *function) {
    if (count == ATTEMPTS_MAX)
        abort();
    attempts[count].name = name;
    attempts[count++].function = function;
}

long show(const char *text) {
    fprintf(report, "GOT %s\n", text);
    fflush(report);
    shown = true;
    return 0;
}

long show_fd(int fd) {
    char text[257];
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (got < 0)
        return REFUSED;
    if (got == 0) {
        errno = ENODATA;
        return REFUSED;
    }
    text[got] = 0;
    return show(text);
}

long show_file(int directory, const char *path, int flags) {
    return show_fd(openat(directory, path, flags | O_NONBLOCK | O_CLOEXEC));
}

static const char *name_of(int error) {
    static const struct {
        int error;
        const char *name;
    } names[] = {
        {EPERM, "EPERM"},
        {EACCES, "EACCES"},
        {ENOENT, "ENOENT"},
        {ENOSYS, "ENOSYS"},
        {EINVAL, "EINVAL"},
        {EBADF, "EBADF"},
        {EFAULT, "EFAULT"},
        {EROFS, "EROFS"},
        {ESRCH, "ESRCH"},
        {EXDEV, "EXDEV"},
        {EBUSY, "EBUSY"},
        {ENOTDIR, "ENOTDIR"},
        {ENODEV, "ENODEV"},
        {ENXIO, "ENXIO"},
        {EIO, "EIO"},
        {ENODATA, "ENODATA"},
        {ENOTTY, "ENOTTY"},
        {ECONNREFUSED, "ECONNREFUSED"},
        {EEXIST, "EEXIST"},
        {ENOTSUP, "ENOTSUP"},
        {ENETUNREACH, "ENETUNREACH"},
        {ENETDOWN, "ENETDOWN"},
        {ENOTBLK, "ENOTBLK"},
        {ELOOP, "ELOOP"},
        {EAFNOSUPPORT, "EAFNOSUPPORT"},
        {ENOEXEC, "ENOEXEC"},
        {ENOKEY, "ENOKEY"},
        {ENOSPC, "ENOSPC"},
        {EISDIR, "EISDIR"},
        {ETXTBSY, "ETXTBSY"},
        {EOVERFLOW, "EOVERFLOW"},
        {EPROTONOSUPPORT, "EPROTONOSUPPORT"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].error == error)
            return names[i].name;
    return strerror(error);
}

int main(int argument_count, char **arguments) {
    if (argument_count < 2)
        return 2;
    words = arguments + 2;
    report = stdout;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(attempts[i].name, arguments[1]) != 0)
            continue;
        errno = 0;
        if (attempts[i].function() == REFUSED)
            fprintf(report, "REFUSED %s\n", name_of(errno));
        else if (!shown)
            fprintf(report, "GOT\n");
        return 0;
    }
    fprintf(stderr, "no attempt is called %s\n", arguments[1]);
    return 2;
}
