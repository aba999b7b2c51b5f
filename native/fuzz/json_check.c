/*
 * A strict check of JSON, so that the fuzzer finds lines that no reader would take, not only
 * crashes.
 */
#include "json_check.h"

#include <stdint.h>
#include <string.h>

#define DEPTH_MAX 16

struct cursor {
    const unsigned char *at, *end;
};

static bool value(struct cursor *cursor, int depth);

static bool take(struct cursor *cursor, char byte) {
    if (cursor->at == cursor->end || *cursor->at != (unsigned char)byte)
        return false;
    cursor->at++;
    return true;
}

static bool word(struct cursor *cursor, const char *text) {
    size_t length = strlen(text);
    if ((size_t)(cursor->end - cursor->at) < length || memcmp(cursor->at, text, length) != 0)
        return false;
    cursor->at += length;
    return true;
}

/* One character that is not ASCII: no overlong forms, no surrogates (RFC 3629). */
static bool utf8(struct cursor *cursor) {
    unsigned char first = *cursor->at;
    int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (first < 0xc2 || first > 0xf4 || cursor->end - cursor->at <= more)
        return false;
    uint32_t point = first & (0x3fu >> more);
    for (int i = 1; i <= more; i++) {
        if ((cursor->at[i] & 0xc0) != 0x80)
            return false;
        point = point << 6 | (cursor->at[i] & 0x3fu);
    }
    cursor->at += more + 1;
    return point >= least[more] && point <= 0x10ffff && !(point >= 0xd800 && point <= 0xdfff);
}

static bool escape(struct cursor *cursor) {
    if (cursor->at == cursor->end)
        return false;
    unsigned char kind = *cursor->at++;
    if (kind != 'u')
        return strchr("\"\\/bfnrt", kind) != NULL && kind != '\0';
    for (int i = 0; i < 4; i++) {
        if (cursor->at == cursor->end || *cursor->at == '\0' ||
            strchr("0123456789abcdefABCDEF", *cursor->at) == NULL)
            return false;
        cursor->at++;
    }
    return true;
}

static bool string(struct cursor *cursor) {
    if (!take(cursor, '"'))
        return false;
    while (cursor->at < cursor->end) {
        unsigned char byte = *cursor->at;
        if (byte == '"') {
            cursor->at++;
            return true;
        }
        if (byte < 0x20)
            return false;
        if (byte >= 0x80) {
            if (!utf8(cursor))
                return false;
            continue;
        }
        cursor->at++;
        if (byte == '\\' && !escape(cursor))
            return false;
    }
    return false;
}

static bool digits(struct cursor *cursor) {
    const unsigned char *start = cursor->at;
    while (cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9')
        cursor->at++;
    return cursor->at != start;
}

/* As the decoder writes them: no exponents. */
static bool number(struct cursor *cursor) {
    take(cursor, '-');
    const unsigned char *start = cursor->at;
    if (!digits(cursor) || (*start == '0' && cursor->at - start > 1))
        return false;
    return !take(cursor, '.') || digits(cursor);
}

static bool members(struct cursor *cursor, int depth, char close, bool named) {
    if (take(cursor, close))
        return true;
    do {
        if (named && !(string(cursor) && take(cursor, ':')))
            return false;
        if (!value(cursor, depth + 1))
            return false;
    } while (take(cursor, ','));
    return take(cursor, close);
}

static bool value(struct cursor *cursor, int depth) {
    if (cursor->at == cursor->end || depth > DEPTH_MAX)
        return false;
    switch (*cursor->at) {
    case '{':
        cursor->at++;
        return members(cursor, depth, '}', true);
    case '[':
        cursor->at++;
        return members(cursor, depth, ']', false);
    case '"':
        return string(cursor);
    case 't':
        return word(cursor, "true");
    case 'f':
        return word(cursor, "false");
    case 'n':
        return word(cursor, "null");
    default:
        return number(cursor);
    }
}

bool is_json(const char *text, size_t length) {
    struct cursor cursor = {(const unsigned char *)text, (const unsigned char *)text + length};
    return value(&cursor, 0) && cursor.at == cursor.end;
}
