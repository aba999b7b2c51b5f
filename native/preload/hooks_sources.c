/*
 * Reads of what is not the same the next time: clocks, randomness, process ids, the order of
 * directories. Counted by source, and nothing more: these are the cheapest calls that programs make.
 */
#define _GNU_SOURCE 1

#include <dirent.h>
#include <sys/random.h>
#include <sys/time.h>
#include <sys/timeb.h>
#include <time.h>
#include <unistd.h>

#include "hook.h"
#include "process.h"
#include "sums.h"
#include "system.h"

/* SOURCE_HOOK(result, symbol, parameters, types, arguments; without libc; source) */
#define SOURCE_HOOK(type, symbol, parameters, types, arguments, fallback, source)                  \
    HOOK(type, symbol, parameters) {                                                               \
        type(*next) types = NEXT(symbol, type(*) types);                                           \
        sub_count_source(source);                                                                  \
        return next != NULL ? next arguments : (type)(fallback);                                   \
    }

/* --- clocks ----------------------------------------------------------------------------------- */

static enum sub_source clock_source(clockid_t clock) {
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI
               ? SUB_SOURCE_CLOCK
               : SUB_SOURCE_MONOTONIC;
}

#define CLOCK_HOOK(symbol)                                                                         \
    SOURCE_HOOK(int, symbol, (clockid_t clock, struct timespec * now),                             \
                (clockid_t, struct timespec *), (clock, now),                                      \
                sub_libc_result(SYS2(SYS_clock_gettime, clock, now)), clock_source(clock))

CLOCK_HOOK(clock_gettime)
CLOCK_HOOK(__clock_gettime)

#define DAY_HOOK(symbol)                                                                           \
    SOURCE_HOOK(int, symbol, (struct timeval * now, void *zone), (struct timeval *, void *),       \
                (now, zone), sub_libc_result(SYS2(SYS_gettimeofday, now, zone)), SUB_SOURCE_CLOCK)

DAY_HOOK(gettimeofday)
DAY_HOOK(__gettimeofday)

static time_t seconds(time_t *to) {
    time_t now = (time_t)(sub_clock(CLOCK_REALTIME) / 1000000000u);
    if (to != NULL)
        *to = now;
    return now;
}

SOURCE_HOOK(time_t, time, (time_t *now), (time_t *), (now), seconds(now), SUB_SOURCE_CLOCK)

static int calendar_time(struct timespec *now, int base) {
    return base == TIME_UTC && SYS2(SYS_clock_gettime, CLOCK_REALTIME, now) == 0 ? base : 0;
}

SOURCE_HOOK(int, timespec_get, (struct timespec * now, int base), (struct timespec *, int),
            (now, base), calendar_time(now, base), SUB_SOURCE_CLOCK)
SOURCE_HOOK(int, ftime, (struct timeb * now), (struct timeb *), (now), sub_libc_result(-ENOSYS),
            SUB_SOURCE_CLOCK)

/* --- randomness ------------------------------------------------------------------------------- */

/* Where libc has no generator of its own. Returns 0 or a negative errno. */
static long random_bytes(void *to, size_t size) {
    unsigned char *at = to;
    while (size > 0) {
        long got = SYS3(SYS_getrandom, at, size, 0);
        if (got == -EINTR)
            continue;
        if (got <= 0)
            return got;
        at += got;
        size -= (size_t)got;
    }
    return 0;
}

/* The arc4random family cannot say that there is no randomness: libc's ends the program, too. */
static void must_have_random_bytes(void *to, size_t size) {
    if (random_bytes(to, size) != 0)
        __builtin_trap();
}

static int entropy(void *to, size_t size) {
    return (int)sub_libc_result(size > 256 ? -EIO : random_bytes(to, size));
}

static uint32_t random_word(void) {
    uint32_t word;
    must_have_random_bytes(&word, sizeof(word));
    return word;
}

/* Words below 2^32 mod limit are thrown away, so that each remainder is as likely. */
static uint32_t random_below(uint32_t limit) {
    if (limit < 2)
        return 0;
    uint32_t word;
    do
        word = random_word();
    while (word < -limit % limit);
    return word % limit;
}

SOURCE_HOOK(ssize_t, getrandom, (void *to, size_t size, unsigned flags), (void *, size_t, unsigned),
            (to, size, flags), sub_libc_result(SYS3(SYS_getrandom, to, size, flags)),
            SUB_SOURCE_RANDOM)
SOURCE_HOOK(int, getentropy, (void *to, size_t size), (void *, size_t), (to, size),
            entropy(to, size), SUB_SOURCE_RANDOM)
SOURCE_HOOK(uint32_t, arc4random, (void), (void), (), random_word(), SUB_SOURCE_RANDOM)
SOURCE_HOOK(uint32_t, arc4random_uniform, (uint32_t limit), (uint32_t), (limit),
            random_below(limit), SUB_SOURCE_RANDOM)

HOOK(void, arc4random_buf, (void *to, size_t size)) {
    void (*next)(void *, size_t) = NEXT(arc4random_buf, void (*)(void *, size_t));
    sub_count_source(SUB_SOURCE_RANDOM);
    if (next != NULL)
        next(to, size);
    else
        must_have_random_bytes(to, size);
}

/* --- process ids ------------------------------------------------------------------------------ */

SOURCE_HOOK(pid_t, getpid, (void), (void), (), SYS0(SYS_getpid), SUB_SOURCE_PID)
SOURCE_HOOK(pid_t, __getpid, (void), (void), (), SYS0(SYS_getpid), SUB_SOURCE_PID)
SOURCE_HOOK(pid_t, getppid, (void), (void), (), SYS0(SYS_getppid), SUB_SOURCE_PID)
SOURCE_HOOK(pid_t, gettid, (void), (void), (), SYS0(SYS_gettid), SUB_SOURCE_PID)

/* --- directories ------------------------------------------------------------------------------ */

#define READDIR_HOOK(symbol)                                                                       \
    HOOK(void *, symbol, (DIR * directory)) {                                                      \
        void *(*next)(DIR *) = NEXT(symbol, void *(*)(DIR *));                                     \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return NULL;                                                                           \
        }                                                                                          \
        sub_count_source(SUB_SOURCE_DIRECTORY_ORDER);                                              \
        return next(directory);                                                                    \
    }

READDIR_HOOK(readdir)
READDIR_HOOK(readdir64)

#define READDIR_R_HOOK(symbol)                                                                     \
    SOURCE_HOOK(int, symbol, (DIR * directory, void *entry, void **result),                        \
                (DIR *, void *, void **), (directory, entry, result), ENOSYS,                      \
                SUB_SOURCE_DIRECTORY_ORDER)

READDIR_R_HOOK(readdir_r)
READDIR_R_HOOK(readdir64_r)
