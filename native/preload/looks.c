/*
 * Looks at files, summed by path or descriptor. Most programs that look at many files look at each
 * of them once, so what is dear here is not the addition but the first of its kind: as few
 * instructions, and as few bytes of the segment, as may be.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>

#include "descriptors.h"
#include "process.h"
#include "sums.h"

/* --- as whole records ------------------------------------------------------------------------- */

static void add_stat(struct sub_record *record, bool failed) {
    struct sub_stat_counts *counts = sub_counts(record);
    uint64_t now = sub_coarse_now();
    sub_add(&counts->calls, 1);
    if (failed)
        sub_add(&counts->failed, 1);
    if (likely(now > record->start_ns))
        counts->last_ns = now;
}

static bool same_path(const struct sub_record *record, struct sub_text path) {
    const struct sub_field *field =
        (const struct sub_field *)(const void *)((const unsigned char *)record + SUB_COUNTS_AT +
                                                 sizeof(struct sub_stat_counts));
    return field->tag == SUB_TAG_PATH && field->bytes == path.length &&
           memcmp(field + 1, path.bytes, path.length) == 0;
}

static void count_descriptor_stat(enum sub_operation op, int fd, int64_t result, int error) {
    uint32_t state = sub_descriptor_state(fd);
    uint64_t now = 0;
    struct sub_sum sum = {SUB_TABLE_PATHS,     (uint32_t)fd * 0x9e3779b1u >> 16, ~state,
                          SUB_TAG_STAT_COUNTS, sizeof(struct sub_stat_counts),   NULL};
    struct sub_record *record = sub_found_sum(sub_hold(), &sum, SUB_STAT);
    bool known = record != NULL && record->arg[0] == fd &&
                 record->length == sizeof(*record) + sub_field_size(sum.bytes);
    if (known)
        add_stat(record, error != 0);
    sub_release();
    if (known)
        return;
    now = sub_now();
    struct sub_stat_counts counts = {1, error != 0, now};
    record = sub_begin_at(SUB_STAT, (uint16_t)op, now, now, sub_field_size(sizeof(counts)));
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    record->arg[0] = fd;
    record->flags |= (state & 1u) != 0 ? SUB_FLAG_UNNAMED : 0;
    sub_put((unsigned char *)(record + 1), SUB_TAG_STAT_COUNTS, &counts, sizeof(counts));
    sub_remember(record, &sum);
    sub_commit(record);
}

/* A relative path is another one after a chdir, or below another directory. */
static uint64_t base_of(int dirfd, char first) {
    if (first == '/')
        return 0;
    return dirfd == AT_FDCWD ? (uint64_t)sub_directory_changes << 1 | 1
                             : (uint64_t)(uint32_t)dirfd << 32 | sub_descriptor_state(dirfd);
}

static struct sub_sum path_sum(uint64_t hash) {
    struct sub_sum sum = {.table = SUB_TABLE_PATHS,
                          .index = (uint32_t)hash,
                          .key = (uint32_t)(hash >> 32),
                          .tag = SUB_TAG_STAT_COUNTS,
                          .bytes = sizeof(struct sub_stat_counts)};
    return sum;
}

static __attribute__((noinline)) void count_whole(enum sub_operation op, int dirfd,
                                                  const char *path, int64_t result, int error) {
    struct sub_text text = sub_text(path, error);
    if (text.length == 0 && (text.flags & SUB_FLAG_FAULT) == 0 && dirfd != AT_FDCWD) {
        count_descriptor_stat(op, dirfd, result, error);
        return;
    }
    struct sub_sum sum = path_sum(0);
    if (text.bytes != NULL) {
        uint64_t base = base_of(dirfd, text.bytes[0]) * 0x9e3779b97f4a7c15ULL;
        sum = path_sum(sub_hash_variable(text.bytes, text.length) ^ base);
        struct sub_record *record = sub_found_sum(sub_hold(), &sum, SUB_STAT);
        bool known = record != NULL && same_path(record, text);
        if (known)
            add_stat(record, error != 0);
        sub_release();
        if (known)
            return;
    }
    uint64_t now = sub_now();
    struct sub_stat_counts counts = {1, error != 0, now};
    sum.counts = &counts;
    struct sub_call call = {
        .type = SUB_STAT,
        .op = (uint16_t)op,
        .error = error,
        .start_ns = now,
        .result = result,
        .arg = {dirfd, 0, 0, 0},
        .path = path,
        .sum = &sum,
    };
    sub_record_call(&call);
}

/* --- as short ones ---------------------------------------------------------------------------- */

/* A path, read once: in words of eight bytes, the last filled up with zeros. */
struct name {
    uint32_t length;
    uint64_t hash, tail; /* the last `length % 8` bytes */
};

typedef uint64_t __attribute__((may_alias)) aligned_word;
typedef uint64_t __attribute__((may_alias, aligned(1))) loose_word;

static inline uint64_t zeros_of(uint64_t word) {
    return (word - 0x0101010101010101u) & ~word & 0x8080808080808080u;
}

/*
 * Eight bytes of a string, or what is left of it. Read in aligned words, which reach into nothing
 * that the string is not in: no page, and no memory that valgrind or tagged pointers watch.
 */
