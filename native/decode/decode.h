/*
 * substrate-decode: from segments to events, processes and a summary.
 *
 * What lies in a segment was written by programs that nobody trusts. Every length is checked before
 * it is used, every file is read with pread into memory of ours, never mapped (truncating a mapped
 * file is a SIGBUS to its reader), and whatever makes no sense is counted and left out.
 *
 *   segments.c     which files there are        records.c      the records in them
 *   ledger.c       what the kernel says         reconcile.c    who made which segment, who ran
 *   images.c       who ran, whose child         links.c        whom programs say they started
 *   selection.c    what belongs to the step     events.c       all records in their order
 *   lines.c        one record to one JSON line  process_lines.c  a process's start and end
 *   descriptors.c  what descriptors lead to     sums.c         counts per file, peer and source
 *   places.c       directories behind ids       paths.c        relative to absolute
 *   actions.c      what posix_spawn does first
 *   summary.c      what is kept of all that     report.c       and how it is written
 *   sets.c, memory.c, json.c, names.c           sandbox.c      giving up all rights first
 *   files.c        the only system calls        main.c         options
 *
 * Everything but main.c, files.c and sandbox.c runs under the fuzzer too (native/fuzz), where those
 * three are replaced: nothing else may call the system, keep state between two runs or leak.
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

struct slice {
    const char *bytes;
    uint32_t length;
};

/* --- memory: whoever asks for it gets it, or the program dies ---------------------------------- */

void *allocate(size_t bytes); /* zeroed */
void *resize(void *list, size_t count, size_t bytes_each);
/* Makes room for one more in a list of `count` that holds `*size`. */
void *grow(void *list, uint32_t count, uint32_t *size, size_t bytes_each);

/* Copies of text that are all given up together. */
struct text {
    struct text_chunk *chunks;
    size_t left;
};

struct slice text_keep(struct text *text, struct slice from, uint32_t most);
void text_free(struct text *text);

/* --- files ------------------------------------------------------------------------------------ */

struct file_status {
    uint64_t bytes;
    uint32_t owner; /* uid: whom the kernel saw make it */
};

/* A regular file, never through a link: its number, or a negative errno (-EINVAL: not regular). */
int file_open(int directory, const char *name, struct file_status *status);
/* As pread, but for EINTR. */
ssize_t file_read(int fd, void *to, size_t bytes, uint64_t at);
void file_close(int fd);
void list_files(int directory, void (*take)(void *context, const char *name), void *context);
void write_output(int fd, const char *bytes, size_t length, const char *what);

struct options {
    int directory;
    int summary_fd;
    int ledger; /* -1: none */
    bool have_classes;
    uint32_t classes; /* SUB_CLASS_* that were to be recorded */
    const char *session, *trace, *span, *world;
    bool have_root;
    int32_t root_pid;
    uint64_t root_after_ns; /* CLOCK_MONOTONIC */
    uint64_t since_ns;      /* CLOCK_MONOTONIC; of the root what is later, and what began later */
    bool have_utc, have_boot;
    int64_t utc_offset_ns, boot_offset_ns; /* to be added to CLOCK_MONOTONIC */
    uint32_t max_events, max_reads, max_writes, max_hosts, max_processes;
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
    uint32_t version, state, flags, header_bytes, classes_off;
    uint32_t first_sequence, next_sequence; /* the latter as far as records were found */
    uint64_t lost, created_ns, bytes;
    uint32_t image;  /* into images */
    uint32_t kernel; /* whose it is, into the ledger's processes; NONE where that is not known */
    uint32_t owner;
};

struct segments {
    struct segment *list;
    uint32_t count;
    uint64_t unreadable, foreign, torn, corrupt; /* files, files, records, files */
    uint64_t forged, forged_events, late;        /* files, records, files; see reconcile.c */
    struct unborn *unborn;
    uint32_t unborn_count, unborn_size;
    char *spare; /* a reader's buffer that waits for the next: most chains are short */
};

void read_segments(struct segments *segments, int directory);
bool same_process(const struct sub_identity *a, const struct sub_identity *b);
/* The order of segments and of images: namespace, pid, start, exec number. */
int compare_identities(const struct sub_identity *a, const struct sub_identity *b);
void segment_name(char name[SEGMENT_NAME_MAX], const struct sub_identity *self, uint32_t chain,
                  uint32_t index);

