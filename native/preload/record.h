/*
 * Writing records: what the hooks use.
 *
 * A hook takes the time, calls what it stands in front of, keeps that call's errno, and then, if
 * sub_begin gives it room, fills one record. Nothing here sets errno, allocates, locks or, once a
 * segment exists, makes a system call (relative paths below a descriptor and the directories that
 * chdir leads to are the exceptions: only the kernel knows them).
 */
#ifndef SUBSTRATE_PRELOAD_RECORD_H
#define SUBSTRATE_PRELOAD_RECORD_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "events.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* The calling thread's place in its chain. Static TLS is scarce: keep it below 64 bytes. */
struct sub_thread {
    unsigned char *base; /* the mapped segment, NULL before the first */
    uint64_t claim;      /* SUB_CLAIM: moved by one addition, see sub_begin */
    uint32_t limit;      /* bytes of the segment; 0 sends sub_begin the slow way */
    uint32_t generation; /* of the process that the above belongs to */
    int32_t tid;
    uint32_t chain;
    uint32_t index;
    uint8_t busy;  /* in the slow path */
    uint8_t check; /* a vfork child may be borrowing this thread: ask the kernel who it is */
    uint16_t open; /* records being filled, by this frame and those it interrupted */
};
/* Sequence, the low bits of the segment's index, and the position in units of eight bytes. */
#define SUB_CLAIM(sequence, index, position)                                                       \
    ((uint64_t)(sequence) << 32 | (uint64_t)((index) & 0xffu) << 24 | (uint64_t)(position) >> 3)
#define SUB_CLAIM_SEQUENCE(claim) ((uint32_t)((claim) >> 32))
#define SUB_CLAIM_INDEX(claim) ((uint32_t)((claim) >> 24) & 0xffu)
#define SUB_CLAIM_POSITION(claim) (((uint32_t)(claim) & 0xffffffu) << 3)
_Static_assert(sizeof(struct sub_thread) < 64, "static TLS is scarce");

/*
 * What the process knows about itself, on a page that the kernel empties in a forked child
 * (MADV_WIPEONFORK): that is how a child notices, whichever way it was made, without a system call.
 */
struct sub_process {
    uint32_t generation; /* 0: not started, or a child that has not noticed */
    uint32_t phase;      /* SUB_PHASE_* */
    struct sub_identity self;
    uint32_t next_chain;
    uint32_t reserved;
    uint64_t lost;            /* events lost while there was no segment to count them in */
    unsigned char *first;     /* the image's first segment, mapped to the end: see count_lost */
    unsigned char *spare[32]; /* segments of threads that ended, with their chains */
    uint64_t spare_claim[32];
};

enum { SUB_PHASE_NEW = 0, SUB_PHASE_STARTING = 1, SUB_PHASE_READY = 2 };
enum { SUB_UNSTARTED = 0, SUB_ON = 1, SUB_OFF = 2 };

extern __thread struct sub_thread sub_self __attribute__((tls_model("initial-exec")));
extern struct sub_process *sub_process;
extern int sub_mode;
extern uint32_t sub_classes; /* SUB_CLASS_* that are wanted */
extern int sub_quiet; /* the program installed a seccomp filter: no system calls of ours any more */
extern uint32_t sub_directory_changes;    /* how often this process changed its working directory */
extern const void *sub_libraries_pending; /* the thread whose dlopen went by: see hooks_load.c */

void sub_start(void);
struct sub_record *sub_begin_slow(uint32_t length);
uint32_t sub_vfork_child(void);
uint64_t sub_now(void);
void sub_forked_child(void);
void sub_mark_exited(void);
void sub_record_first_libraries(void);
void sub_record_libraries(bool now_or_never);

/* The next definition of the operation's symbol behind this library; NULL when there is none. */
void *sub_lookup(enum sub_operation op);
extern void *sub_found[SUB_OP_COUNT];

static inline void *sub_next(enum sub_operation op) {
    void *next = __atomic_load_n(&sub_found[op], __ATOMIC_RELAXED);
    return likely(next != NULL) ? next : sub_lookup(op);
}

/* Bytes that can be read at an address the program passed and nobody has read yet. */
bool sub_readable(const void *address, size_t bytes);
size_t sub_readable_string(const char *string, size_t max);
/* The same of many strings that lie beside each other: each page is asked about once. */
size_t sub_readable_string_near(const char *string, size_t max, uintptr_t *readable_page);

/* Is there a recording that this class is part of? 0 stands for what is always told. */
static inline bool sub_wants(uint32_t class) {
    if (unlikely(sub_mode != SUB_ON)) {
        if (sub_mode == SUB_OFF)
            return false;
        sub_start();
        if (sub_mode != SUB_ON)
            return false;
    }
    return class == 0 || (sub_classes & class) != 0;
}

/* 0 when nobody wants the call recorded, else the time before it. */
static inline uint64_t sub_enter_class(uint32_t class) {
    if (!sub_wants(class))
        return 0;
    if (unlikely(sub_libraries_pending != NULL))
        sub_record_libraries(false);
    return sub_now();
}

static inline uint64_t sub_enter(void) {
    return sub_enter_class(0);
}

static inline uint32_t sub_pad(uint32_t bytes) {
    return (bytes + 7u) & ~7u;
}

static inline uint32_t sub_field_size(size_t bytes) {
    return (uint32_t)sizeof(struct sub_field) + sub_pad((uint32_t)bytes);
}

/*
 * Takes room in the current segment; NULL when there is none.
 *
 * One addition moves position and sequence together, so a signal handler that interrupts anywhere
 * here writes before or behind this record, never into it. A handler may even have gone on to the
 * next segment in between; then the claim lies in the one before, behind its last record, and is
 * forgotten (see the index in the claim). `open` keeps that handler from unmapping a segment that
 * an interrupted frame still writes to.
 */
