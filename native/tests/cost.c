/*
 * Prints what one call costs, in nanoseconds: "spawn N" runs /bin/true N times with this
 * environment, "open N" and "openat N" fail to find a file N times. Static, so that the library is
 * in the programs it starts and not in itself, except where the benchmark builds it dynamically.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int compare(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

static double spawn(int count) {
    extern char **environ;
    char *argv[] = {"/bin/true", NULL};
    double *times = calloc((size_t)count, sizeof(*times));
    for (int i = 0; i < count; i++) {
        double start = now_ns();
        pid_t child;
        if (posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ) != 0 ||
            waitpid(child, NULL, 0) != child)
            exit(1);
        times[i] = now_ns() - start;
    }
    qsort(times, (size_t)count, sizeof(*times), compare);
    return times[count / 2];
}

int main(int argc, char **argv) {
    int count = argc > 2 ? atoi(argv[2]) : 0;
    if (count <= 0)
        return 2;
    if (strcmp(argv[1], "spawn") == 0) {
        printf("%.0f\n", spawn(count));
        return 0;
    }
    int directory = open("/", O_RDONLY | O_DIRECTORY);
    bool below = strcmp(argv[1], "openat") == 0;
    double start = now_ns();
    for (int i = 0; i < count; i++)
        openat(below ? directory : AT_FDCWD,
               below ? "missing/name" : "/missing/path/of/some/length.txt", O_RDONLY);
    printf("%.1f\n", (now_ns() - start) / count);
    return 0;
}
