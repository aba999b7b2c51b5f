/*
 * Who this process is, and the segments its threads write to.
 *
 * Everything here runs rarely: at the start of an image, on the first event of a thread or of a
 * forked child, and when a segment is full. It may make system calls; it still must not allocate,
 * lock, touch errno or keep a descriptor, because it can run in a signal handler, below malloc, or
 * in the child of a threaded program.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "process.h"
#include "record.h"
#include "system.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* After this many lost events, look again whether there is room for a segment. */
#define RETRY_EVERY 512u
#define EXEC_NUMBER_MAX 512u

__thread struct sub_thread sub_self __attribute__((tls_model("initial-exec")));

static struct sub_process first_process; /* stands in until the real page is there: never ready */
struct sub_process *sub_process = &first_process;
int sub_mode = SUB_UNSTARTED;
int sub_quiet;

/* These survive a fork, and are how a child knows whose child it is. */
static struct sub_identity image; /* the last image that ran in this memory */
static uint32_t generations;
static char directory[256] = SUB_SEGMENT_DIRECTORY;
static char **start_argv;
static int start_argc;
static pthread_key_t thread_key;
static bool have_thread_key;
static int (*set_thread_value)(pthread_key_t, const void *);

static char *append(char *at, const char *text) {
    size_t length = strlen(text);
    memcpy(at, text, length);
    return at + length;
}

