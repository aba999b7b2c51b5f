/*
 * Work to be killed at any moment: "soak FILE" makes processes and threads of every kind for as long
 * as it lives, each of which opens "/soak/<slot>-<number>" and, once that call has returned, stores
 * the number of its opens in FILE, at its slot. What stands there was published: the reader of the
 * records must find it, once. "soak FILE once" opens twenty and ends.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 65535u
#define RUNNERS 3
#define OPENS 20

struct page {
    uint32_t next;
    uint32_t published[SLOTS];
};

static struct page *page;
static char *arguments[] = {"soak", NULL, "once", NULL};

static void work(void) {
    uint32_t slot = __atomic_fetch_add(&page->next, 1, __ATOMIC_RELAXED);
    if (slot >= SLOTS)
        for (;;)
            pause();
    for (uint32_t i = 0; i < OPENS; i++) {
        char path[64];
        snprintf(path, sizeof path, "/soak/%u-%u", slot, i);
        open(path, O_RDONLY);
        __atomic_store_n(&page->published[slot], i + 1, __ATOMIC_RELEASE);
    }
}

static void *thread(void *unused) {
    work();
    return unused;
}

static void await(pid_t child) {
    if (child > 0)
        waitpid(child, NULL, 0);
}

static void go_round(void) {
    pthread_t threads[2];
    extern char **environ;
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, thread, NULL);
    work();
    pid_t child = fork(); /* while the threads run */
    if (child == 0) {
        work();
        if (getpid() % 2 == 0)
            execv("/proc/self/exe", arguments);
        _exit(0);
    }
    await(child);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    child = vfork();
    if (child == 0) {
        execv("/proc/self/exe", arguments);
        _exit(1);
    }
    await(child);
    if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ) == 0)
        await(child);
}

int main(int argc, char **argv) {
    int fd = argc > 1 ? open(argv[1], O_RDWR) : -1;
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        return 2;
    close(fd);
    arguments[1] = argv[1];
    work();
    if (argc > 2)
        return 0;
    for (int i = 1; i < RUNNERS; i++) {
        if (fork() == 0)
            break;
    }
    for (;;)
        go_round();
}
