/*
 * Threads, and namespaces that the caller moves to.
 */
#define _GNU_SOURCE 1

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "hook.h"
#include "system.h"

static void record_thread(enum sub_operation op, uint64_t start, int result, int error,
                          int argument) {
    struct sub_record *record = sub_begin(SUB_THREAD, (uint16_t)op, start, 0);
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    record->arg[0] = argument;
    sub_commit(record);
}

/* The new thread says who it is with its first record: its id stands in each. */
HOOK(int, pthread_create,
     (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)) {
    typedef int create_function(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    uint64_t start = sub_enter();
    create_function *next = NEXT(pthread_create, create_function *);
    if (next == NULL)
        return ENOSYS;
    int error = next(thread, attributes, run, argument);
    if (start != 0)
        record_thread(SUB_OP_pthread_create, start, error, error, 0);
    return error;
}

/* Declared by hand: <threads.h> came with glibc 2.28, and this is built for older ones too. */
#define THRD_ERROR 2

HOOK(int, thrd_create, (void *thread, int (*run)(void *), void *argument)) {
    uint64_t start = sub_enter();
    int (*next)(void *, int (*)(void *), void *) =
        NEXT(thrd_create, int (*)(void *, int (*)(void *), void *));
    if (next == NULL)
        return THRD_ERROR;
    int result = next(thread, run, argument);
    if (start != 0)
        record_thread(SUB_OP_thrd_create, start, result, 0, 0);
    return result;
}

/* Which namespaces: the CLONE_* flags stand in arg[0]. */
HOOK(int, unshare, (int flags)) {
    uint64_t start = sub_enter();
    int (*next)(int) = NEXT(unshare, int (*)(int));
    int result = next != NULL ? next(flags) : (int)sub_libc_result(SYS1(SYS_unshare, flags));
    if (start != 0)
        record_thread(SUB_OP_unshare, start, result, sub_error(result < 0), flags);
    return result;
}

HOOK(int, setns, (int fd, int flags)) {
    uint64_t start = sub_enter();
    int (*next)(int, int) = NEXT(setns, int (*)(int, int));
    int result = next != NULL ? next(fd, flags) : (int)sub_libc_result(SYS2(SYS_setns, fd, flags));
    if (start != 0)
        record_thread(SUB_OP_setns, start, result, sub_error(result < 0), flags);
    return result;
}
