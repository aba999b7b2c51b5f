/*
 * What the parts that write event lines share.
 */
#ifndef SUBSTRATE_DECODE_WRITING_H
#define SUBSTRATE_DECODE_WRITING_H

#include "decode.h"

#ifndef FLUSH_BYTES
#define FLUSH_BYTES (1u << 20)
#endif
#define ACTION_KEYS 64u

/* File actions that were asked for and wait for their posix_spawn. */
struct actions {
    uint64_t key;
    struct buffer list; /* see actions.c */
    bool moved;         /* by one of them, to cwd: then their relative paths start there */
    char *cwd;          /* PATH_BYTES */
    uint32_t cwd_length;
};

struct writer {
    struct images *images;
    struct segments *segments;
    const struct options *options;
    struct summary *summary;
    struct places *places;           /* of the image */
    struct descriptors *descriptors; /* of the image */
    struct sums *sums;               /* of the image */
    struct sub_record *exec; /* the last exec, kept until it is known whether it came back */
    bool have_exec;
    uint32_t exec_image;
    char exec_cwd[SUB_STRING_MAX]; /* as it was at the call */
    uint32_t exec_cwd_length;
    struct buffer out;
    struct buffer prefix; /* between "ts" and the operation's name, for the current span */
    struct buffer suffix; /* what ends every line but its source */
    uint64_t prefix_span, prefix_parent;
    char cwd[SUB_STRING_MAX];
    uint32_t cwd_length;
    char child_cwd[SUB_STRING_MAX]; /* of the vfork child that ran last */
    uint32_t child_cwd_length;
    uint32_t child_tid;
    char path[PATH_BYTES], path2[PATH_BYTES];
    struct actions actions[ACTION_KEYS];
    uint32_t action_next;
    struct buffer actions_json; /* those of the spawn that is written now */
};

/* musl's O_ACCMODE has O_PATH in it. */
#define ACCESS_BITS 3

bool is_write_open(int flags);

void flush(struct writer *writer);
/* {"ts":... */
void write_time(const struct writer *writer, struct buffer *out, const struct image *image,
                uint64_t at_ns);
/* ,"event_type":... and the ids that all lines but those of calls start with */
void write_ids(struct writer *writer, const struct image *image, const char *type,
               const char *component);
void write_source(struct writer *writer, bool kernel);
void write_address(struct buffer *out, struct slice address);
/* Of a socket in the file system; empty for others. */
struct slice socket_path(struct slice address);

/* One line for one call. */
void write_call(struct writer *writer, const struct image *image, const struct sub_record *record,
                const struct fields *fields, const struct event *event);
void write_open_flags(struct buffer *out, int flags);

/* One file action that is asked for. */
void take_action(struct writer *writer, const struct sub_record *record,
                 const struct fields *fields, struct slice cwd);
/* Those of a spawn, into actions_json; returns where they led to, which its path starts from. */
struct slice do_actions(struct writer *writer, const struct fields *fields, struct slice cwd);

void write_start(struct writer *writer, const struct image *image);
void write_end(struct writer *writer, const struct image *image);

struct sums *sums_new(void);
void sums_free(struct sums *sums);
/* Adds a SUB_STAT, SUB_TRANSFER or SUB_SOURCES; `path` is absolute, or none. */
void sums_take(struct writer *writer, const struct image *image, const struct sub_record *record,
               const struct fields *fields, struct slice path);
/* Writes what was summed up for an image, and forgets it. */
void sums_write(struct writer *writer, const struct image *image);

#endif
