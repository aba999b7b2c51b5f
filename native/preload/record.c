/*
 * Records of calls on paths, and reading what a program passed without believing it.
 */
#define _GNU_SOURCE 1

#include "record.h"

#include <fcntl.h>
#include <signal.h>

#include "descriptors.h"
#include "process.h"
#include "sums.h"
#include "system.h"

#ifndef O_TMPFILE
#define O_TMPFILE (020000000 | O_DIRECTORY)
#endif

#define PAGE 4096u

uint32_t sub_directory_changes;

/*
 * rt_sigprocmask copies the new mask before it looks at its first argument: with a nonsense one it
 * only tells whether eight bytes can be read (EINVAL) or not (EFAULT). Below a filter of the
 * program's nobody can be asked, so what nobody has read yet is left alone. A null pointer would be
 * no mask at all to the kernel; nothing of a program's lies in the first page.
 */
static bool word_readable(uintptr_t address) {
    return address >= PAGE && !sub_quiet &&
           SYS4(SYS_rt_sigprocmask, ~0L, address & ~7UL, NULL, 8) != -EFAULT;
}

bool sub_readable(const void *address, size_t bytes) {
    uintptr_t first = (uintptr_t)address;
    for (uintptr_t page = first & ~(uintptr_t)(PAGE - 1); page < first + bytes; page += PAGE) {
        if (!word_readable(page < first ? first : page))
            return false;
    }
    return true;
}

/* strnlen that returns SIZE_MAX where the string runs into memory that cannot be read. */
size_t sub_readable_string_near(const char *string, size_t max, uintptr_t *readable_page) {
    size_t length = 0;
    while (length < max) {
        uintptr_t at = (uintptr_t)string + length;
        size_t here = PAGE - at % PAGE;
        if (at / PAGE != *readable_page && !word_readable(at))
            return SIZE_MAX;
        *readable_page = at / PAGE;
        if (here > max - length)
            here = max - length;
        size_t found = strnlen(string + length, here);
        length += found;
        if (found < here)
            return length;
    }
    return max;
}

size_t sub_readable_string(const char *string, size_t max) {
    uintptr_t none = UINTPTR_MAX; /* no page */
    return sub_readable_string_near(string, max, &none);
}

static void descriptor_link(int descriptor, char *name) {
    char digits[12];
    int count = 0;
    memcpy(name, "/proc/self/fd/", 14);
    name += 14;
    do {
        digits[count++] = (char)('0' + descriptor % 10);
        descriptor /= 10;
    } while (descriptor > 0);
    while (count > 0)
        *name++ = digits[--count];
    *name = '\0';
}

size_t sub_descriptor_path(int descriptor, char *buffer, size_t size) {
    char name[32];
    if (descriptor < 0 || sub_quiet)
        return 0;
    descriptor_link(descriptor, name);
    long length = SYS4(SYS_readlinkat, AT_FDCWD, name, buffer, size);
    return length > 0 && (size_t)length < size ? (size_t)length : 0;
}

static bool needs_directory(int dirfd, struct sub_text path) {
    return dirfd != AT_FDCWD && (path.bytes == NULL || path.bytes[0] != '/');
}

/* The directory of a relative path, or the file of a call on a descriptor alone. */
struct place {
    int descriptor;
    uint64_t id; /* 0: none */
    char *path;
    size_t length;  /* 0: explained before */
    uint32_t asked; /* when the kernel said so, as SUB_PLACE_AGE */
};

/*
 * The number itself, and not 0: each chain says anew what it leads to when that changes. 0 for a
 * vfork child, whose descriptors are not those of its parent's records.
 */
static uint64_t place_id(int descriptor) {
    if (sub_self.check != 0 && sub_vfork_child() != 0)
        return 0;
    return (uint32_t)descriptor + 1u;
}

/* Does a record of this segment say what the descriptor leads to, and is that news? */
static bool is_known_place(struct place *place, uint64_t now) {
    unsigned char *base = sub_hold();
    bool known = false;
    if (base != NULL) {
        const struct sub_place_slot *slot =
            &sub_place_slots(base)[(uint32_t)place->descriptor % SUB_PLACE_SLOTS];
        place->asked = slot->asked;
        known = sub_is_explained(slot, place->descriptor, now);
    }
    sub_release();
    return known;
}

