/*
 * System calls that a program makes by number, and filters on system calls.
 *
 * A program may reach anything through syscall, vfork and clone too: so its hook is a jump without
 * a frame. What matters to a recording and has no such effect on the stack goes through a function of
 * ours instead of libc's, because the result is part of the record.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <time.h>

#include "change.h"
#include "descriptors.h"
#include "hook.h"
#include "jump.h"
#include "process.h"
#include "sums.h"
#include "system.h"

/* Both ways of installing a filter are watched: see filters.c. */
HOOK(int, prctl, (int option, ...)) {
    va_list arguments;
    va_start(arguments, option);
    unsigned long a = va_arg(arguments, unsigned long);
    unsigned long b = va_arg(arguments, unsigned long);
    unsigned long c = va_arg(arguments, unsigned long);
    unsigned long d = va_arg(arguments, unsigned long);
    va_end(arguments);
    typedef int prctl_function(int, ...);
    prctl_function *next = NEXT(prctl, prctl_function *);
    bool quiet = option == PR_SET_SECCOMP &&
                 sub_before_filter(a == SECCOMP_MODE_FILTER ? (const void *)b : NULL);
    int result = next != NULL ? next(option, a, b, c, d)
                              : (int)sub_libc_result(SYS5(SYS_prctl, option, a, b, c, d));
    if (quiet && result != 0)
        sub_become_loud();
    return result;
}

/* --- calls whose result is recorded ----------------------------------------------------------- */

static long opened(enum sub_operation op, uint64_t start, int dirfd, const char *path, int flags,
                   int mode, long fd) {
    fd = sub_libc_result(fd);
    if (start == 0) {
        sub_descriptor_unnamed((int)fd);
        return fd;
    }
    struct sub_call call = {
        .type = SUB_OPEN,
        .op = (uint16_t)op,
        .error = sub_error(fd < 0),
        .start_ns = start,
        .result = fd,
        .arg = {dirfd, flags, mode, 0},
        .path = path,
    };
    sub_descriptor_named((int)fd);
    sub_record_call(&call);
    return fd;
}

static long open_how(int dirfd, const char *path, const struct open_how *how, size_t size) {
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    long fd = SYS4(SYS_openat2, dirfd, path, how, size);
    /* The kernel refuses some calls (E2BIG, EINVAL) before it looks at what is asked for. */
    bool told = size >= sizeof(*how) && (fd >= 0 || sub_readable(how, sizeof(*how)));
    /* An absolute path starts at the directory then, as one without its slashes does. */
    if (told && fd >= 0 && (how->resolve & RESOLVE_IN_ROOT) != 0 && path[0] == '/') {
        while (*path == '/')
            path++;
        path = *path != '\0' ? path : ".";
    }
    return opened(SUB_OP_openat2, start, dirfd, path, told ? (int)how->flags : 0,
                  told ? (int)how->mode : 0, fd);
}

static long changed(enum sub_operation op, uint64_t start, long result, const char *path,
                    const char *path2, int dirfd, long flags, long mode, int dirfd2) {
    result = sub_libc_result(result);
    sub_record_change(op, start, result, path, path2, dirfd, (int)flags, (int)mode, dirfd2);
    return result;
}

static long looked_up(enum sub_operation op, int dirfd, const char *path, long result) {
    result = sub_libc_result(result);
    if (sub_wants(SUB_CLASS_STAT))
        sub_count_stat(op, dirfd, path, result, result < 0);
    return result;
}

static long install_filter(long operation, long flags, long program) {
    bool quiet =
        sub_before_filter(operation == SECCOMP_SET_MODE_FILTER ? (const void *)program : NULL);
    long result = sub_libc_result(SYS3(SYS_seccomp, operation, flags, program));
    if (quiet && result < 0)
        sub_become_loud();
    return result;
}

/* A copy of the process: the frame is there in both. */
static long forked(enum sub_operation op, uint64_t start, long child) {
    child = sub_libc_result(child);
    if (start == 0)
        return child;
    if (child == 0) {
        sub_forked_child();
        return 0;
    }
    int error = sub_error(child < 0);
    struct sub_record *record = sub_begin(SUB_FORK, (uint16_t)op, start, 0);
    if (record != NULL) {
        record->result = child;
        record->error = error;
        sub_commit(record);
    }
    return child;
}

#define PATH(word) ((const char *)(word))

