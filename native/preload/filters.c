/*
 * Seccomp filters of the program's own.
 *
 * A filter may answer a system call of this library's with the end of the program. So before one is
 * installed it is run here, over the calls that the library makes. Where all of them pass, nothing
 * changes. Where one would not, the process becomes quiet: it writes to the segments it has, without
 * system calls, as far as they reach.
 *
 * What it executes starts below the filter, knows nothing, and must not ask: it is told by a file
 * beside the segments. Looking for that takes what the loader did a moment ago, with the same
 * arguments (access, opening a file for reading), and so does reading in /proc how many filters there
 * are.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "process.h"
#include "record.h"
#include "system.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

#define ACTION_LOG 0x7ffc0000u /* SECCOMP_RET_LOG, of Linux 4.14 */
#define MARK_BYTES 4096
#define WORDS 16 /* of a filter's own memory: BPF_MEMWORDS */

/* --- running a filter (kernel/seccomp.c, seccomp_check_filter: what one may consist of) ------- */

struct machine {
    uint32_t a, x, memory[WORDS];
};

static uint32_t compute(uint16_t code, uint32_t a, uint32_t by) {
    switch (BPF_OP(code)) {
    case BPF_ADD:
        return a + by;
    case BPF_SUB:
        return a - by;
    case BPF_MUL:
        return a * by;
    case BPF_DIV:
        return by != 0 ? a / by : 0;
    case BPF_AND:
        return a & by;
    case BPF_OR:
        return a | by;
    case BPF_XOR:
        return a ^ by;
    case BPF_LSH:
        return by < 32 ? a << by : 0;
    case BPF_RSH:
        return by < 32 ? a >> by : 0;
    default: /* BPF_NEG */
        return -a;
    }
}

static bool holds(uint16_t code, uint32_t a, uint32_t with) {
    switch (BPF_OP(code)) {
    case BPF_JEQ:
        return a == with;
    case BPF_JGT:
        return a > with;
    case BPF_JGE:
        return a >= with;
    default: /* BPF_JSET */
        return (a & with) != 0;
    }
}

static uint32_t load(const struct machine *machine, const struct sock_filter *code,
                     const struct seccomp_data *data) {
    uint32_t word = 0;
    switch (BPF_MODE(code->code)) {
    case BPF_ABS:
        if (code->k <= sizeof(*data) - sizeof(word))
            memcpy(&word, (const char *)data + code->k, sizeof(word));
        return word;
    case BPF_LEN:
        return sizeof(*data);
    case BPF_MEM:
        return machine->memory[code->k % WORDS];
    default: /* BPF_IMM */
        return code->k;
    }
}

/* What the kernel would do; a filter that runs out of itself is none, and it will not take it. */
static uint32_t verdict(const struct sock_fprog *program, const struct seccomp_data *data) {
    struct machine machine = {0};
    for (uint32_t at = 0; at < program->len; at++) {
        const struct sock_filter *code = &program->filter[at];
        uint32_t operand = BPF_SRC(code->code) == BPF_X ? machine.x : code->k;
        switch (BPF_CLASS(code->code)) {
        case BPF_LD:
            machine.a = load(&machine, code, data);
            break;
        case BPF_LDX:
            machine.x = load(&machine, code, data);
            break;
        case BPF_ST:
            machine.memory[code->k % WORDS] = machine.a;
            break;
        case BPF_STX:
            machine.memory[code->k % WORDS] = machine.x;
            break;
        case BPF_ALU:
            machine.a = compute(code->code, machine.a, operand);
            break;
        case BPF_JMP:
            if (BPF_OP(code->code) == BPF_JA)
                at = code->k < program->len - at ? at + code->k : program->len;
            else
                at += holds(code->code, machine.a, operand) ? code->jt : code->jf;
            break;
        case BPF_RET:
            return BPF_RVAL(code->code) == BPF_A ? machine.a : code->k;
        default: /* BPF_MISC */
            if (BPF_MISCOP(code->code) == BPF_TAX)
                machine.x = machine.a;
            else
                machine.a = machine.x;
            break;
        }
    }
    return SECCOMP_RET_ALLOW;
}