/*
 * A file with the name of a segment and nothing in it: its maker found no room for the segment, or
 * was killed before it had begun one.
 */
struct unborn {
    char name[SEGMENT_NAME_MAX];
    int32_t pid;
    bool no_room;
};

/* One chain of an image, read in order. */
struct reader {
    struct segments *segments;
    int directory;
    uint32_t next, end; /* segments still to come */
    uint32_t current;
    int fd;
    uint64_t offset; /* in the file, of the end of the buffer */
    char *bytes;     /* READER_BYTES; one block with what is in front of them */
    char *expanded;  /* EXPANDED_BYTES */
    size_t at, filled;
    uint64_t torn;
    bool corrupt;
    uint32_t sequence; /* of the next record that does not say it */
    uint64_t time_ns;  /* when the record before ended */
};
/* The largest record that stands for a struct sub_look. */
#define EXPANDED_BYTES                                                                             \
    (sizeof(struct sub_record) + 2 * sizeof(struct sub_field) + sizeof(struct sub_stat_counts) +   \
     SUB_STRING_MAX)
_Static_assert(EXPANDED_BYTES % 8 == 0, "records lie behind it");

#ifndef READER_BYTES /* the fuzzer wants little, and to read often */
#define READER_BYTES (128u << 10)
#endif
_Static_assert(READER_BYTES >= SUB_RECORD_MAX + sizeof(struct sub_record), "a record must fit");

void reader_open(struct reader *reader, struct segments *segments, int directory, uint32_t first,
                 uint32_t end);
/* The next whole record, valid until the next call; NULL at the end. */
const struct sub_record *reader_next(struct reader *reader);
void reader_close(struct reader *reader);

/* The fields of a record, each within it. */
struct fields {
    struct slice path, path2, directory, directory2, cwd, argv, exe, name, service, mode;
    struct slice libraries;
    const struct sub_hello *hello;
    const struct sub_stat_counts *stat_counts;
    const struct sub_transfer_counts *transfer_counts;
    const struct sub_source_counts *source_counts;
    const uint64_t *env_digest, *key, *directory_id, *directory2_id;
#define FIELDS_MAX 20
    struct slice addresses[FIELDS_MAX];
    uint32_t address_count;
    struct slice variables[FIELDS_MAX];
    uint32_t variable_count;
};

void parse_fields(const struct sub_record *record, struct fields *fields);

/* --- the kernel's ledger ----------------------------------------------------------------------- */

struct kernel_exec {
    uint64_t at_ns;
    struct slice name; /* as passed to the kernel; the command's name where that is not known */
    bool cut;          /* its beginning is missing */
    uint32_t next;     /* of the same process */
};

struct kernel_process {
    int32_t host_pid, pid;       /* pid 0: not known */
    uint32_t parent;             /* NONE */
    uint64_t began_ns, ended_ns; /* ended_ns UINT64_MAX: not known to have ended */
    int32_t status;
    bool forked, selected, separate; /* separate: its memory never was its parent's */
    uint32_t first_exec, last_exec;  /* NONE */
    uint32_t removed;                /* of its segments */
    uint32_t first_image;            /* NONE */
    uint32_t recent_image;           /* from which it last started another */
    uint32_t origin;                 /* image that it was started from, NONE */
};

/* A segment file that the kernel saw being made. */
struct kernel_file {
    struct slice name;
    uint32_t process;
    uint64_t at_ns;
};

/* One that it saw being removed or renamed. */
struct kernel_removal {
    struct slice name;
    uint64_t at_ns;
};

struct ledger {
    bool given, used;
    const char *why; /* it is not used */
    uint16_t source;
    bool attested;           /* all segments' makers are told */
    bool whole;              /* it starts with the world */
    uint64_t pid_namespace;  /* 0: not known */
    uint64_t lost, nameless; /* records; processes whose pid is not known */
    uint64_t last_ns;
    struct kernel_process *processes;
    uint32_t process_count, process_size;
    struct kernel_exec *execs;
    uint32_t exec_count, exec_size;
    struct kernel_file *files; /* by name, then time */
    uint32_t file_count, file_size;
    struct kernel_removal *removals;
    uint32_t removal_count, removal_size;
    uint32_t *by_pid; /* processes in the order of pid, then of their beginnings */
    struct text text;
    uint64_t uncovered, unknown; /* programs without a hello; processes that it does not know */
};