static long recorded_files(long number, long a, long b, long c, long d, long e) {
    uint64_t start = sub_enter_class(SUB_CLASS_MUTATE);
    switch (number) {
    case SYS_renameat2:
        return changed(SUB_OP_renameat2, start, SYS5(number, a, b, c, d, e), PATH(b), PATH(d),
                       (int)a, e, 0, (int)c);
    case SYS_linkat:
        return changed(SUB_OP_linkat, start, SYS5(number, a, b, c, d, e), PATH(b), PATH(d), (int)a,
                       e, 0, (int)c);
    case SYS_symlinkat:
        return changed(SUB_OP_symlinkat, start, SYS3(number, a, b, c), PATH(c), PATH(a), (int)b, 0,
                       0, AT_FDCWD);
    case SYS_unlinkat:
        return changed(SUB_OP_unlinkat, start, SYS3(number, a, b, c), PATH(b), NO_PATH, (int)a, c,
                       0, AT_FDCWD);
    case SYS_mkdirat:
        return changed(SUB_OP_mkdirat, start, SYS3(number, a, b, c), PATH(b), NO_PATH, (int)a, 0, c,
                       AT_FDCWD);
    case SYS_fchmodat:
        return changed(SUB_OP_fchmodat, start, SYS3(number, a, b, c), PATH(b), NO_PATH, (int)a, 0,
                       c, AT_FDCWD);
    case SYS_fchownat:
        return changed(SUB_OP_fchownat, start, SYS5(number, a, b, c, d, e), PATH(b), NO_PATH,
                       (int)a, c, d, AT_FDCWD);
#ifdef SYS_rename
    case SYS_rename:
        return changed(SUB_OP_rename, start, SYS2(number, a, b), PATH(a), PATH(b), AT_FDCWD, 0, 0,
                       AT_FDCWD);
    case SYS_unlink:
        return changed(SUB_OP_unlink, start, SYS1(number, a), PATH(a), NO_PATH, AT_FDCWD, 0, 0,
                       AT_FDCWD);
    case SYS_mkdir:
        return changed(SUB_OP_mkdir, start, SYS2(number, a, b), PATH(a), NO_PATH, AT_FDCWD, 0, b,
                       AT_FDCWD);
#endif
    default:
        return sub_libc_result(SYS5(number, a, b, c, d, e));
    }
}

/* Takes libc's place for the numbers that sub_prepare_syscall sends here. */
static long recorded_syscall(long number, long a, long b, long c, long d, long e) {
    switch (number) {
    case SYS_openat:
        return opened(SUB_OP_openat, sub_enter_class(SUB_CLASS_OPEN), (int)a, PATH(b), (int)c,
                      (int)d, SYS4(number, a, b, c, d));
#ifdef SYS_open
    case SYS_open:
        return opened(SUB_OP_open, sub_enter_class(SUB_CLASS_OPEN), AT_FDCWD, PATH(a), (int)b,
                      (int)c, SYS3(number, a, b, c));
#endif
    case SYS_openat2:
        return open_how((int)a, PATH(b), (const struct open_how *)c, (size_t)d);
    case SYS_memfd_create:
        return opened(SUB_OP_memfd_create, sub_enter_class(SUB_CLASS_OPEN), AT_FDCWD, PATH(a),
                      O_RDWR | O_CREAT, 0, SYS2(number, a, b));
    case SYS_statx:
        return looked_up(SUB_OP_statx, (int)a, PATH(b), SYS5(number, a, b, c, d, e));
    case SYS_newfstatat:
        return looked_up(SUB_OP_fstatat, (int)a, PATH(b), SYS4(number, a, b, c, d));
    case SYS_faccessat:
    case SYS_faccessat2:
        return looked_up(SUB_OP_faccessat, (int)a, PATH(b), SYS4(number, a, b, c, d));
    case SYS_seccomp:
        return install_filter(a, b, c);
    case SYS_execve:
        return sub_execve(SUB_OP_execve, PATH(a), (char *const *)b, (char *const *)c);
    case SYS_execveat:
        return sub_execveat((int)a, PATH(b), (char *const *)c, (char *const *)d, (int)e);
    case SYS_clone:
    case SYS_clone3: {
        uint64_t start = sub_enter();
        return forked(number == SYS_clone ? SUB_OP_clone : SUB_OP_clone3, start,
                      SYS5(number, a, b, c, d, e));
    }
#ifdef SYS_fork
    case SYS_fork: {
        uint64_t start = sub_enter();
        return forked(SUB_OP_fork, start, SYS0(number));
    }
#endif
    default:
        return recorded_files(number, a, b, c, d, e);
    }
}

