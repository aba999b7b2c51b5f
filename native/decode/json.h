/*
 * Writing JSON into a growing buffer.
 *
 * Bytes become a string where they are UTF-8 and {"b64": "..."} where they are not: nothing that a
 * program named is ever changed or dropped.
 */
#ifndef SUBSTRATE_DECODE_JSON_H
#define SUBSTRATE_DECODE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct buffer {
    char *bytes;
    size_t used;
    size_t size;
};

/* Makes room for `more` bytes; the program ends with a message when memory does. */
void buffer_reserve(struct buffer *buffer, size_t more);

static inline void json_raw(struct buffer *out, const char *text, size_t length) {
    if (out->size - out->used < length)
        buffer_reserve(out, length);
    memcpy(out->bytes + out->used, text, length);
    out->used += length;
}

#define json_literal(out, text) json_raw((out), (text), sizeof(text) - 1)

void json_text(struct buffer *out, const char *text);
void json_unsigned(struct buffer *out, uint64_t number);
void json_signed(struct buffer *out, int64_t number);
/* `number` units of 10^-places, as a decimal fraction. */
void json_decimal(struct buffer *out, int64_t number, unsigned places);
/* RFC 3339 in UTC with microseconds, as every "ts" of the journal is; nanoseconds since the epoch. */
void json_timestamp(struct buffer *out, int64_t ns);
void json_hex(struct buffer *out, uint64_t number, unsigned digits);
void json_bytes(struct buffer *out, const char *bytes, size_t length);
/* A C string that is known to need no escape. */
void json_name(struct buffer *out, const char *name);

#endif