void ledger_read(struct ledger *ledger, const struct options *options);
void ledger_free(struct ledger *ledger);
/* Nothing happened in the world that it does not tell. */
bool ledger_complete(const struct ledger *ledger);
/* The last file of that name; NULL. */
const struct kernel_file *ledger_file(const struct ledger *ledger, struct slice name);
/* The process that had this pid, in the world's namespace, at that time; NONE. */
uint32_t ledger_process(const struct ledger *ledger, int32_t pid, uint64_t at_ns);

/* --- images ----------------------------------------------------------------------------------- */

/* A process image; or, with no segments, one that only others speak of. */
struct image {
    struct sub_identity self;
    uint32_t first_segment, end_segment;
    uint32_t process; /* the first image of the same process */
    uint32_t next;    /* the next image of the same process */
    uint32_t parent;  /* image it was started from, NONE */
    uint32_t exec_no; /* as self.exec_number, but programs that said no hello count too */
    uint32_t kernel;  /* into the ledger's processes, NONE */
    bool hello, selected, uncovered, reported_exit, ended, executed, quiet, passed;
    bool judged;                    /* `selected` is known */
    bool kernel_start, kernel_exit; /* who says so */
    bool muted;                     /* it recorded other classes than it was told to */
    bool silent;                    /* a child of a covered one that made no recorded call */
    bool filtered;                  /* below a seccomp filter of a program's */
    bool no_room, unfinished;       /* see struct unborn */
    uint32_t gone_segments, removed_segments;
    uint64_t gone_records;
    int32_t ppid;
    uint32_t umask, uid;
    uint64_t start_ns, end_ns; /* CLOCK_MONOTONIC */
    uint64_t began_ns;         /* start of the events that are filed under its span */
    int64_t utc_offset_ns, boot_offset_ns;
    struct sub_identity forked_from;
    struct slice argv, exe, cwd; /* in images.text */
    uint64_t env_digest;
    bool have_exit;
    int32_t exit_code, signal; /* signal 0: none */
    uint64_t events, lost;
    uint64_t span; /* events are filed under this */
    bool truncated_argv;
};

struct images {
    struct image *list;
    uint32_t count, size;
    uint32_t sorted; /* those from segments come first, in the order of their identity */
    struct link *links;
    uint32_t link_count, link_size;
    uint64_t links_dropped;
    struct text text;
    uint64_t text_used;
    uint32_t root; /* image of the root process, NONE */
    bool root_seen;
    uint64_t unattributed;
};

void build_images(struct images *images, struct segments *segments, struct ledger *ledger,
                  const struct options *options);
void images_free(struct images *images);
/* Indices of the selected images in the order in which they began; the caller frees them. */
uint32_t *images_in_order(const struct images *images, uint32_t *count);
/* The image of process `pid` that a vfork child's records belong to, NONE. */
uint32_t image_of_child(const struct images *images, const struct image *parent, int32_t pid,
                        uint64_t at_ns);
/* The image whose span an image's events carry: a forked child's are those of what it runs. */
uint32_t merged_image(const struct images *images, uint32_t image);
const struct image *program_of(const struct images *images, const struct image *image);
uint64_t parent_span(const struct images *images, const struct image *image);

/* --- paths ------------------------------------------------------------------------------------ */

#define PATH_BYTES (3u * SUB_STRING_MAX)

/*
 * An absolute path from what the program passed: symbolic links are not followed, ".." takes the
 * name before it away. Without a known base a relative path stays as it is. `to` has PATH_BYTES and
 * must not hold `base` or `path`.
 */
struct slice absolute(char *to, struct slice base, struct slice path);
bool is_absolute(struct slice path);
/* Is the path the prefix, or below it? */
bool is_below(struct slice path, struct slice prefix);

/* A directory that got another name; with `exchange` the two swapped theirs. */
struct renaming {
    struct slice from, to;
    bool exchange;
};

/* What became of a path, written to `to` (PATH_BYTES); an empty slice: nothing. */
struct slice renamed(char *to, struct slice path, const struct renaming *renaming);

/* --- places ----------------------------------------------------------------------------------- */