/* --- the jump --------------------------------------------------------------------------------- */

/* Those that only count something, or end something. */
static void count_call(long number, long a, long b) {
    switch (number) {
    case SYS_close:
        sub_descriptor_unnamed((int)a);
        break;
#ifdef SYS_dup2
    case SYS_dup2:
#endif
    case SYS_dup3:
        if (a != b)
            sub_descriptor_unnamed((int)b);
        break;
    case SYS_close_range:
        sub_descriptors_unnamed_from((unsigned)a, (unsigned)b);
        break;
    case SYS_exit_group:
        sub_record_exit(SUB_OP_exit_group, (int)a);
        break;
    case SYS_getrandom:
        sub_count_source(SUB_SOURCE_RANDOM);
        break;
    case SYS_getpid:
    case SYS_getppid:
    case SYS_gettid:
        sub_count_source(SUB_SOURCE_PID);
        break;
    case SYS_gettimeofday:
        sub_count_source(SUB_SOURCE_CLOCK);
        break;
    case SYS_clock_gettime:
        sub_count_source(a == CLOCK_REALTIME ? SUB_SOURCE_CLOCK : SUB_SOURCE_MONOTONIC);
        break;
    default:
        break;
    }
}

/* Clones that share the memory, or go on elsewhere, must return to the program's own frame. */
static bool is_plain_copy(uint64_t flags, uint64_t stack) {
    return (flags & CLONE_VM) == 0 && stack == 0;
}

static void record_sharing_clone(enum sub_operation op, uint64_t flags) {
    uint64_t start = sub_enter();
    if (start == 0)
        return;
    bool thread = (flags & CLONE_THREAD) != 0;
    struct sub_record *record = sub_begin(thread ? SUB_THREAD : SUB_VFORK, (uint16_t)op, start, 0);
    if (record != NULL) {
        record->elapsed_ns = 0;
        record->arg[0] = (int32_t)flags;
        sub_commit(record);
    }
    if (!thread && (flags & (CLONE_VM | CLONE_SETTLS)) == CLONE_VM) {
        sub_reserve_for_child();
        sub_self.check = (flags & CLONE_VFORK) != 0 ? 1 : 2;
    }
}

static void *prepare_clone(enum sub_operation op, uint64_t flags, uint64_t stack, void *recorded) {
    if (is_plain_copy(flags, stack))
        return recorded;
    record_sharing_clone(op, flags);
    return sub_next(SUB_OP_syscall);
}

__attribute__((used)) void *sub_prepare_syscall(long number, long a, long b);
void *sub_prepare_syscall(long number, long a, long b) {
    void *recorded = (void *)(uintptr_t)recorded_syscall;
    if (sub_mode == SUB_ON) {
        switch (number) {
        case SYS_seccomp: /* questions about filters change nothing */
            if (a == SECCOMP_SET_MODE_STRICT || a == SECCOMP_SET_MODE_FILTER)
                return recorded;
            break;
        case SYS_clone:
            return prepare_clone(SUB_OP_clone, (uint64_t)a, (uint64_t)b, recorded);
        case SYS_clone3: {
            const struct clone_args *arguments = (const struct clone_args *)a;
            if (!sub_readable(arguments, sizeof(uint64_t) * 8))
                break;
            return prepare_clone(SUB_OP_clone3, arguments->flags, arguments->stack, recorded);
        }
#ifdef SYS_vfork
        case SYS_vfork:
            record_sharing_clone(SUB_OP_vfork, CLONE_VM | CLONE_VFORK);
            break;
        case SYS_fork:
        case SYS_open:
        case SYS_rename:
        case SYS_unlink:
        case SYS_mkdir:
#endif
        case SYS_openat:
        case SYS_openat2:
        case SYS_memfd_create:
        case SYS_statx:
        case SYS_newfstatat:
        case SYS_faccessat:
        case SYS_faccessat2:
        case SYS_execve:
        case SYS_execveat:
        case SYS_renameat2:
        case SYS_linkat:
        case SYS_symlinkat:
        case SYS_unlinkat:
        case SYS_mkdirat:
        case SYS_fchmodat:
        case SYS_fchownat:
            return recorded;
        default:
            count_call(number, a, b);
            break;
        }
    }
    return sub_next(SUB_OP_syscall);
}

JUMP_HOOK(syscall, sub_prepare_syscall);
