/*
 * substrate-decode: from segments to events, processes and a summary.
 *
 * What lies in a segment was written by programs that nobody trusts. Every length is checked before
 * it is used, every file is read with pread into memory of ours, never mapped (truncating a mapped
 * file is a SIGBUS to its reader), and whatever makes no sense is counted and left out.
 *
 *   segments.c  files and their records          images.c   who ran, whose child, which span
 *   places.c    directories behind descriptors
 *   events.c    one record to one JSON line      summary.c  what is kept of all that
 *   sandbox.c   giving up all rights first       main.c     options and the order of things
 */
#ifndef SUBSTRATE_DECODE_DECODE_H
#define SUBSTRATE_DECODE_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "events.h"
#include "json.h"

#define NONE UINT32_MAX

_Noreturn void die(const char *message);
_Noreturn void die_errno(const char *what);
void *allocate(size_t bytes); /* zeroed; dies when there is none */

struct slice {
    const char *bytes;
    uint32_t length;
};

struct options {
    int directory;
    int summary_fd;
    const char *session, *trace, *span, *world;
    bool have_root;
    int32_t root_pid;
    uint64_t root_after_ns; /* CLOCK_MONOTONIC */
    bool have_utc, have_boot;
    int64_t utc_offset_ns, boot_offset_ns; /* to be added to CLOCK_MONOTONIC */
    uint32_t max_events, max_reads, max_hosts, max_processes;
    uint64_t memory_limit;
    uint32_t cpu_limit_s;
    struct slice *watch;
    uint32_t watch_count;
};

/* --- segments --------------------------------------------------------------------------------- */

#define SEGMENT_NAME_MAX 96
#define SEGMENT_SIZE_MAX (4u << 20)
#define SEGMENTS_MAX (1u << 18)

struct segment {
    char name[SEGMENT_NAME_MAX];
    struct sub_identity self;
    uint32_t chain, index;
    uint32_t state, flags, header_bytes;
    uint64_t lost, created_ns, bytes;
    uint32_t image; /* into images */
    uint32_t owner; /* uid of the file: whom the kernel saw make it */
};

struct segments {
    struct segment *list;
    uint32_t count;
    uint64_t unreadable, foreign, torn, corrupt; /* files, files, records, files */
};

void read_segments(struct segments *segments, int directory);

/* One chain of an image, read in order. */
struct reader {
    const struct segments *segments;
    int directory;
    uint32_t next, end; /* segments still to come */
    uint32_t current;
    int fd;
    uint64_t offset; /* in the file, of the end of the buffer */
    char *bytes;
    size_t at, filled;
    uint64_t torn;
    bool corrupt;
};

#define READER_BYTES (128u << 10)

void reader_open(struct reader *reader, const struct segments *segments, int directory,
                 uint32_t first, uint32_t end);
/* The next whole record, valid until the next call; NULL at the end. */
const struct sub_record *reader_next(struct reader *reader);
void reader_close(struct reader *reader);

/* The fields of a record, each within it. */
struct fields {
    struct slice path, path2, directory, directory2, cwd, argv, exe, name, service, mode;
    const struct sub_hello *hello;
    const uint64_t *env_digest, *key, *directory_id, *directory2_id;
#define FIELDS_MAX 20
    struct slice addresses[FIELDS_MAX];
    uint32_t address_count;
    struct slice variables[FIELDS_MAX];
    uint32_t variable_count;
};

void parse_fields(const struct sub_record *record, struct fields *fields);

/* --- images ----------------------------------------------------------------------------------- */

/* A process image; or, with no segments, one that only others speak of. */
struct image {
    struct sub_identity self;
    uint32_t first_segment, end_segment;
    uint32_t process; /* the first image of the same process */
    uint32_t next;    /* the next image of the same process */
    uint32_t parent;  /* image it was started from, NONE */
    bool hello, selected, uncovered, reported_exit, ended, executed, quiet;
    bool judged; /* `selected` is known */
    int32_t ppid;
    uint32_t umask, uid;
    uint64_t start_ns, end_ns; /* CLOCK_MONOTONIC */
    uint64_t began_ns;         /* start of the events that are filed under its span */
    int64_t utc_offset_ns, boot_offset_ns;
    struct sub_identity forked_from;
    struct slice argv, exe, cwd; /* owned copies */
    uint64_t env_digest;
    bool have_exit;
    int32_t exit_code, signal; /* signal 0: none */
    uint64_t events, lost;
    uint64_t span; /* events are filed under this */
    bool truncated_argv;
};

/* A process that a covered one says it started. */
struct link {
    uint64_t pid_namespace;
    int32_t pid;
    uint32_t from; /* image */
    uint64_t at_ns;
    enum sub_record_type type;
    bool executes; /* a program of its own runs in it: no hello means not covered */
    struct slice path, argv;
    uint32_t image; /* found, or made for it; NONE */
};

struct images {
    struct image *list;
    uint32_t count, size;
    struct link *links;
    uint32_t link_count, link_size;
    uint64_t links_dropped;
    uint32_t root; /* image of the root process, NONE */
    bool root_seen;
    uint64_t unattributed;
};

void build_images(struct images *images, struct segments *segments, const struct options *options);
/* Indices of the selected images in the order in which they began; the caller frees them. */
uint32_t *images_in_order(const struct images *images, uint32_t *count);
/* The image of process `pid` that a vfork child's records belong to, NONE. */
uint32_t image_of_child(const struct images *images, const struct image *parent, int32_t pid,
                        uint64_t at_ns);
/* The image whose span an image's events carry: a forked child's are those of what it runs. */
uint32_t merged_image(const struct images *images, uint32_t image);
const struct image *program_of(const struct images *images, const struct image *image);
uint64_t parent_span(const struct images *images, const struct image *image);

/* --- places ----------------------------------------------------------------------------------- */

struct places;
struct places *places_new(void);
void places_clear(struct places *places);
struct slice places_resolve(struct places *places, const uint64_t *id, struct slice path);

/* --- events and the summary ------------------------------------------------------------------- */

enum event_class {
    CLASS_EXEC,
    CLASS_SPAWN,
    CLASS_FORK,
    CLASS_EXIT,
    CLASS_WAIT,
    CLASS_OPEN_READ,
    CLASS_OPEN_WRITE,
    CLASS_OPEN_FAILED,
    CLASS_MUTATE,
    CLASS_CONNECT,
    CLASS_RESOLVE,
    CLASS_CHDIR,
    CLASS_OTHER,
    CLASS_COUNT,
};

struct summary;

struct event {
    enum event_class class;
    uint64_t at_ns;
    int32_t error;
    struct slice path, path2; /* absolute */
};

struct summary *summary_new(const struct options *options);
void summary_event(struct summary *summary, const struct event *event, const char *line,
                   size_t length);
void summary_read(struct summary *summary, struct slice path);
void summary_host(struct summary *summary, struct slice address, int32_t error);
void summary_answer(struct summary *summary, struct slice name, struct slice address);
void summary_write(struct summary *summary, const struct options *options,
                   const struct images *images, const struct segments *segments);

void write_events(struct images *images, struct segments *segments, const struct options *options,
                  struct summary *summary);
void write_argv(struct buffer *out, struct slice argv);
/* "address" and "port" of a struct sockaddr; false for families without. */
bool format_address(struct buffer *out, struct slice address, uint16_t *family, uint16_t *port);

const char *errno_name(int32_t error);
const char *operation_name(uint16_t op);

void enter_sandbox(const struct options *options);

#endif