struct places;
struct places *places_new(void);
void places_clear(struct places *places);
void places_free(struct places *places);
/* Notes the path that stands beside an id, if both are there. */
void places_explain(struct places *places, const uint64_t *id, struct slice path);
/*
 * The path that stands beside an id, or that it stood beside before; the latter is good until a path
 * is noted again.
 */
struct slice places_resolve(const struct places *places, const uint64_t *id, struct slice path);
/* The id of a descriptor, as the library makes it. */
uint64_t place_of_descriptor(int64_t descriptor);
/* Follows an open or a copy that says what its descriptor leads to; `path`: that of the open. */
void places_follow(struct places *places, const struct sub_record *record, struct slice path);
void places_rename(struct places *places, const struct renaming *renaming);

/* --- descriptors ------------------------------------------------------------------------------ */

enum descriptor_kind { DESCRIPTOR_UNKNOWN, DESCRIPTOR_FILE, DESCRIPTOR_SOCKET };
enum direction { DIRECTION_OUTBOUND, DIRECTION_INBOUND, DIRECTION_BOUND };

/* What a descriptor leads to: a path, or the bytes of an address. */
struct descriptor {
    enum descriptor_kind kind;
    enum direction direction;
    uint32_t length, size;
    char *bytes;
};

struct descriptors;
struct descriptors *descriptors_new(void);
void descriptors_clear(struct descriptors *descriptors);
void descriptors_free(struct descriptors *descriptors);
/* Follows one record; `path` is the absolute path of an open, or empty. */
void descriptors_follow(struct descriptors *descriptors, const struct sub_record *record,
                        const struct fields *fields, struct slice path);
struct descriptor descriptors_find(const struct descriptors *descriptors, int32_t number);

/* --- sets ------------------------------------------------------------------------------------- */

/* Texts, each once; the number of one is the order in which it came. */
struct text_set {
    uint32_t *slots; /* number + 1; 0: free */
    uint32_t slot_count;
    uint64_t *hashes;
    struct slice *texts;
    uint32_t count, size;
    struct text text;
};

/* The number of a text, which is added unless there are `most` already: NONE. */
uint32_t set_add(struct text_set *set, struct slice text, uint32_t most);
void set_clear(struct text_set *set);
void set_free(struct text_set *set);

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
    CLASS_BIND,
    CLASS_LISTEN,
    CLASS_ACCEPT,
    CLASS_THREAD,
    CLASS_LOAD,
    CLASS_DUP,
    CLASS_OTHER,
    CLASS_COUNT,
};

/* What sums come to in a step: counts that are no lines of their own. */
enum total {
    TOTAL_STAT,
    TOTAL_STAT_FAILED,
    TOTAL_READ_CALLS,
    TOTAL_READ_BYTES,
    TOTAL_WRITE_CALLS,
    TOTAL_WRITE_BYTES,
    TOTAL_SENT_BYTES,
    TOTAL_RECEIVED_BYTES,
    TOTAL_SOURCES, /* and those after it, in the order of enum sub_source */
    TOTAL_COUNT = TOTAL_SOURCES + SUB_SOURCE_DIRECTORY_ORDER + 1,
};

struct summary;

struct event {
    enum event_class class;
    uint64_t at_ns;
    int32_t error;
    struct slice path, path2; /* absolute */
};

struct summary *summary_new(const struct options *options);
void summary_free(struct summary *summary);
void summary_event(struct summary *summary, const struct event *event, const char *line,
                   size_t length);
void summary_total(struct summary *summary, enum total total, uint64_t more);
void summary_read(struct summary *summary, struct slice path);
/* A path that was changed or opened for writing; not absolute: one that is not known. */
void summary_wrote(struct summary *summary, struct slice path);
void summary_host(struct summary *summary, struct slice address, int32_t error);
void summary_answer(struct summary *summary, struct slice name, struct slice address);
void summary_write(struct summary *summary, const struct options *options,
                   const struct images *images, const struct segments *segments,
                   const struct ledger *ledger);

void write_events(struct images *images, struct segments *segments, const struct options *options,
                  struct summary *summary);
void write_argv(struct buffer *out, struct slice argv);
/* "address" and "port" of a struct sockaddr; false for families without. */
bool format_address(struct buffer *out, struct slice address, uint16_t *family, uint16_t *port);

const char *errno_name(int32_t error);
const char *operation_name(uint16_t op);

void decode_all(const struct options *options);
void enter_sandbox(const struct options *options);

#endif