static char *append_number(char *at, uint64_t number) {
    char digits[20];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

/* --- identity --------------------------------------------------------------------------------- */

static uint64_t start_ticks_of_self(void) {
    /* The fields before the 22nd take some 200 bytes; the command, in brackets, at most 16 more. */
    char text[512];
    long fd = SYS4(SYS_openat, AT_FDCWD, "/proc/self/stat", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    long length = SYS3(SYS_read, fd, text, sizeof(text) - 1);
    SYS1(SYS_close, fd);
    if (length <= 0)
        return 0;
    long at = length;
    while (at > 0 && text[at - 1] != ')')
        at--;
    /* After the bracket: " S ppid ...": the start time is the 20th word. */
    for (int words = 0; at < length && words < 20; at++)
        words += text[at] == ' ';
    uint64_t ticks = 0;
    for (; at < length && text[at] >= '0' && text[at] <= '9'; at++)
        ticks = ticks * 10 + (uint64_t)(text[at] - '0');
    return ticks;
}

static void identify(struct sub_identity *self) {
    struct stat namespace;
    self->pid = (int32_t)SYS0(SYS_getpid);
    self->start_ticks = start_ticks_of_self();
    if (self->start_ticks == 0)
        self->start_ticks = 1ULL << 63 | sub_now();
    self->pid_namespace = SYS4(SYS_newfstatat, AT_FDCWD, "/proc/self/ns/pid", &namespace, 0) == 0
                              ? namespace.st_ino
                              : 0;
}

/* --- segments --------------------------------------------------------------------------------- */

/* "<pid>-<start ticks>-<exec number>-<chain>-<index>": unique, and says whose it is. */
static void segment_path(char *path, const struct sub_identity *self, uint32_t chain,
                         uint32_t index) {
    char *at = append(path, directory);
    *at++ = '/';
    at = append_number(at, (uint32_t)self->pid);
    *at++ = '-';
    at = append_number(at, self->start_ticks);
    *at++ = '-';
    at = append_number(at, self->exec_number);
    *at++ = '-';
    at = append_number(at, chain);
    *at++ = '-';
    at = append_number(at, index);
    *at = '\0';
}

struct new_segment {
    unsigned char *base;
    uint64_t size;
    uint32_t umask;
};

/*
 * Makes, fills with zeros and maps one segment file. Returns 0 or a negative errno.
 *
 * The room is allocated here because a full file system under a mapping is a SIGBUS later. The file
 * size limit is asked first because going over it is a signal to the program.
 */
static long make_segment(const struct sub_identity *self, uint32_t chain, uint32_t index,
                         uint64_t size, struct new_segment *made) {
    char path[sizeof(directory) + 96];
    struct rlimit limit;
    if (SYS4(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit) == 0 && limit.rlim_cur < size)
        return -EFBIG;
    segment_path(path, self, chain, index);
    /* All permissions are asked for so that what is granted tells the umask. */
    long fd =
        SYS4(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0777);
    if (fd < 0)
        return fd;
    struct stat status;
    made->umask = SYS2(SYS_fstat, fd, &status) == 0 ? ~status.st_mode & 0777u : 0;
    SYS2(SYS_fchmod, fd, 0644);
    long error;
    int attempts = 0;
    do
        error = SYS4(SYS_fallocate, fd, 0, 0, size);
    while (error == -EINTR && ++attempts < 16);
    long base = 0;
    if (error == 0) {
        base = SYS6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (base < 0 && base > -4096)
            error = base;
    }
    if (error != 0)
        SYS3(SYS_unlinkat, AT_FDCWD, path, 0);
    SYS1(SYS_close, fd);
    if (error != 0)
        return error;
    made->base = (unsigned char *)base;
    made->size = size;
    struct sub_segment *header = (struct sub_segment *)(void *)made->base;
    header->version = SUB_SEGMENT_VERSION;
    header->header_bytes = sizeof(*header);
    header->size = size;
    header->self = *self;
    header->chain = chain;
    header->index = index;
    header->created_ns = sub_now();
    return 0;
}

static uint64_t segment_size(uint32_t index, uint32_t length) {
    uint64_t size = SUB_SEGMENT_FIRST;
    for (uint32_t i = 0; i < index && size < SUB_SEGMENT_LAST; i++)
        size *= 4;
    if (size > SUB_SEGMENT_LAST)
        size = SUB_SEGMENT_LAST;
    while (size < sizeof(struct sub_segment) + (uint64_t)length)
        size *= 4;
    return size;
}

/* Makes `made` the calling thread's segment. Handlers that interrupt find no room until the end. */
static void attach(struct sub_thread *self, uint32_t chain, uint32_t index, uint32_t sequence,
                   const struct new_segment *made) {
    struct sub_segment *header = (struct sub_segment *)(void *)made->base;
    header->first_sequence = sequence;
    __atomic_store_n(&header->magic, SUB_SEGMENT_MAGIC, __ATOMIC_RELEASE);
    self->limit = 0;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    self->base = made->base;
    self->chain = chain;
    self->index = index;
    self->generation = sub_process->generation;
    __atomic_store_n(&self->claim, SUB_CLAIM(sequence, index, sizeof(*header)), __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    self->limit = (uint32_t)made->size;
}

static uint64_t count_lost(struct sub_thread *self, uint64_t events) {
    if (self->base != NULL && self->generation == sub_process->generation) {
        struct sub_segment *header = (struct sub_segment *)(void *)self->base;
        return __atomic_add_fetch(&header->lost, events, __ATOMIC_RELAXED);
    }
    return __atomic_add_fetch(&sub_process->lost, events, __ATOMIC_RELAXED);
}

/* Moves losses from before there was a segment to one that a reader will see. */
static void settle_losses(struct sub_thread *self) {
    uint64_t lost = __atomic_exchange_n(&sub_process->lost, 0, __ATOMIC_RELAXED);
    if (lost != 0)
        count_lost(self, lost);
}

/* --- the first record ------------------------------------------------------------------------- */

/* Summed over the variables, so that their order does not matter. */
uint64_t sub_hash_variable(const char *bytes, size_t length) {
    const uint64_t factor = 0x9e3779b97f4a7c15ULL;
    uint64_t hash = length * factor;
    for (; length >= 8; bytes += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * factor;
        hash ^= hash >> 29;
    }
    for (; length > 0; bytes++, length--)
        hash = (hash ^ (unsigned char)*bytes) * factor;
    return hash ^ hash >> 32;
}

static bool is_identifier(const char *variable) {
    static const char *const names[] = {
        "TRACEPARENT=", "SUBSTRATE_SESSION_ID=", "SUBSTRATE_SPAN_ID=", "SUBSTRATE_PARENT_SPAN=",
        "SUBSTRATE_EXEC_ID="};
    if (variable[0] != 'S' && variable[0] != 'T')
        return false;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strncmp(variable, names[i], strlen(names[i])) == 0)
            return true;
    }
    return false;
}

#define IDENTIFIERS 8

/* The times and ids that every hello has. */
static struct sub_hello plain_hello(uint32_t umask) {
    struct sub_hello hello = {
        .ppid = (int32_t)SYS0(SYS_getppid),
        .umask = umask,
        .realtime_ns = sub_clock(CLOCK_REALTIME),
        .boottime_ns = sub_clock(CLOCK_BOOTTIME),
        .uid = (uint32_t)SYS0(SYS_geteuid),
    };
    return hello;
}

/* Arguments and program are the parent image's. Small stack: this may be a signal handler's. */
static void write_forked_hello(uint32_t umask, const struct sub_identity *parent) {
    struct sub_hello hello = plain_hello(umask);
    char cwd[1024];
    long cwd_length = SYS2(SYS_getcwd, cwd, sizeof(cwd)) - 1; /* ERANGE: the parent's is taken */
    uint32_t fields = sub_field_size(sizeof(hello));
    if (cwd_length > 0)
        fields += sub_field_size((size_t)cwd_length);
    hello.parent = *parent;
    struct sub_record *record = sub_begin(SUB_HELLO, SUB_OP_fork, sub_now(), fields);
    if (record == NULL)
        return;
    unsigned char *at =
        sub_put((unsigned char *)(record + 1), SUB_TAG_HELLO, &hello, sizeof(hello));
    if (cwd_length > 0)
        sub_put(at, SUB_TAG_CWD, cwd, (size_t)cwd_length);
    sub_commit(record);
}

/* Length of the arguments as SUB_TAG_ARGV holds them. */
static uint32_t measure_arguments(uint32_t *flags) {
    uint32_t total = 0;
    for (int i = 0; i < start_argc && start_argv[i] != NULL; i++) {
        uint32_t length = (uint32_t)strnlen(start_argv[i], SUB_ARGV_MAX) + 1;
        if (total + length > SUB_ARGV_MAX) {
            *flags |= SUB_FLAG_TRUNCATED;
            break;
        }
        total += length;
    }
    return total;
}

static unsigned char *put_arguments(unsigned char *at, uint32_t total) {
    struct sub_field *field = (struct sub_field *)(void *)at;
    field->tag = SUB_TAG_ARGV;
    field->bytes = total;
    char *argument = (char *)(field + 1);
    char *end = argument + total;
    for (int i = 0; argument < end; i++) {
        size_t length = strnlen(start_argv[i], (size_t)(end - argument) - 1);
        memcpy(argument, start_argv[i], length);
        argument += length + 1;
    }
    return at + sub_field_size(total);
}

static void write_exec_hello(uint32_t umask) {
    struct sub_hello hello = plain_hello(umask);
    char cwd[SUB_STRING_MAX];
    char exe[SUB_STRING_MAX];
    const char *variables[IDENTIFIERS];
    uint32_t lengths[IDENTIFIERS];
    uint32_t variable_count = 0;
    uint32_t flags = 0;
    uint64_t digest = 0;
    long cwd_length = SYS2(SYS_getcwd, cwd, sizeof(cwd)) - 1;
    long exe_length = SYS4(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", exe, sizeof(exe));
    uint32_t argv_length = measure_arguments(&flags);
    uint32_t fields = sub_field_size(sizeof(hello)) + sub_field_size(argv_length) +
                      sub_field_size(sizeof(digest));
    if (cwd_length > 0)
        fields += sub_field_size((size_t)cwd_length);
    if (exe_length > 0)
        fields += sub_field_size((size_t)exe_length);
    for (char **variable = environ; variable != NULL && *variable != NULL; variable++) {
        size_t length = strlen(*variable);
        digest += sub_hash_variable(*variable, length);
        if (variable_count < IDENTIFIERS && length < 256 && is_identifier(*variable)) {
            variables[variable_count] = *variable;
            lengths[variable_count++] = (uint32_t)length;
            fields += sub_field_size(length);
        }
    }
    hello.argc = (uint32_t)start_argc;
    struct sub_record *record = sub_begin(SUB_HELLO, SUB_OP_none, sub_now(), fields);
    if (record == NULL)
        return;
    record->flags |= flags;
    unsigned char *at =
        sub_put((unsigned char *)(record + 1), SUB_TAG_HELLO, &hello, sizeof(hello));
    at = put_arguments(at, argv_length);
    at = sub_put(at, SUB_TAG_ENV_DIGEST, &digest, sizeof(digest));
    if (cwd_length > 0)
        at = sub_put(at, SUB_TAG_CWD, cwd, (size_t)cwd_length);
    if (exe_length > 0)
        at = sub_put(at, SUB_TAG_EXE, exe, (size_t)exe_length);
    for (uint32_t i = 0; i < variable_count; i++)
        at = sub_put(at, SUB_TAG_VARIABLE, variables[i], lengths[i]);
    sub_commit(record);
}

/* --- threads ---------------------------------------------------------------------------------- */

/* A thread ended: another may carry its chain on, so that short threads cost no segments. */
static void thread_ended(void *unused) {
    (void)unused;
    struct sub_thread *self = &sub_self;
    if (self->base == NULL || self->generation != sub_process->generation || self->open != 0)
        return;
    unsigned char *base = self->base;
    self->limit = 0;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    uint64_t claim = self->claim;
    self->base = NULL;
    self->generation = 0;
    for (size_t i = 0; i < sizeof(sub_process->spare) / sizeof(sub_process->spare[0]); i++) {
        unsigned char *expected = NULL;
        /* A marker holds the place while the position is written beside it. */
        if (__atomic_compare_exchange_n(&sub_process->spare[i], &expected, (unsigned char *)1,
                                        false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
            sub_process->spare_claim[i] = claim;
            __atomic_store_n(&sub_process->spare[i], base, __ATOMIC_RELEASE);
            return;
        }
    }
    SYS2(SYS_munmap, base, ((struct sub_segment *)(void *)base)->size);
}

static bool adopt_chain(struct sub_thread *self) {
    for (size_t i = 0; i < sizeof(sub_process->spare) / sizeof(sub_process->spare[0]); i++) {
        unsigned char *base = __atomic_load_n(&sub_process->spare[i], __ATOMIC_RELAXED);
        if (base == NULL || base == (unsigned char *)1)
            continue;
        if (!__atomic_compare_exchange_n(&sub_process->spare[i], &base, (unsigned char *)1, false,
                                         __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue;
        uint64_t claim = sub_process->spare_claim[i];
        __atomic_store_n(&sub_process->spare[i], NULL, __ATOMIC_RELEASE);
        const struct sub_segment *header = (const struct sub_segment *)(void *)base;
        self->base = base;
        self->chain = header->chain;
        self->index = header->index;
        self->generation = sub_process->generation;
        __atomic_store_n(&self->claim, claim, __ATOMIC_RELAXED);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        self->limit = (uint32_t)header->size;
        return true;
    }
    return false;
}

static void watch_thread_end(const struct sub_thread *self) {
    if (have_thread_key && self->tid != sub_process->self.pid)
        set_thread_value(thread_key, &sub_self);
}

/* --- the slow way ----------------------------------------------------------------------------- */

/* The image's first segment, whose name settles the exec number, and its hello. */
static bool start_image(struct sub_thread *self, bool forked) {
    struct sub_process *process = sub_process;
    uint32_t phase = SUB_PHASE_NEW;
    if (!__atomic_compare_exchange_n(&process->phase, &phase, SUB_PHASE_STARTING, false,
                                     __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return false; /* another thread is at it */
    struct sub_identity identity;
    struct sub_identity parent = image;
    struct new_segment made;
    long error;
    identify(&identity);
    /*
     * Nothing that a program can scrub (its environment, say) may carry the exec number, so the
     * names of the segments do: the first one that is free is ours.
     */
    identity.exec_number = forked ? 0 : 1;
    uint32_t chain = 0;
    while ((error = make_segment(&identity, chain, 0, SUB_SEGMENT_FIRST, &made)) == -EEXIST) {
        if (forked ? ++chain > 64 : ++identity.exec_number > EXEC_NUMBER_MAX)
            break;
    }
    if (error != 0) {
        bool absent = error == -ENOENT || error == -ENOTDIR || error == -EROFS;
        if (absent && !forked && image.pid == 0)
            sub_mode = SUB_OFF;
        __atomic_store_n(&process->phase, SUB_PHASE_NEW, __ATOMIC_RELEASE);
        return false;
    }
    image = identity;
    process->self = identity;
    process->next_chain = chain + 1;
    __atomic_store_n(&process->generation, __atomic_add_fetch(&generations, 1, __ATOMIC_RELAXED),
                     __ATOMIC_RELEASE);
    attach(self, chain, 0, 0, &made);
    __atomic_store_n(&process->phase, SUB_PHASE_READY, __ATOMIC_RELEASE);
    if (forked)
        write_forked_hello(made.umask, &parent);
    else
        write_exec_hello(made.umask);
    return true;
}

/* The next segment of this thread's chain, or its first. */
static bool extend_chain(struct sub_thread *self, uint32_t length) {
    struct new_segment made;
    unsigned char *old = self->base;
    if (old == NULL) {
        if (adopt_chain(self)) {
            watch_thread_end(self);
            return true;
        }
        uint32_t chain = __atomic_fetch_add(&sub_process->next_chain, 1, __ATOMIC_RELAXED);
        if (make_segment(&sub_process->self, chain, 0, segment_size(0, length), &made) != 0)
            return false;
        attach(self, chain, 0, 0, &made);
        watch_thread_end(self);
        return true;
    }
    struct sub_segment *header = (struct sub_segment *)(void *)old;
    uint32_t index = self->index + 1;
    if (index >= SUB_CHAIN_MAX || make_segment(&sub_process->self, self->chain, index,
                                               segment_size(index, length), &made) != 0)
        return false;
    uint32_t sequence = SUB_CLAIM_SEQUENCE(self->claim);
    uint64_t size = header->size;
    attach(self, self->chain, index, sequence, &made);
    __atomic_fetch_or(&header->state, SUB_STATE_CONTINUED, __ATOMIC_RELEASE);
    if (self->open == 0) /* else an interrupted frame still writes there: leave it mapped */
        SYS2(SYS_munmap, old, size);
    return true;
}

/* Is it time to try again after failing to make a segment? */
static bool worth_trying(uint64_t lost) {
    return lost < 4 || lost % RETRY_EVERY == 0;
}

struct sub_record *sub_begin_slow(uint32_t length) {
    struct sub_thread *self = &sub_self;
    struct sub_process *process = sub_process;
    if (sub_mode != SUB_ON)
        return NULL;
    if (length > SUB_RECORD_MAX || __atomic_exchange_n(&self->busy, 1, __ATOMIC_ACQUIRE) != 0) {
        count_lost(self, 1);
        return NULL;
    }
    bool forked = process->generation == 0;
    bool ready = true;
    if (self->generation == 0 || self->generation != process->generation) {
        /* A new thread; or the thread that called fork, now in the child, with the parent's state. */
        unsigned char *old = forked ? self->base : NULL;
        self->limit = 0;
        self->base = NULL;
        self->check = 0;
        self->tid = (int32_t)SYS0(SYS_gettid);
        if (old != NULL && self->open == 0) /* else a frame below a handler still writes there */
            SYS2(SYS_munmap, old, ((struct sub_segment *)(void *)old)->size);
        if (forked)
            ready = worth_trying(process->lost) && start_image(self, image.pid != 0);
        if (sub_mode != SUB_ON)
            ready = false;
        if (ready)
            self->generation = process->generation;
    }
    struct sub_record *record = NULL;
    if (ready) {
        self->open++;
        if (self->base != NULL)
            record = sub_claim(length);
        if (record == NULL) {
            self->open--;
            uint64_t lost = count_lost(self, 0);
            if (!sub_quiet && worth_trying(lost) && extend_chain(self, length)) {
                settle_losses(self);
                self->open++;
                record = sub_claim(length);
                if (record == NULL)
                    self->open--;
            }
        } else {
            settle_losses(self);
        }
    }
    if (record == NULL) {
        count_lost(self, 1);
        if (self->base != NULL) /* failed claims must not add up to a position that fits again */
            __atomic_store_n(
                &self->claim,
                SUB_CLAIM(SUB_CLAIM_SEQUENCE(self->claim), self->index, (uint64_t)self->limit),
                __ATOMIC_RELAXED);
    }
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
    return record;
}

/* The pid of the vfork child that runs on this thread's memory now, or 0 when it is the thread. */
uint32_t sub_vfork_child(void) {
    int32_t pid = (int32_t)SYS0(SYS_getpid);
    if (pid != sub_process->self.pid)
        return (uint32_t)pid;
    if (sub_self.check == 1)
        sub_self.check = 0; /* the child has gone its way, or this thread would not run */
    return 0;
}

/* For kernels without MADV_WIPEONFORK; elsewhere the page is empty already. */
void sub_forked_child(void) {
    if (sub_mode == SUB_ON && sub_process->generation != 0)
        memset(sub_process, 0, sizeof(*sub_process));
}

void sub_mark_exited(void) {
    if (sub_self.base != NULL && sub_self.generation == sub_process->generation &&
        sub_self.check == 0) {
        struct sub_segment *header = (struct sub_segment *)(void *)sub_self.base;
        __atomic_fetch_or(&header->state, SUB_STATE_EXITED, __ATOMIC_RELEASE);
    }
}

/* --- start ------------------------------------------------------------------------------------ */

static void choose_directory(void) {
    static const char variable[] = SUB_SEGMENT_VARIABLE "=";
    if (getauxval(AT_SECURE) != 0)
        return; /* who runs a set-id program does not choose where it writes */
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        if (strncmp(*entry, variable, sizeof(variable) - 1) != 0)
            continue;
        const char *value = *entry + sizeof(variable) - 1;
        size_t length = strlen(value);
        if (value[0] == '/' && length < sizeof(directory))
            memcpy(directory, value, length + 1);
        return;
    }
}

/* The arguments lie in front of the first environment, their number in front of them. */
static void find_arguments(void) {
    char **end = environ - 1;
    if (start_argv != NULL || environ == NULL || *end != NULL)
        return;
    for (int count = 0; count < 1 << 20; count++) {
        if ((uintptr_t)end[-1 - count] == (uintptr_t)count) {
            start_argv = end - count;
            start_argc = count;
            return;
        }
    }
}

static void make_thread_key(void) {
    /* By name: before glibc 2.34 it lives in libpthread, which a program may do without. */
    int (*create)(pthread_key_t *, void (*)(void *)) = NULL;
    *(void **)&create = sub_find_function("pthread_key_create");
    *(void **)&set_thread_value = sub_find_function("pthread_setspecific");
    if (create == NULL || set_thread_value == NULL || create(&thread_key, thread_ended) != 0)
        return;
    have_thread_key = thread_key < 32; /* glibc allocates memory for the values of later keys */
}

/*
 * Takes up recording. Called by the constructor, or by the first hook where another library's
 * constructor comes first. With no segment directory it leaves one failed system call behind.
 */
void sub_start(void) {
    static int started;
    if (__atomic_exchange_n(&started, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    choose_directory();
    if (SYS3(SYS_faccessat, AT_FDCWD, directory, 0) != 0) {
        sub_mode = SUB_OFF;
        return;
    }
    sub_find_clock();
    long page = SYS6(SYS_mmap, 0, sizeof(struct sub_process), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page < 0 && page > -4096) {
        sub_mode = SUB_OFF;
        return;
    }
    SYS3(SYS_madvise, page, sizeof(struct sub_process), MADV_WIPEONFORK);
    sub_process = (struct sub_process *)page;
    find_arguments();
    make_thread_key();
    sub_mode = SUB_ON;
    struct sub_thread *self = &sub_self;
    self->busy = 1;
    self->tid = (int32_t)SYS0(SYS_gettid);
    if (!start_image(self, false))
        count_lost(self, 1); /* its hello */
    self->busy = 0;
}

#ifdef __GLIBC__
static void exiting(int status, void *unused) {
    (void)unused;
    sub_record_exit(SUB_OP_exit, status);
}
#endif

__attribute__((constructor)) static void construct(int argc, char **argv) {
#ifdef __GLIBC__
    start_argc = argc;
    start_argv = argv;
#else
    (void)argc; /* musl passes none: see find_arguments */
    (void)argv;
#endif
    if (sub_mode == SUB_UNSTARTED)
        sub_start();
#ifdef __GLIBC__
    /*
     * The status of a return from main reaches no symbol of ours, only the handlers of on_exit.
     * This is the first one registered, so it is the last to run.
     */
    if (sub_mode == SUB_ON)
        on_exit(exiting, NULL);
#endif
}