static inline struct sub_record *sub_claim(uint32_t length) {
    volatile struct sub_thread *self = &sub_self;
    uint64_t claim = __atomic_fetch_add(&sub_self.claim, SUB_CLAIM(1, 0, length), __ATOMIC_RELAXED);
    uint32_t index = self->index;
    unsigned char *base = self->base;
    uint32_t limit = self->limit;
    uint32_t position = SUB_CLAIM_POSITION(claim);
    if (unlikely((uint64_t)position + length > limit || index != self->index ||
                 (index & 0xffu) != SUB_CLAIM_INDEX(claim)))
        return NULL;
    struct sub_record *record = (struct sub_record *)(void *)(base + position);
    record->length = length | SUB_LENGTH_PENDING;
    if (length >= sizeof(*record)) /* of a long struct sub_look this is overwritten by the path */
        record->sequence = SUB_CLAIM_SEQUENCE(claim);
    return record;
}

/* Room in this segment or the next; NULL when it is lost (and counted). */
static inline struct sub_record *sub_begin_bytes(uint32_t length) {
    struct sub_record *record = NULL;
    if (likely(sub_self.generation == sub_process->generation)) {
        sub_self.open++;
        record = sub_claim(length);
        if (unlikely(record == NULL))
            sub_self.open--;
    }
    return likely(record != NULL) ? record : sub_begin_slow(length);
}

/* Starts a record with `fields` bytes of fields; NULL when it is lost (and counted). */
static inline struct sub_record *sub_begin_at(uint16_t type, uint16_t op, uint64_t start_ns,
                                              uint64_t end, uint32_t fields) {
    struct sub_record *record = sub_begin_bytes((uint32_t)sizeof(struct sub_record) + fields);
    if (unlikely(record == NULL))
        return NULL;
    record->type = type;
    record->op = op;
    record->start_ns = start_ns;
    record->elapsed_ns = end - start_ns;
    record->tid = (uint32_t)sub_self.tid;
    if (unlikely(sub_self.check != 0)) {
        uint32_t child = sub_vfork_child();
        if (child != 0) {
            record->tid = child;
            record->flags |= SUB_FLAG_VFORK_CHILD;
        }
    }
    return record;
}

static inline struct sub_record *sub_begin(uint16_t type, uint16_t op, uint64_t start_ns,
                                           uint32_t fields) {
    return sub_begin_at(type, op, start_ns, sub_now(), fields);
}

static inline void sub_commit(struct sub_record *record) {
    __atomic_store_n(&record->length, record->length & ~SUB_LENGTH_PENDING, __ATOMIC_RELEASE);
    sub_self.open--;
}

/* Appends a field at `at`, returns where the next goes. The padding is already zero. */
static inline unsigned char *sub_put(unsigned char *at, uint16_t tag, const void *value,
                                     size_t bytes) {
    struct sub_field *field = (struct sub_field *)(void *)at;
    field->tag = tag;
    field->bytes = (uint32_t)bytes;
    memcpy(field + 1, value, bytes);
    return at + sub_field_size(bytes);
}

/* --- paths ------------------------------------------------------------------------------------ */

/* A string of the caller, measured so that looking at it cannot fault. */
struct sub_text {
    const char *bytes; /* NULL: none, or unreadable */
    uint32_t length;
    uint32_t flags; /* SUB_FLAG_TRUNCATED, SUB_FLAG_FAULT */
};

/*
 * After a call that succeeded or failed with the usual look-up errors the kernel or libc has read
 * the string; after other errors it may not have, so ask first.
 */
static inline bool sub_was_read(int error) {
    return likely(error == 0 || error == ENOENT || error == EEXIST || error == EACCES ||
                  error == ENOTDIR || error == ELOOP || error == ENODATA);
}

static inline struct sub_text sub_text(const char *string, int error) {
    struct sub_text text = {NULL, 0, 0};
    if (string == NULL)
        return text;
    size_t length;
    if (sub_was_read(error))
        length = strnlen(string, SUB_STRING_MAX);
    else
        length = sub_readable_string(string, SUB_STRING_MAX);
    if (unlikely(length == SIZE_MAX)) {
        text.flags = SUB_FLAG_FAULT;
        return text;
    }
    if (unlikely(length == SUB_STRING_MAX))
        text.flags = SUB_FLAG_TRUNCATED;
    text.bytes = string;
    text.length = (uint32_t)length;
    return text;
}

static inline uint32_t sub_text_size(struct sub_text text) {
    return text.bytes == NULL ? 0 : sub_field_size(text.length);
}

static inline unsigned char *sub_put_text(unsigned char *at, uint16_t tag, struct sub_text text) {
    return text.bytes == NULL ? at : sub_put(at, tag, text.bytes, text.length);
}

/* Records one call on one or two paths. `dirfd` is AT_FDCWD for calls without one. */
struct sub_call {
    uint16_t type;
    uint16_t op;
    int error;
    uint32_t flags;
    uint64_t start_ns;
    int64_t result;
    int32_t arg[4];
    const char *path;
    const char *path2;         /* relative to arg[3] */
    const char *mode;          /* of fopen */
    const struct sub_sum *sum; /* of SUB_STAT: the counts, which go first */
};

void sub_record_call(const struct sub_call *call);

/* Remembers that a copy leads where the other does, if this chain said where that is. */
void sub_copy_place(struct sub_record *record, int from, int to);

/* The path a descriptor leads to, into `buffer`; 0 when the kernel does not say. */
size_t sub_descriptor_path(int descriptor, char *buffer, size_t size);

#endif
