/*
 * A malloc that opens a file the first time it is called, as jemalloc does. Whoever calls it from
 * there would wait for its lock for ever: here it aborts.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>
static char heap[1 << 26];
static size_t used;
static int ready;
void *malloc(size_t n) {
    if (ready < 0)
        abort();
    if (!ready) {
        ready = -1;
        int fd = open("/proc/self/maps", O_RDONLY);
        if (fd >= 0)
            close(fd);
        ready = 1;
    }
    size_t at = __atomic_fetch_add(&used, (n + 31) & ~15ul, __ATOMIC_RELAXED);
    if (at + n + 16 > sizeof(heap))
        return 0;
    *(size_t *)(heap + at) = n;
    return heap + at + 16;
}
void free(void *p) {
    (void)p;
}
void *calloc(size_t a, size_t b) {
    return malloc(a * b);
}
void *realloc(void *p, size_t n) {
    char *q = malloc(n);
    if (p && q) {
        size_t o = *(size_t *)((char *)p - 16);
        for (size_t i = 0; i < (o < n ? o : n); i++)
            q[i] = ((char *)p)[i];
    }
    return q;
}
