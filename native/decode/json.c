#include "json.h"

#define _GNU_SOURCE 1

#include <stdlib.h>

#include "decode.h"

void buffer_reserve(struct buffer *buffer, size_t more) {
    size_t needed = buffer->used + more;
    if (needed <= buffer->size)
        return;
    size_t size = buffer->size != 0 ? buffer->size : 4096;
    while (size < needed)
        size *= 2;
    buffer->bytes = resize(buffer->bytes, size, 1);
    buffer->size = size;
}

void json_text(struct buffer *out, const char *text) {
    json_raw(out, text, strlen(text));
}

void json_unsigned(struct buffer *out, uint64_t number) {
    char digits[20];
    size_t at = sizeof(digits);
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    json_raw(out, digits + at, sizeof(digits) - at);
}

void json_signed(struct buffer *out, int64_t number) {
    if (number < 0)
        json_literal(out, "-");
    json_unsigned(out, number < 0 ? 0 - (uint64_t)number : (uint64_t)number);
}

void json_decimal(struct buffer *out, int64_t number, unsigned places) {
    uint64_t magnitude = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    uint64_t unit = 1;
    for (unsigned i = 0; i < places; i++)
        unit *= 10;
    if (number < 0)
        json_literal(out, "-");
    json_unsigned(out, magnitude / unit);
    char digits[20];
    uint64_t fraction = magnitude % unit;
    for (unsigned i = places; i > 0; i--) {
        digits[i - 1] = (char)('0' + fraction % 10);
        fraction /= 10;
    }
    json_literal(out, ".");
    json_raw(out, digits, places);
}

/* A date from a count of days since 1970-01-01 in the proleptic Gregorian calendar: years are taken
 * to start in March, so that the leap day is their last, and counted in cycles of 400. */
static void civil(int64_t days, int64_t *year, unsigned *month, unsigned *day) {
    int64_t shifted = days + 719468; /* since 0000-03-01 */
    int64_t cycle = (shifted >= 0 ? shifted : shifted - 146096) / 146097;
    unsigned in_cycle = (unsigned)(shifted - cycle * 146097);
    unsigned in_years = (in_cycle - in_cycle / 1460 + in_cycle / 36524 - in_cycle / 146096) / 365;
    unsigned in_year = in_cycle - (365 * in_years + in_years / 4 - in_years / 100);
    unsigned shifted_month = (5 * in_year + 2) / 153;
    *day = in_year - (153 * shifted_month + 2) / 5 + 1;
    *month = shifted_month < 10 ? shifted_month + 3 : shifted_month - 9;
    *year = (int64_t)in_years + cycle * 400 + (*month <= 2);
}

static void put_digits(char *at, uint64_t number, unsigned count) {
    while (count-- > 0) {
        at[count] = (char)('0' + number % 10);
        number /= 10;
    }
}

void json_timestamp(struct buffer *out, int64_t ns) {
    /* Years that need more than four digits have no RFC 3339 form; a clock that says so is wrong. */
    static const int64_t last_second = 253402300799;
    static int64_t known_day = -1;
    static char text[] = "\"0000-00-00T00:00:00.000000Z\"";
    int64_t seconds = ns >= 0 ? ns / 1000000000 : 0;
    uint64_t micros = ns >= 0 ? (uint64_t)(ns % 1000000000) / 1000 : 0;
    if (seconds > last_second)
        seconds = last_second;
    int64_t day = seconds / 86400;
    if (day != known_day) {
        int64_t year;
        unsigned month, of_month;
        civil(day, &year, &month, &of_month);
        put_digits(text + 1, (uint64_t)year, 4);
        put_digits(text + 6, month, 2);
        put_digits(text + 9, of_month, 2);
        known_day = day;
    }
    uint64_t in_day = (uint64_t)(seconds % 86400);
    put_digits(text + 12, in_day / 3600, 2);
    put_digits(text + 15, in_day / 60 % 60, 2);
    put_digits(text + 18, in_day % 60, 2);
    put_digits(text + 21, micros, 6);
    json_raw(out, text, sizeof text - 1);
}

void json_hex(struct buffer *out, uint64_t number, unsigned digits) {
    static const char alphabet[] = "0123456789abcdef";
    char text[16];
    for (unsigned i = digits; i > 0; i--) {
        text[i - 1] = alphabet[number & 15u];
        number >>= 4;
    }
    json_raw(out, text, digits);
}

void json_name(struct buffer *out, const char *name) {
    json_literal(out, "\"");
    json_text(out, name);
    json_literal(out, "\"");
}

/* Length of the UTF-8 sequence at `bytes`, 0 where there is none (RFC 3629: no surrogates). */
static size_t sequence_length(const unsigned char *bytes, size_t left) {
    unsigned char first = bytes[0];
    if (first < 0x80)
        return 1;
    size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || length > left)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
    }
    if ((first == 0xe0 && bytes[1] < 0xa0) || (first == 0xed && bytes[1] > 0x9f) ||
        (first == 0xf0 && bytes[1] < 0x90) || (first == 0xf4 && bytes[1] > 0x8f))
        return 0;
    return length;
}

static void base64(struct buffer *out, const unsigned char *bytes, size_t length) {
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    buffer_reserve(out, (length + 2) / 3 * 4);
    for (size_t i = 0; i < length; i += 3) {
        size_t left = length - i;
        uint32_t group = (uint32_t)bytes[i] << 16;
        if (left > 1)
            group |= (uint32_t)bytes[i + 1] << 8;
        if (left > 2)
            group |= bytes[i + 2];
        char four[4] = {alphabet[group >> 18], alphabet[group >> 12 & 63],
                        left > 1 ? alphabet[group >> 6 & 63] : '=',
                        left > 2 ? alphabet[group & 63] : '='};
        json_raw(out, four, 4);
    }
}

static void escape(struct buffer *out, unsigned char byte) {
    static const char hex[] = "0123456789abcdef";
    switch (byte) {
    case '"':
        json_literal(out, "\\\"");
        break;
    case '\\':
        json_literal(out, "\\\\");
        break;
    case '\n':
        json_literal(out, "\\n");
        break;
    case '\t':
        json_literal(out, "\\t");
        break;
    default: {
        char text[6] = {'\\', 'u', '0', '0', hex[byte >> 4], hex[byte & 15]};
        json_raw(out, text, sizeof(text));
    }
    }
}

/* Bytes that stand for themselves in a JSON string of ASCII. */
static inline bool is_plain(unsigned char byte) {
    return byte >= 0x20 && byte < 0x7f && byte != '"' && byte != '\\';
}

void json_bytes(struct buffer *out, const char *text, size_t length) {
    const unsigned char *bytes = (const unsigned char *)text;
    size_t start = out->used;
    buffer_reserve(out, length + 2);
    json_literal(out, "\"");
    for (size_t i = 0; i < length;) {
        size_t run = i;
        while (run < length && is_plain(bytes[run]))
            run++;
        json_raw(out, text + i, run - i);
        i = run;
        if (i == length)
            break;
        size_t sequence = sequence_length(bytes + i, length - i);
        if (sequence == 0) {
            out->used = start;
            json_literal(out, "{\"b64\":\"");
            base64(out, bytes, length);
            json_literal(out, "\"}");
            return;
        }
        if (sequence == 1 && bytes[i] != 0x7f)
            escape(out, bytes[i]);
        else
            json_raw(out, text + i, sequence);
        i += sequence;
    }
    json_literal(out, "\"");
}
