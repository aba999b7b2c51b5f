/*
 * Libraries: those that the loader brought with the program, and those that come later.
 *
 * The loader searches for a library by who asks for it (the RPATH, RUNPATH and namespace of the
 * object that the return address lies in), so dlopen is jumped to without a frame of ours. What it
 * brought is found by the next hook that the program meets.
 */
#define _GNU_SOURCE 1

#include <dlfcn.h>
#include <link.h>

#include "hook.h"
#include "jump.h"
#include "process.h"
#include "sums.h"

#define KNOWN_MAX 1024u
#define LIBRARIES_BYTES 4096u
#define BASE_SPACE 0 /* LM_ID_BASE, which musl has not got */

const void *sub_libraries_pending;

extern ElfW(Dyn) _DYNAMIC[] __attribute__((visibility("hidden")));

/*
 * Those that the loader brought before it ran anything: none of them ever goes away, so the last one
 * is remembered, and neither they nor what they say need to be checked. Most programs have no others.
 */
static const struct link_map *last_of_start;

/* A hash of each other library that was told: an open table, never emptied. */
static uint64_t known[KNOWN_MAX];
static uint32_t known_count;

static bool take_as_new(const struct link_map *map, size_t length) {
    uint64_t hash = sub_hash_variable(map->l_name, length) ^ (uint64_t)(uintptr_t)map->l_ld;
    hash |= 1;
    if (__atomic_load_n(&known_count, __ATOMIC_RELAXED) > KNOWN_MAX / 2)
        return true; /* told twice rather than not */
    for (uint32_t i = (uint32_t)(hash >> 32) % KNOWN_MAX;; i = (i + 1) % KNOWN_MAX) {
        uint64_t found = 0;
        if (__atomic_compare_exchange_n(&known[i], &found, hash, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
            __atomic_fetch_add(&known_count, 1, __ATOMIC_RELAXED);
            return true;
        }
        if (found == hash)
            return false;
    }
}

#ifdef __GLIBC__
static const struct link_map *first_library(void) {
    return _r_debug.r_map;
}

/*
 * The loader's own entry comes at the end, or close to it; what another library's constructor asked
 * for before ours, and may close again, stands behind it.
 */
static bool is_last_of_start(const struct link_map *map) {
    return map->l_addr == _r_debug.r_ldbase;
}
#else
/* musl keeps it for debuggers only; its link map starts with the program, as a handle for it is. */
static const struct link_map *first_library(void) {
    static const struct link_map *first;
    if (first == NULL)
        first = dlopen(NULL, RTLD_LAZY);
    return first;
}

/* Nothing that musl loaded is ever unloaded. */
static bool is_last_of_start(const struct link_map *map) {
    return map->l_next == NULL;
}
#endif

/*
 * Another thread may be closing a library meanwhile, and the loader's lock must not be taken here
 * (this may be a signal handler, or a constructor that the lock's owner runs): each entry is looked
 * at only after the kernel has said that it can be, unless it stays. Returns the name's length, 0
 * for none.
 */
static size_t library_name(const struct link_map *map, bool stays) {
    if (map->l_ld == _DYNAMIC || map->l_name == NULL)
        return 0;
    size_t length = stays ? strnlen(map->l_name, SUB_STRING_MAX)
                          : sub_readable_string(map->l_name, SUB_STRING_MAX);
    return length == SIZE_MAX || length == SUB_STRING_MAX || map->l_name[0] != '/' ? 0 : length;
}

static void write_libraries(uint64_t now, const char *names, size_t length) {
    struct sub_record *record =
        sub_begin_at(SUB_LOAD, SUB_OP_none, now, now, sub_field_size(length));
    if (record == NULL)
        return;
    sub_put((unsigned char *)(record + 1), SUB_TAG_LIBRARIES, names, length);
    sub_commit(record);
}

/* Tells the libraries from `map` on, up to `last` without asking whether they are news or there. */
static void tell_libraries(const struct link_map *map, const struct link_map *last) {
    char names[LIBRARIES_BYTES];
    size_t used = 0;
    uint64_t now = sub_now();
    bool stays = last != NULL;
    for (int i = 0; i < 4096 && map != NULL && (stays || sub_readable(map, sizeof(*map))); i++) {
        size_t length = library_name(map, stays);
        if (length != 0 && (stays || take_as_new(map, length))) {
            if (used + length + 1 > sizeof(names)) {
                write_libraries(now, names, used);
                used = 0;
            }
            memcpy(names + used, map->l_name, length);
            used += length;
            names[used++] = '\0';
        }
        if (map == last)
            stays = false;
        map = map->l_next;
    }
    if (used != 0)
        write_libraries(now, names, used);
}

/* Those that came with the program. */
void sub_record_first_libraries(void) {
    const struct link_map *first = first_library(), *last = first;
    while (last != NULL && !is_last_of_start(last))
        last = last->l_next;
    last_of_start = last;
    if (sub_wants(SUB_CLASS_LOAD))
        tell_libraries(first, last);
}

/*
 * Records the libraries that have not been told yet: for the thread that called dlopen, which has
 * the loader's work behind it, and at the end.
 */
void sub_record_libraries(bool now_or_never) {
    if (!now_or_never &&
        __atomic_load_n(&sub_libraries_pending, __ATOMIC_RELAXED) != (const void *)&sub_self)
        return;
    __atomic_store_n(&sub_libraries_pending, NULL, __ATOMIC_RELAXED);
    if (sub_wants(SUB_CLASS_LOAD) && !sub_quiet)
        tell_libraries(last_of_start != NULL ? last_of_start->l_next : first_library(), NULL);
}

/*
 * Does what is loaded call libc past the hooks? That it may not be found is not known yet; who asks
 * for such things is told of in any case. musl has neither.
 */
static void note_scope(long space, int flags) {
#ifdef __GLIBC__
    if ((space != BASE_SPACE || (flags & RTLD_DEEPBIND) != 0) && sub_wants(0))
        sub_flag_segment(SUB_SEGMENT_PASSED);
#else
    (void)space;
    (void)flags;
#endif
}

/* What was asked for; whether it came, the libraries told after it say. */
static void record_request(enum sub_operation op, const char *path) {
    uint64_t now = sub_enter_class(SUB_CLASS_LOAD);
    if (now == 0)
        return;
    struct sub_text text = sub_text(path, EFAULT);
    if (text.bytes == NULL) /* the program itself */
        return;
    struct sub_record *record = sub_begin_at(SUB_LOAD, (uint16_t)op, now, now, sub_text_size(text));
    if (record == NULL)
        return;
    record->flags |= text.flags;
    sub_put_text((unsigned char *)(record + 1), SUB_TAG_PATH, text);
    sub_commit(record);
    __atomic_store_n(&sub_libraries_pending, (const void *)&sub_self, __ATOMIC_RELAXED);
}

__attribute__((used)) void *sub_prepare_dlopen(const char *path, int flags);
void *sub_prepare_dlopen(const char *path, int flags) {
    record_request(SUB_OP_dlopen, path);
    note_scope(BASE_SPACE, flags);
    return sub_next(SUB_OP_dlopen);
}

__attribute__((used)) void *sub_prepare_dlmopen(long space, const char *path, int flags);
void *sub_prepare_dlmopen(long space, const char *path, int flags) {
    record_request(SUB_OP_dlmopen, path);
    note_scope(space, flags);
    return sub_next(SUB_OP_dlmopen);
}

JUMP_HOOK(dlopen, sub_prepare_dlopen);
#ifdef __GLIBC__
JUMP_HOOK(dlmopen, sub_prepare_dlmopen);
#endif