/* In the segment that the record is in: whoever has the one has the other. */
static void remember_place(const struct sub_record *record, const struct place *place) {
    unsigned char *base = sub_self.base;
    if (base == NULL || (uint64_t)((const unsigned char *)record - base) >=
                            ((const struct sub_segment *)(const void *)base)->size)
        return;
    struct sub_place_slot *slot =
        &sub_place_slots(base)[(uint32_t)place->descriptor % SUB_PLACE_SLOTS];
    slot->id = 0; /* a handler between these lines finds nothing */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    slot->state = sub_descriptor_state(place->descriptor);
    slot->asked = place->asked;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    slot->id = place->id;
}

/* False when the buffer may have been too small. */
static bool find_place(int descriptor, struct sub_text path, struct place *place, size_t size,
                       uint64_t now) {
    if (!needs_directory(descriptor, path))
        return true;
    place->descriptor = descriptor;
    place->id = place_id(descriptor);
    if (place->id != 0 && is_known_place(place, now))
        return true;
    place->asked = SUB_PLACE_AGE(now);
    place->length = sub_descriptor_path(descriptor, place->path, size);
    if (place->length == 0)
        place->id = 0;
    return place->length > 0 || sub_quiet;
}

/* Of the first place a flag is enough to say that it was explained before. */
static bool flag_is_enough(const struct place *place) {
    return place->id != 0 && place->length == 0;
}

static uint32_t place_size(const struct place *place) {
    return (place->id != 0 ? sub_field_size(sizeof(place->id)) : 0) +
           (place->length > 0 ? sub_field_size(place->length) : 0);
}

static unsigned char *put_place(const struct sub_record *record, unsigned char *at, uint16_t tag,
                                uint16_t id_tag, const struct place *place) {
    if (place->length > 0)
        at = sub_put(at, tag, place->path, place->length);
    if (place->id == 0)
        return at;
    if (place->length > 0)
        remember_place(record, place);
    return sub_put(at, id_tag, &place->id, sizeof(place->id));
}

/* Is there a ".." in it? What that leads to depends on where the links in front of it do. */
static bool has_dots(struct sub_text path) {
    for (uint32_t i = 0; i + 1 < path.length; i++) {
        if (path.bytes[i] == '.' && path.bytes[i + 1] == '.')
            return true;
    }
    return false;
}

/*
 * Walks open each directory below the one before. What the new descriptor leads to need not be asked
 * where it can only be one thing: a single name, in a directory that this chain explained, that is
 * no link which was followed. Such a path is as old as the answer it hangs on, so it is asked again
 * as soon as that is. A file that was made just now (tar, cp: which then give it owner, mode and
 * times by descriptor) is where its maker said, as the event of its making says too.
 */
static bool opens_place(const struct sub_call *call, struct sub_text path,
                        const struct place *place) {
    int flags = call->arg[1];
    bool makes = (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL);
    if (call->type != SUB_OPEN || call->error != 0 || call->result < 0 ||
        call->op == SUB_OP_sem_open || /* its result is no descriptor */
        ((flags & O_NOFOLLOW) == 0 && !makes) || (flags & O_TMPFILE) == O_TMPFILE ||
        path.length == 0 || path.flags != 0)
        return false;
    if (!needs_directory(call->arg[0], path))
        return makes && !has_dots(path);
    if (place->id == 0)
        return false;
    for (uint32_t i = 0; i < path.length; i++) { /* "link/" is followed in any case */
        if (path.bytes[i] == '/')
            return false;
    }
    return !(path.bytes[0] == '.' &&
             (path.length == 1 || (path.length == 2 && path.bytes[1] == '.')));
}

/* The result of the record leads there too, from now on. */
static void remember_result(struct sub_record *record, const struct place *from, int result) {
    struct place place = {.descriptor = result, .id = place_id(result), .asked = from->asked};
    if (place.id == 0)
        return;
    if (from->id == 0)
        place.asked = SUB_PLACE_AGE(record->start_ns);
    record->flags |= SUB_FLAG_PLACE;
    remember_place(record, &place);
}

