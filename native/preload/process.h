/*
 * What the parts of the library that know about processes share: start.c takes up recording, hello.c
 * says who this is, segment.c makes files, process.c gives threads their places in them.
 */
#ifndef SUBSTRATE_PRELOAD_PROCESS_H
#define SUBSTRATE_PRELOAD_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "events.h"

#define SUB_DIRECTORY_MAX 256

struct new_segment {
    unsigned char *base;
    uint64_t size;
    uint32_t umask;
};

extern char sub_directory[SUB_DIRECTORY_MAX];
/*
 * How the library came into this process, when that was LD_PRELOAD: its entry there, and the whole
 * SUBSTRATE_SEGMENTS=... entry; empty otherwise. They are handed on across exec.
 */
extern char sub_preload_path[SUB_DIRECTORY_MAX];
extern char sub_directory_variable[sizeof(SUB_SEGMENT_VARIABLE) + SUB_DIRECTORY_MAX];
extern char **sub_arguments;
extern int sub_argument_count;
extern char **sub_environment; /* as the image was started with */

long sub_make_segment(const struct sub_identity *self, uint32_t chain, uint32_t index,
                      uint64_t size, struct new_segment *made);
/* The first number after self's that no segment has, at most `most`. */
uint32_t sub_free_exec_number(const struct sub_identity *self, uint32_t most);
uint64_t sub_segment_size(uint32_t index, uint32_t length);
/* `parent`: of a forked child, else NULL. */
void sub_identify(struct sub_identity *self, const struct sub_identity *parent);
void sub_write_exec_hello(uint32_t umask);
void sub_write_forked_hello(uint32_t umask, const struct sub_identity *parent);
bool sub_make_process_page(void);
void sub_start_first_image(void);

void sub_find_clock(void);
uint64_t sub_clock(int clock);
void *sub_find_function(const char *name);
/* The hook of that name; NULL. */
void *sub_own_function(const char *name);
uint64_t sub_hash_variable(const char *variable, size_t length);
/* False where it is a vfork child that does: its parent goes on as before. */
bool sub_become_quiet(void);
/* The filter was not installed after all. */
void sub_become_loud(void);
/*
 * Before a filter (a struct sock_fprog; NULL: strict mode) is installed. True when the process
 * became quiet for it.
 */
bool sub_before_filter(const void *program);
/* At the start: is this below a filter that may kill for what the library does? */
bool sub_below_filter(void);
/* Says something of the image, by a bit of sub_segment.flags. */
void sub_flag_segment(uint32_t flag);
void sub_reserve_for_child(void);
void sub_record_exit(uint16_t op, int status);
/* As libc's functions of these names, and recorded. */
int sub_execve(enum sub_operation op, const char *path, char *const argv[],
               char *const environment[]);
int sub_execveat(int dirfd, const char *path, char *const argv[], char *const environment[],
                 int flags);

#endif
