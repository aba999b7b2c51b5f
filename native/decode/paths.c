/*
 * Paths as text: made absolute, compared, and followed through a renaming.
 */
#define _GNU_SOURCE 1

#include <string.h>

#include "decode.h"

/* Appends the components of `path` to `to`, without ".", "..", and doubled slashes. */
static uint32_t append_components(char *to, uint32_t used, struct slice path) {
    if (path.length == 0)
        return used;
    const char *at = path.bytes, *end = path.bytes + path.length;
    while (at < end) {
        const char *slash = memchr(at, '/', (size_t)(end - at));
        size_t length = (size_t)((slash != NULL ? slash : end) - at);
        if (length == 2 && at[0] == '.' && at[1] == '.') {
            while (used > 0 && to[--used] != '/') {
            }
        } else if (length != 0 && !(length == 1 && at[0] == '.') &&
                   used + length + 2 < PATH_BYTES) {
            to[used++] = '/';
            memcpy(to + used, at, length);
            used += (uint32_t)length;
        }
        at += length + (slash != NULL);
    }
    return used;
}

bool is_absolute(struct slice path) {
    return path.length != 0 && path.bytes[0] == '/';
}

struct slice absolute(char *to, struct slice base, struct slice path) {
    struct slice result = {to, 0};
    if (!is_absolute(path)) {
        if (!is_absolute(base))
            return path;
        result.length = append_components(to, 0, base);
    }
    result.length = append_components(to, result.length, path);
    if (result.length == 0)
        to[result.length++] = '/';
    return result;
}

bool is_below(struct slice path, struct slice prefix) {
    while (prefix.length > 1 && prefix.bytes[prefix.length - 1] == '/')
        prefix.length--;
    if (path.length < prefix.length || prefix.length == 0 ||
        memcmp(path.bytes, prefix.bytes, prefix.length) != 0)
        return false;
    return path.length == prefix.length || prefix.bytes[prefix.length - 1] == '/' ||
           path.bytes[prefix.length] == '/';
}

struct slice renamed(char *to, struct slice path, const struct renaming *renaming) {
    const struct slice *from = &renaming->from, *into = &renaming->to;
    if (!is_below(path, *from)) {
        if (!renaming->exchange || !is_below(path, *into))
            return (struct slice){NULL, 0};
        from = &renaming->to;
        into = &renaming->from;
    }
    uint64_t rest = (uint64_t)path.length - from->length;
    if (path.length < from->length || into->length + rest > PATH_BYTES)
        return (struct slice){NULL, 0};
    memcpy(to, into->bytes, into->length);
    memcpy(to + into->length, path.bytes + from->length, rest);
    return (struct slice){to, into->length + (uint32_t)rest};
}
