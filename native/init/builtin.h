/* What the file operations of builtin*.c share. They run in a process of the box, as its user. */
#ifndef SUBSTRATE_BUILTIN_H
#define SUBSTRATE_BUILTIN_H

#include "init.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>

#define BUFFER_SIZE (256u << 10)
extern uint8_t builtin_buffer[BUFFER_SIZE]; /* whoever runs has it alone: one operation a process */

/* ---- builtin.c ------------------------------------------------------------------------------- */

/* Ends the process; its exit status is `error`. */
_Noreturn void builtin_finish(int error, const char *operation, const char *path);
long long builtin_number(const char *text);
mode_t builtin_mode(const char *text);
/* 0, or an errno. */
int builtin_write_all(int fd, const void *data, size_t size);
int make_directories(const char *path, mode_t mode, bool last_too);

/* ---- builtin_names.c ------------------------------------------------------------------------- */

struct names {
    DIR *dir;
    char **items; /* in the order of their bytes */
    size_t count, room;
};

/*
 * The names in a directory: those from `from` on (NULL: all), the first `limit` of them
 * (SIZE_MAX: all), in memory for twice as many. Takes the descriptor over. 0, or an errno.
 */
int names_read(struct names *names, int fd, const char *from, size_t limit);
void names_release(struct names *names);
int names_fd(const struct names *names);

/* ---- operations: 0, or an errno -------------------------------------------------------------- */

int builtin_read(char **argv);
int builtin_write(char **argv);
int builtin_stat(char **argv);
int builtin_list(char **argv);
int builtin_readlink(char **argv);
int builtin_mkdir(char **argv);
int builtin_remove(char **argv);
int builtin_rename(char **argv);
int builtin_chmod(char **argv);
int builtin_symlink(char **argv);
int builtin_pack(char **argv);
int builtin_unpack(char **argv);
int builtin_watch(char **argv);

/* ---- builtin_entries.c ----------------------------------------------------------------------- */

#define ENTRY_HEAD_MAX 192
/* "<kind> <mode, octal> <uid> <gid> <size> <mtime, ns> <inode> <links>", without NUL. */
size_t entry_head(char head[ENTRY_HEAD_MAX], const struct stat *status);
/* Empty for all but links; `target` has PATH_MAX bytes. */
void entry_target(char *target, int dir, const char *name, const struct stat *status);

#endif
