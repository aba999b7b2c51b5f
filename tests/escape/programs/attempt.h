/*
 * Hostile programs, many in one executable: `escape NAME [WORD...]` runs the attempt of that name
 * and says how it went in one line: "GOT ..." or "REFUSED ERRNO". A new one is a function here and
 * a row in tests/escape/cases.py.
 */
#ifndef SUBSTRATE_ESCAPE_ATTEMPT_H
#define SUBSTRATE_ESCAPE_ATTEMPT_H

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define REFUSED (-1L) /* what system calls answer; errno tells more */

typedef long attempt(void);
void register_attempt(const char *name, attempt *function);

#define ATTEMPT(name)                                                                              \
    static long name(void);                                                                        \
    __attribute__((constructor)) static void register_##name(void) {                               \
        register_attempt(#name, name);                                                             \
    }                                                                                              \
    static long name(void)

/* The words after the attempt's name. */
extern char **words;
extern FILE *report; /* standard output, if it is not what the attempt is about */

/* Says what was got; returns 0. */
long show(const char *text);
/* Reads a file and shows its first bytes; 0 bytes are nothing (ENODATA). */
long show_file(int directory, const char *path, int flags);
long show_fd(int fd);

#endif