/* --- what it says of this library's calls ----------------------------------------------------- */

enum permission { PERMITTED, HINDERED, FORBIDDEN };

/* The calls of a start, of a thread's or a forked child's first record, and of the next segment. */
static const struct {
    int number;
    bool needed; /* an errno for an answer, and nothing more can be recorded */
    uint64_t arguments[6];
} calls[] = {
#define POINTER 0x7f0000001000u
#define HERE ((uint64_t)(int64_t)AT_FDCWD)
    {SYS_openat, true, {HERE, POINTER, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0777}},
    {SYS_openat, false, {HERE, POINTER, O_RDONLY | O_CLOEXEC}},
    {SYS_read, false, {3, POINTER, 511}},
    {SYS_fstat, false, {3, POINTER}},
    {SYS_fallocate, true, {3, 0, 0, SUB_SEGMENT_FIRST}},
    {SYS_mmap, true, {0, SUB_SEGMENT_FIRST, PROT_READ | PROT_WRITE, MAP_SHARED, 3}},
    {SYS_mmap,
     true,
     {0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, ~0ull}},
    {SYS_munmap, false, {POINTER, SUB_SEGMENT_FIRST}},
    {SYS_madvise, false, {POINTER, 4096, 18}},
    {SYS_close, false, {3}},
    {SYS_fchmod, false, {3, 0644}},
    {SYS_unlinkat, false, {HERE, POINTER}},
    {SYS_statfs, false, {POINTER, POINTER}},
    {SYS_faccessat, false, {HERE, POINTER}},
    {SYS_readlinkat, false, {HERE, POINTER, POINTER, SUB_STRING_MAX}},
    {SYS_prlimit64, false, {0, RLIMIT_FSIZE, 0, POINTER}},
    {SYS_pidfd_open, false, {2}},
    {SYS_ioctl, false, {3, 0xff06}},
    {SYS_getcwd, false, {POINTER, SUB_STRING_MAX}},
    {SYS_gettid, false, {0}},
    {SYS_getpid, false, {0}},
    {SYS_getppid, false, {0}},
    {SYS_geteuid, false, {0}},
    {SYS_clock_gettime, false, {1, POINTER}},
    {SYS_rt_sigprocmask, false, {~0ull, POINTER, 0, 8}},
    {SYS_getpeername, false, {3, POINTER, POINTER}},
    {SYS_sched_yield, false, {0}},
    {SYS_nanosleep, false, {POINTER, 0}},
};

static enum permission judge(const struct sock_fprog *program) {
    enum permission worst = PERMITTED;
    if (!sub_readable(program, sizeof(*program)) || program->len > BPF_MAXINSNS ||
        !sub_readable(program->filter, program->len * sizeof(*program->filter)))
        return PERMITTED; /* the kernel will not take it */
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        struct seccomp_data data = {
            .nr = calls[i].number, .arch = ARCHITECTURE, .instruction_pointer = (uintptr_t)calls};
        for (int j = 0; j < 6; j++)
            data.args[j] = calls[i].arguments[j];
        uint32_t result = verdict(program, &data), action = result & 0xffff0000u;
        if (action == SECCOMP_RET_ALLOW || action == ACTION_LOG)
            continue;
        /* An errno of 0 is a call that was not made and says that it was. */
        if (action != SECCOMP_RET_ERRNO || (result & SECCOMP_RET_DATA) == 0)
            return FORBIDDEN;
        if (calls[i].needed)
            worst = HINDERED;
    }
    return worst;
}

/* --- the mark --------------------------------------------------------------------------------- */