void sub_copy_place(struct sub_record *record, int from, int to) {
    struct place place = {.descriptor = from, .id = place_id(from)};
    if (place.id != 0 && is_known_place(&place, record->start_ns))
        remember_result(record, &place, to);
}

static void write_call(const struct sub_call *call, struct sub_text path, struct sub_text path2,
                       const struct place *place, const struct place *place2) {
    struct sub_text mode = {call->mode, call->mode != NULL ? (uint32_t)strnlen(call->mode, 16) : 0,
                            0};
    uint32_t fields =
        sub_text_size(path) + sub_text_size(path2) + sub_text_size(mode) + place_size(place2);
    if (!flag_is_enough(place))
        fields += place_size(place);
    if (call->sum != NULL)
        fields += sub_field_size(call->sum->bytes);
    uint64_t end = call->sum != NULL ? call->start_ns : sub_now();
    struct sub_record *record = sub_begin_at(call->type, call->op, call->start_ns, end, fields);
    if (record == NULL)
        return;
    record->result = call->result;
    record->error = call->error;
    record->flags |= call->flags | path.flags | path2.flags;
    memcpy(record->arg, call->arg, sizeof(record->arg));
    unsigned char *at = (unsigned char *)(record + 1);
    if (call->sum != NULL)
        at = sub_put(at, call->sum->tag, call->sum->counts, call->sum->bytes);
    at = sub_put_text(at, SUB_TAG_PATH, path);
    at = sub_put_text(at, SUB_TAG_PATH2, path2);
    at = sub_put_text(at, SUB_TAG_MODE, mode);
    if (flag_is_enough(place))
        record->flags |= SUB_FLAG_BELOW;
    else
        at = put_place(record, at, SUB_TAG_DIRECTORY, SUB_TAG_DIRECTORY_ID, place);
    put_place(record, at, SUB_TAG_DIRECTORY2, SUB_TAG_DIRECTORY2_ID, place2);
    if (opens_place(call, path, place))
        remember_result(record, place, (int)call->result);
    if (call->sum != NULL && path.bytes != NULL)
        sub_remember(record, call->sum);
    sub_commit(record);
}

/* Room for the usual; whoever goes deeper gets a bigger frame. */
#define DIRECTORY_USUAL 512

static bool find_places(const struct sub_call *call, struct sub_text path, struct sub_text path2,
                        struct place *place, struct place *place2, size_t size) {
    bool whole = find_place(call->arg[0], path, place, size, call->start_ns);
    if (path2.bytes != NULL && !find_place(call->arg[3], path2, place2, size, call->start_ns))
        whole = false;
    return whole;
}

static __attribute__((noinline)) void
record_deep_call(const struct sub_call *call, struct sub_text path, struct sub_text path2) {
    char first[SUB_STRING_MAX], second[SUB_STRING_MAX];
    struct place place = {.descriptor = -1, .path = first};
    struct place place2 = {.descriptor = -1, .path = second};
    find_places(call, path, path2, &place, &place2, sizeof(first));
    write_call(call, path, path2, &place, &place2);
}

static __attribute__((noinline)) void
record_relative_call(const struct sub_call *call, struct sub_text path, struct sub_text path2) {
    char first[DIRECTORY_USUAL], second[DIRECTORY_USUAL];
    struct place place = {.descriptor = -1, .path = first};
    struct place place2 = {.descriptor = -1, .path = second};
    if (find_places(call, path, path2, &place, &place2, sizeof(first)) || call->error == EBADF)
        write_call(call, path, path2, &place, &place2);
    else
        record_deep_call(call, path, path2);
}

/*
 * Records one call on one or two paths. Paths are written as they were passed; what only the kernel
 * knows at this moment, the directory behind a descriptor, is written beside them. Relative paths
 * without a descriptor need nothing: the reader follows the working directory from the hello and
 * the SUB_CHDIR records.
 */
void sub_record_call(const struct sub_call *call) {
    struct sub_text path = sub_text(call->path, call->error);
    struct sub_text path2 = sub_text(call->path2, call->error);
    static const struct place none = {.descriptor = -1};
    if (unlikely(needs_directory(call->arg[0], path) ||
                 (path2.bytes != NULL && needs_directory(call->arg[3], path2))))
        record_relative_call(call, path, path2);
    else
        write_call(call, path, path2, &none, &none);
}
