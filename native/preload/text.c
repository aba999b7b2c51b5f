/*
 * What the library needs of <string.h>, for itself alone: hidden, so neither programs nor the loader
 * see it.
 *
 * Libc's are faster on long strings, but each is a symbol to look up and one or two pages of code to
 * map in every program that is started, which here costs more than it ever brings. And where a
 * sanitizer or a program stands in front of libc's, ours do not run into it.
 *
 * Bytes are read in aligned words of eight, which never cross into a page that the string is not on.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

typedef uint64_t __attribute__((may_alias)) word;
typedef uint64_t __attribute__((may_alias, aligned(1))) loose_word;

/* Keeps compilers from finding that a loop is the very function that it is the body of. */
#define OPAQUE(pointer) __asm__("" : "+r"(pointer))

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    unsigned char *out = to;
    const unsigned char *in = from;
    if (bytes < 8) {
        for (; bytes > 0; bytes--) {
            *out++ = *in++;
            OPAQUE(out);
        }
        return to;
    }
    /* The last word may overlap the one before. */
    *(loose_word *)(out + bytes - 8) = *(const loose_word *)(in + bytes - 8);
    for (; bytes > 8; bytes -= 8, out += 8, in += 8) {
        *(loose_word *)out = *(const loose_word *)in;
        OPAQUE(out);
    }
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    unsigned char *out = to;
    uint64_t pattern = (unsigned char)value * 0x0101010101010101u;
    for (; bytes >= 8; bytes -= 8, out += 8) {
        *(loose_word *)out = pattern;
        OPAQUE(out);
    }
    for (; bytes > 0; bytes--) {
        *out++ = (unsigned char)value;
        OPAQUE(out);
    }
    return to;
}

size_t strnlen(const char *string, size_t max) {
    const char *at = string, *end = max < SIZE_MAX - (uintptr_t)string ? string + max : NULL;
    for (; (uintptr_t)at % 8 != 0; at++) {
        if (at == end || *at == '\0')
            return (size_t)(at - string);
    }
    for (; end == NULL || at < end; at += 8) {
        uint64_t bytes = *(const word *)(const void *)at;
        uint64_t zeros = (bytes - 0x0101010101010101u) & ~bytes & 0x8080808080808080u;
        if (zeros != 0) {
            at += __builtin_ctzll(zeros) / 8;
            break;
        }
    }
    return end != NULL && at > end ? max : (size_t)(at - string);
}

size_t strlen(const char *string) {
    OPAQUE(string);
    return strnlen(string, SIZE_MAX);
}

int memcmp(const void *left, const void *right, size_t bytes) {
    const unsigned char *a = left, *b = right;
    for (; bytes > 0; a++, b++, bytes--) {
        if (*a != *b)
            return *a - *b;
    }
    return 0;
}

/* What compilers make of a memcmp whose sign does not matter. */
int bcmp(const void *left, const void *right, size_t bytes) {
    OPAQUE(left);
    return memcmp(left, right, bytes);
}

int strncmp(const char *left, const char *right, size_t max) {
    for (; max > 0; left++, right++, max--) {
        if (*left != *right || *left == '\0')
            return (unsigned char)*left - (unsigned char)*right;
    }
    return 0;
}

int strcmp(const char *left, const char *right) {
    OPAQUE(left);
    return strncmp(left, right, SIZE_MAX);
}

char *strstr(const char *in, const char *what) {
    size_t length = strlen(what);
    for (; strncmp(in, what, length) != 0; in++) {
        if (*in == '\0')
            return NULL;
    }
    return (char *)(uintptr_t)in;
}

size_t strcspn(const char *string, const char *stops) {
    size_t length = 0;
    for (; string[length] != '\0'; length++) {
        for (const char *stop = stops; *stop != '\0'; stop++) {
            if (*stop == string[length])
                return length;
        }
    }
    return length;
}