static void mark_path(char *path) {
    size_t length = strlen(sub_directory);
    memcpy(path, sub_directory, length);
    memcpy(path + length, "/" SUB_FILTER_MARK, sizeof("/" SUB_FILTER_MARK));
}

/* As the loader opens files. */
static long open_to_read(const char *path) {
#if !defined(__GLIBC__) && defined(SYS_open)
    return SYS3(SYS_open, path, O_RDONLY | O_CLOEXEC, 0);
#else
    return SYS4(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
#endif
}

/*
 * As glibc's loader looks for /etc/ld.so.preload: cheaper than opening, and this is asked at every
 * start. musl's looks for nothing.
 */
static bool is_there(const char *path) {
#if !defined(__GLIBC__)
    (void)path;
    return true;
#elif defined(SYS_access)
    return SYS2(SYS_access, path, R_OK) == 0;
#else
    return SYS3(SYS_faccessat, AT_FDCWD, path, R_OK) == 0;
#endif
}

/* How many filters this process is below; UINT32_MAX: nobody says (before Linux 5.9). */
static uint32_t count_filters(void) {
    static const char field[] = "\nSeccomp_filters:\t";
    char text[4096];
    long fd = open_to_read("/proc/self/status");
    if (fd < 0)
        return UINT32_MAX;
    long length = SYS3(SYS_read, fd, text, sizeof(text) - 1);
    SYS1(SYS_close, fd);
    text[length > 0 ? length : 0] = '\0';
    const char *at = strstr(text, field);
    uint32_t count = 0;
    if (at == NULL)
        return UINT32_MAX;
    for (at += sizeof(field) - 1; *at >= '0' && *at <= '9'; at++)
        count = count * 10 + (uint32_t)(*at - '0');
    return count;
}

/*
 * Notes down how many filters the least filtered of those was below that installed a forbidding one:
 * whoever is below such a filter is below more.
 */
static void leave_mark(void) {
    char path[SUB_DIRECTORY_MAX + sizeof("/" SUB_FILTER_MARK)];
    uint32_t mine = count_filters() + 1; /* 0 stands for nothing noted */
    mark_path(path);
    long fd = SYS4(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0)
        return;
    SYS2(SYS_fchmod, fd, 0666);
    long base = -1;
    if (SYS4(SYS_fallocate, fd, 0, 0, MARK_BYTES) == 0)
        base = SYS6(SYS_mmap, 0, MARK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    SYS1(SYS_close, fd);
    if (base < 0 && base > -4096)
        return;
    uint32_t *least = (uint32_t *)base;
    uint32_t noted = __atomic_load_n(least, __ATOMIC_RELAXED);
    while ((noted == 0 || noted > mine) &&
           !__atomic_compare_exchange_n(least, &noted, mine, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
    }
    SYS2(SYS_munmap, base, MARK_BYTES);
}

/* Every start asks; what is beside it here most never run: see preload.ld. */
__attribute__((section(".text.start"))) bool sub_below_filter(void) {
    char path[SUB_DIRECTORY_MAX + sizeof("/" SUB_FILTER_MARK)];
    uint32_t noted = 0;
    mark_path(path);
    if (!is_there(path))
        return false; /* nobody installed one */
    long fd = open_to_read(path);
    if (fd < 0)
        return false;
    long length = SYS3(SYS_read, fd, &noted, sizeof(noted));
    SYS1(SYS_close, fd);
    if (length != (long)sizeof(noted) || noted == 0)
        return false;
    uint32_t filters = count_filters();
    return filters == UINT32_MAX || filters >= noted;
}

/* --- installing one --------------------------------------------------------------------------- */

bool sub_before_filter(const void *program) {
    if (sub_mode != SUB_ON || sub_quiet)
        return false;
    enum permission permission = program != NULL ? judge(program) : HINDERED;
    if (permission == FORBIDDEN)
        leave_mark();
    return permission != PERMITTED && sub_become_quiet();
}
