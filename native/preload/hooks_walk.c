/*
 * Calls that go through trees inside libc: walks, patterns, shell words. What they open and look up
 * passes no symbol, so the place they start from is recorded.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <glob.h>
#include <wordexp.h>

#include "hook.h"
#include "process.h"

static void record_walk(enum sub_operation op, uint64_t start, const char *path, int result,
                        int error) {
    struct sub_call call = {
        .type = SUB_OPEN,
        .op = (uint16_t)op,
        .error = error,
        .flags = SUB_FLAG_DIRECTORY,
        .start_ns = start,
        .result = result,
        .arg = {AT_FDCWD, O_RDONLY | O_DIRECTORY, 0, 0},
        .path = path,
    };
    sub_record_call(&call);
}

/* The callback may fork or go elsewhere for good, so the walk is recorded before it starts. */
#define WALK_HOOK(symbol, parameters, types, arguments)                                            \
    HOOK(int, symbol, parameters) {                                                                \
        int(*next) types = NEXT(symbol, int(*) types);                                             \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        if (start != 0 && sub_readable_string(path, SUB_STRING_MAX) != SIZE_MAX)                   \
            record_walk(SUB_OP_##symbol, start, path, 0, 0);                                       \
        return next arguments;                                                                     \
    }

#define FTW_HOOK(symbol)                                                                           \
    WALK_HOOK(symbol, (const char *path, void *visit, int descriptors),                            \
              (const char *, void *, int), (path, visit, descriptors))
#define NFTW_HOOK(symbol)                                                                          \
    WALK_HOOK(symbol, (const char *path, void *visit, int descriptors, int flags),                 \
              (const char *, void *, int, int), (path, visit, descriptors, flags))

FTW_HOOK(ftw)
FTW_HOOK(ftw64)
NFTW_HOOK(nftw)
NFTW_HOOK(nftw64)

/* A walk may have several roots. */
#define FTS_HOOK(symbol)                                                                           \
    HOOK(void *, symbol, (char *const *paths, int options, void *compare)) {                       \
        void *(*next)(char *const *, int, void *) =                                                \
            NEXT(symbol, void *(*)(char *const *, int, void *));                                   \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return NULL;                                                                           \
        }                                                                                          \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        void *walk = next(paths, options, compare);                                                \
        int error = sub_error(walk == NULL);                                                       \
        if (start != 0 && error != EFAULT) {                                                       \
            for (char *const *path = paths; *path != NULL; path++)                                 \
                record_walk(SUB_OP_##symbol, start, *path, walk != NULL ? 0 : -1, error);          \
        }                                                                                          \
        return walk;                                                                               \
    }

FTS_HOOK(fts_open)
FTS_HOOK(fts64_open)

/* The pattern is the path; GLOB_NOMATCH and the like are the result. */
#define GLOB_HOOK(symbol)                                                                          \
    HOOK(int, symbol, (const char *pattern, int flags, void *on_error, void *matches)) {           \
        int (*next)(const char *, int, void *, void *) =                                           \
            NEXT(symbol, int (*)(const char *, int, void *, void *));                              \
        if (next == NULL)                                                                          \
            return GLOB_NOSYS;                                                                     \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        int result = next(pattern, flags, on_error, matches);                                      \
        if (start != 0)                                                                            \
            record_walk(SUB_OP_##symbol, start, pattern, result, 0);                               \
        return result;                                                                             \
    }

GLOB_HOOK(glob)
GLOB_HOOK(glob64)

/* Words with $(commands) are run by a shell inside. */
HOOK(int, wordexp, (const char *words, wordexp_t *expanded, int flags)) {
    int (*next)(const char *, wordexp_t *, int) =
        NEXT(wordexp, int (*)(const char *, wordexp_t *, int));
    if (next == NULL)
        return WRDE_NOSPACE;
    uint64_t start = sub_enter();
    int result = next(words, expanded, flags);
    if (start == 0)
        return result;
    struct sub_text text = sub_text(words, 0);
    struct sub_record *record = sub_begin(SUB_SPAWN, SUB_OP_wordexp, start, sub_text_size(text));
    if (record == NULL)
        return result;
    record->result = result;
    record->flags |= text.flags;
    sub_put_text((unsigned char *)(record + 1), SUB_TAG_NAME, text);
    sub_commit(record);
    return result;
}