static inline uint64_t word_of(const char *at) {
    const aligned_word *words =
        (const aligned_word *)(const void *)(at - (uintptr_t)at % sizeof(uint64_t));
    unsigned shift = 8 * ((uintptr_t)at % sizeof(uint64_t));
    uint64_t word = words[0] >> shift;
    if (shift == 0 || zeros_of(word | ~0ULL << (64 - shift)) != 0)
        return word;
    return word | words[1] << (64 - shift);
}

static inline uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
    return hash ^ hash >> 32;
}

/* False where it is empty or longer than paths are. */
static inline bool read_name(const char *path, uint64_t base, struct name *name) {
    uint64_t hash = base;
    for (uint32_t length = 0; length < SUB_STRING_MAX; length += 8) {
        uint64_t word = word_of(path + length);
        uint64_t zeros = zeros_of(word);
        if (zeros == 0) {
            hash = mix(hash, word);
            continue;
        }
        uint32_t bytes = (uint32_t)__builtin_ctzll(zeros) / 8;
        name->tail = word & ((1ULL << 8 * bytes) - 1);
        name->length = length + bytes;
        name->hash = mix(mix(hash, name->tail), name->length);
        return name->length != 0;
    }
    return false;
}

static inline bool is_name(const uint64_t *at, const char *path, const struct name *name) {
    uint32_t i = 0;
    for (; i + 8 <= name->length; i += 8) {
        if (*at++ != *(const loose_word *)(const void *)(path + i))
            return false;
    }
    return i == name->length || *at == name->tail;
}

static inline void put_name(uint64_t *at, const char *path, const struct name *name) {
    uint32_t i = 0;
    for (; i + 8 <= name->length; i += 8)
        *at++ = *(const loose_word *)(const void *)(path + i);
    if (i != name->length)
        *at = name->tail;
}

/* All ones where it is so long ago that a look cannot say it. */
static inline uint32_t tick_of(const unsigned char *base, uint64_t now) {
    uint64_t made = ((const struct sub_segment *)(const void *)base)->created_ns;
    uint64_t ticks = now > made ? (now - made) >> SUB_LOOK_TICK_BITS : 0;
    return ticks < UINT32_MAX ? (uint32_t)ticks : UINT32_MAX;
}

/*
 * A look has no time of its own: it comes after the record in front of it. So the first relative one
 * after a change of the working directory, which another thread may have made, is a whole record.
 * One below a descriptor needs a record that says where that leads.
 */
static inline bool may_be_short(unsigned char *base, int dirfd, char first, uint64_t now) {
    struct sub_segment *header = (struct sub_segment *)(void *)base;
    if (first == '/')
        return true;
    if (dirfd != AT_FDCWD)
        return sub_is_explained(&sub_place_slots(base)[(uint32_t)dirfd % SUB_PLACE_SLOTS], dirfd,
                                now);
    uint32_t changes = __atomic_load_n(&sub_directory_changes, __ATOMIC_RELAXED);
    bool same = header->changes == changes;
    header->changes = changes;
    return same;
}

static inline void write_look(int dirfd, const char *path, const struct name *name, bool failed,
                              uint32_t tick, const struct sub_sum *sum) {
    struct sub_record *record =
        sub_begin_bytes((uint32_t)sizeof(struct sub_look) + sub_pad(name->length));
    if (unlikely(record == NULL))
        return;
    struct sub_look *look = (struct sub_look *)(void *)record;
    look->type = SUB_LOOK;
    look->bytes = (uint16_t)name->length;
    look->calls = 1;
    look->failed = failed;
    look->dirfd = dirfd;
    look->last = tick;
    put_name((uint64_t *)(look + 1), path, name);
    sub_remember(record, sum);
    sub_commit(record);
}

/* False where it takes a whole record. */
static inline bool count_look(int dirfd, const char *path, bool failed) {
    struct name name;
    if (!read_name(path, base_of(dirfd, path[0]), &name))
        return false;
    unsigned char *base = sub_hold();
    if (unlikely(base == NULL)) {
        sub_release();
        return false;
    }
    uint64_t now = sub_coarse_now();
    uint32_t tick = tick_of(base, now);
    struct sub_sum sum = path_sum(name.hash);
    struct sub_look *look =
        sub_found_bytes(base, &sum, (uint32_t)sizeof(struct sub_look) + sub_pad(name.length));
    bool known = look != NULL && look->type == SUB_LOOK && look->bytes == name.length &&
                 look->calls < INT32_MAX && is_name((const uint64_t *)(look + 1), path, &name);
    if (known) {
        look->last = tick;
        sub_add_short(&look->calls, 1);
        if (failed)
            sub_add_short(&look->failed, 1);
    }
    bool fits = known || may_be_short(base, dirfd, path[0], now);
    sub_release();
    if (fits && !known)
        write_look(dirfd, path, &name, failed, tick, &sum);
    return fits;
}

void sub_count_stat(enum sub_operation op, int dirfd, const char *path, int64_t result,
                    bool failed) {
    int error = failed ? errno : 0;
    sub_settle_vfork();
    if (path == NULL || !sub_was_read(error) || !count_look(dirfd, path, failed))
        count_whole(op, dirfd, path, result, error);
}
