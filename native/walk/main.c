/*
 * substrate-walk SOCKET INIT WORLD ROOT...
 *
 * Looks at directories as often as it is asked, and tells each time what is other than it was when
 * its last answer was taken (answer.c). SOCKET is a descriptor of the caller's, of type SOCK_STREAM.
 * A request is a byte of bits: 1, the last answer was taken; 2, look at everything. INIT is the pid
 * of the init of the world whose layers these are, WORLD its name: where the kernel tells what
 * its processes changed (watch.c), only that is looked at. INIT 0: everything is, each time.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/capability.h>

#include "watch.h"

#define TAKEN 1u
#define ALL 2u
#define HOW_ALL 1u
#define HOW_SOME 2u
#define MEMORY_LIMIT (2ull << 30)

_Noreturn void die(const char *why) {
    if (errno)
        fprintf(stderr, "substrate-walk: %s: %s\n", why, strerror(errno));
    else
        fprintf(stderr, "substrate-walk: %s\n", why);
    exit(1);
}

void *grown(void *memory, size_t size) {
    void *more = realloc(memory, size);
    if (!more)
        die("no memory");
    return more;
}

/* What is left is to read whatever there is, and to be told of changes. */
static void give_up_rights(void) {
    const uint64_t kept = 1ull << CAP_DAC_READ_SEARCH | 1ull << CAP_BPF;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct now[2] = {0}, least[2] = {0};
    if (syscall(SYS_capget, &header, now))
        die("cannot read capabilities");
    for (uint32_t i = 0; i < 2; i++)
        least[i].effective = least[i].permitted = now[i].permitted & (uint32_t)(kept >> 32 * i);
    if (syscall(SYS_capset, &header, least) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        die("cannot give up rights");
    prctl(PR_SET_DUMPABLE, 0);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
#ifndef SUBSTRATE_SANITIZED /* sanitizers want terabytes of addresses */
    struct rlimit memory = {MEMORY_LIMIT, MEMORY_LIMIT};
    setrlimit(RLIMIT_AS, &memory);
#endif
    setrlimit(RLIMIT_FSIZE, &none);
}

static bool watched, blind;
static struct inodes unsettled;

static int by_number(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

/* Each once: the same files may be written for days. */
static void sort(struct inodes *inodes) {
    if (!inodes->count)
        return;
    qsort(inodes->at, inodes->count, sizeof *inodes->at, by_number);
    size_t kept = 1;
    for (size_t i = 1; i < inodes->count; i++)
        if (inodes->at[i] != inodes->at[kept - 1])
            inodes->at[kept++] = inodes->at[i];
    inodes->count = kept;
}

/*
 * A change that is under way when it is looked at may go on without another word: size follows
 * time. So inodes are looked at again until there was a moment at which nobody lived who could
 * have been at it. Returns how it was looked.
 */
static uint32_t look(struct walk *walk, bool all) {
    bool known = watched && watch_take(&unsettled);
    bool quiet = watched && watch_is_quiet();
    sort(&unsettled);
    all = all || !known || blind || unsettled.count > walk->index.living / 2;
    /* Who was lost count of may still be at it: everything is looked at until nobody can be. */
    blind = watched && (blind || !known) && !quiet;
    if (all)
        walk_all(walk);
    else
        walk_some(walk, &unsettled);
    if (quiet)
        unsettled.count = 0;
    return all ? HOW_ALL : HOW_SOME;
}

int main(int argc, char **argv) {
    if (argc < 5 || argc - 4 > (int)ROOTS_MAX) {
        fprintf(stderr, "usage: substrate-walk SOCKET INIT WORLD ROOT...\n");
        return 2;
    }
    int socket = atoi(argv[1]);
    static struct walk walk;
    int roots[ROOTS_MAX];
    uint32_t count = (uint32_t)(argc - 4);
    for (uint32_t i = 0; i < count; i++) {
        roots[i] = open(argv[4 + i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (roots[i] < 0)
            die(argv[4 + i]);
    }
    long init = atol(argv[2]);
    /* Before the first look: what is done between the two is told, and looked at again. */
    const char *problem = init ? watch_begin(init, argv[3], roots, count) : "not asked for";
    watched = problem == NULL;
    give_up_rights();
    walk_begin(&walk, roots, count);
    bool first = true;
    for (;;) {
        uint8_t request;
        ssize_t got = read(socket, &request, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        if (request & TAKEN)
            walk_told(&walk);
        uint32_t how = look(&walk, first || (request & ALL));
        first = false;
        answer(&walk, socket, how);
    }
}
