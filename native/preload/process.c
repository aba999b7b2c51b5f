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
#include <signal.h>
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
/* Bytes that a vfork child finds free: the exec of an ordinary command, several times. */
#define VFORK_ROOM (16u << 10)
#define EXEC_NUMBER_MAX (1u << 18) /* as many segments as a reader takes */
#define EXEC_NUMBER_STEPS 4u       /* as many programs as most processes run, at the most */
#define AWAIT_YIELDS 100
#define AWAIT_PAUSES 400 /* of 50 us and what the timer adds: at most some 40 ms */

__thread struct sub_thread sub_self __attribute__((tls_model("initial-exec")));

static struct sub_process first_process; /* stands in until the real page is there: never ready */
struct sub_process *sub_process = &first_process;
int sub_mode = SUB_UNSTARTED;
int sub_quiet;

/* These survive a fork, and are how a child knows whose child it is. */
static struct sub_identity image;  /* the last image that ran in this memory */
static unsigned char *image_first; /* its first segment, which a child that has none still maps */
static uint32_t generations;
static pthread_key_t thread_key;
static enum { KEY_NONE, KEY_COMING, KEY_THERE, KEY_REFUSED } thread_key_state;
static int (*set_thread_value)(pthread_key_t, const void *);

/* --- segments --------------------------------------------------------------------------------- */

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
    __atomic_store_n(&self->claim, SUB_CLAIM(sequence, index, header->header_bytes),
                     __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    self->limit = (uint32_t)made->size;
}

/*
 * Where a reader finds what is said of all of it: the thread's segment, or, of a thread that never
 * got one, the image's first, which is why that one is never unmapped. NULL before there is one.
 */
static unsigned char *own_segment(const struct sub_thread *self) {
    if (self->base != NULL && self->generation == sub_process->generation)
        return self->base;
    if (__atomic_load_n(&sub_process->phase, __ATOMIC_ACQUIRE) == SUB_PHASE_READY)
        return sub_process->first;
    return NULL;
}

static uint64_t count_lost(struct sub_thread *self, uint64_t events) {
    unsigned char *base = own_segment(self);
    if (base != NULL) {
        struct sub_segment *header = (struct sub_segment *)(void *)base;
        return __atomic_add_fetch(&header->lost, events, __ATOMIC_RELAXED);
    }
    /* A forked child may never get one: then its parent's tells, or nobody would know. */
    if (image_first != NULL) {
        struct sub_segment *header = (struct sub_segment *)(void *)image_first;
        __atomic_fetch_add(&header->lost, events, __ATOMIC_RELAXED);
    }
    return __atomic_add_fetch(&sub_process->lost, events, __ATOMIC_RELAXED);
}

/*
 * Moves losses from before there was a segment to one that a reader will see. Those of a forked child
 * (which is no program's first image) its parent's told already.
 */
static void settle_losses(struct sub_thread *self) {
    uint64_t lost = __atomic_exchange_n(&sub_process->lost, 0, __ATOMIC_RELAXED);
    if (lost != 0 && sub_process->self.exec_number != 0)
        count_lost(self, lost);
}

/*
 * A handler that comes while a segment is being made finds no room, and a timer that is quicker than
 * the making would interrupt it again and again (fallocate answers EINTR): it waits until then.
 */
static uint64_t hold_signals(void) {
    uint64_t all = ~0ULL, before = 0;
    SYS4(SYS_rt_sigprocmask, SIG_BLOCK, &all, &before, sizeof(all));
    return before;
}

static void release_signals(uint64_t before) {
    SYS4(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof(before));
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
    if (base != sub_process->first)
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

/* On the first event of the first thread that is not the main one: most programs have none. */
static bool make_thread_key(void) {
    /* By name: before glibc 2.34 it lives in libpthread, which a program may do without. */
    int (*create)(pthread_key_t *, void (*)(void *)) = NULL;
    *(void **)&create = sub_find_function("pthread_key_create");
    *(void **)&set_thread_value = sub_find_function("pthread_setspecific");
    if (create == NULL || set_thread_value == NULL || create(&thread_key, thread_ended) != 0)
        return false;
    return thread_key < 32; /* glibc allocates memory for the values of later keys */
}

static void watch_thread_end(const struct sub_thread *self) {
    if (self->tid == sub_process->self.pid)
        return;
    __typeof__(thread_key_state) state = KEY_NONE;
    /* Threads that come while another is at it are not watched: their chains just end. */
    if (__atomic_compare_exchange_n(&thread_key_state, &state, KEY_COMING, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_ACQUIRE)) {
        state = make_thread_key() ? KEY_THERE : KEY_REFUSED;
        __atomic_store_n(&thread_key_state, state, __ATOMIC_RELEASE);
    }
    if (state == KEY_THERE)
        set_thread_value(thread_key, &sub_self);
}

/* --- the slow way ----------------------------------------------------------------------------- */

/*
 * Another thread is making the image's first segment, as when a forked child starts threads before
 * it does anything else. That takes some ten microseconds; what this thread has to say would be lost
 * for want of them. It waits, but only so long: the other may be stopped, or of a lower priority.
 */
static bool await_image(const struct sub_process *process) {
    const struct timespec pause = {0, 50000};
    for (int i = 0; i < AWAIT_YIELDS + AWAIT_PAUSES; i++) {
        uint32_t phase = __atomic_load_n(&process->phase, __ATOMIC_ACQUIRE);
        if (phase != SUB_PHASE_STARTING)
            return phase == SUB_PHASE_READY;
        if (i < AWAIT_YIELDS)
            SYS0(SYS_sched_yield);
        else /* it lost its processor */
            SYS2(SYS_nanosleep, &pause, NULL);
    }
    return false;
}

/* The image's first segment, whose name settles the exec number, and its hello. */
static bool start_image(struct sub_thread *self, bool forked) {
    struct sub_process *process = sub_process;
    uint32_t phase = SUB_PHASE_NEW;
    if (!__atomic_compare_exchange_n(&process->phase, &phase, SUB_PHASE_STARTING, false,
                                     __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return await_image(process);
    struct sub_identity identity;
    struct sub_identity parent = image;
    struct new_segment made;
    long error;
    sub_identify(&identity, forked ? &parent : NULL);
    /*
     * Nothing that a program can scrub (its environment, say) may carry the exec number, so the
     * names of the segments do: the first one that is free is ours.
     */
    identity.exec_number = forked ? 0 : 1;
    uint32_t chain = 0;
    while ((error = sub_make_segment(&identity, chain, 0, SUB_SEGMENT_FIRST, &made)) == -EEXIST) {
        if (forked ? ++chain > 64 : identity.exec_number >= EXEC_NUMBER_MAX)
            break;
        if (!forked && identity.exec_number < EXEC_NUMBER_STEPS)
            identity.exec_number++;
        else if (!forked)
            identity.exec_number = sub_free_exec_number(&identity, EXEC_NUMBER_MAX);
    }
    if (error != 0) {
        bool absent = error == -ENOENT || error == -ENOTDIR || error == -EROFS;
        if (absent && !forked && image.pid == 0)
            sub_mode = SUB_OFF;
        __atomic_store_n(&process->phase, SUB_PHASE_NEW, __ATOMIC_RELEASE);
        return false;
    }
    if (image_first != NULL && self->open == 0)
        SYS2(SYS_munmap, image_first, SUB_SEGMENT_FIRST);
    image = identity;
    image_first = made.base;
    process->self = identity;
    process->first = made.base;
    process->next_chain = chain + 1;
    __atomic_store_n(&process->generation, __atomic_add_fetch(&generations, 1, __ATOMIC_RELAXED),
                     __ATOMIC_RELEASE);
    attach(self, chain, 0, 0, &made);
    __atomic_store_n(&process->phase, SUB_PHASE_READY, __ATOMIC_RELEASE);
    if (forked)
        sub_write_forked_hello(made.umask, &parent);
    else
        sub_write_exec_hello(made.umask);
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
        if (sub_make_segment(&sub_process->self, chain, 0, sub_segment_size(0, length), &made) != 0)
            return false;
        attach(self, chain, 0, 0, &made);
        watch_thread_end(self);
        return true;
    }
    struct sub_segment *header = (struct sub_segment *)(void *)old;
    uint32_t index = self->index + 1;
    if (index >= SUB_CHAIN_MAX || sub_make_segment(&sub_process->self, self->chain, index,
                                                   sub_segment_size(index, length), &made) != 0)
        return false;
    uint32_t sequence = SUB_CLAIM_SEQUENCE(self->claim);
    uint64_t size = header->size;
    attach(self, self->chain, index, sequence, &made);
    __atomic_fetch_or(&header->state, SUB_STATE_CONTINUED, __ATOMIC_RELEASE);
    /* Not while an interrupted frame still writes there. */
    if (self->open == 0 && old != sub_process->first)
        SYS2(SYS_munmap, old, size);
    return true;
}

/* Is it time to try again after failing to make a segment? */
static bool worth_trying(uint64_t lost) {
    return lost < 4 || lost % RETRY_EVERY == 0;
}

/* Makes the calling thread one of this process, which may have to begin to record at all. */
static bool take_place(struct sub_thread *self) {
    struct sub_process *process = sub_process;
    bool forked = process->generation == 0;
    bool ready = true;
    if (self->generation == 0 || self->generation != process->generation) {
        /* A new thread; or the thread that called fork, now in the child, with the parent's state. */
        unsigned char *old = forked ? self->base : NULL;
        self->limit = 0;
        self->base = NULL;
        self->check = 0;
        if (!sub_quiet)
            self->tid = (int32_t)SYS0(SYS_gettid);
        if (old != NULL && old != image_first && self->open == 0 &&
            !sub_quiet) /* else a frame below a handler still writes there */
            SYS2(SYS_munmap, old, ((struct sub_segment *)(void *)old)->size);
        if (forked)
            ready = !sub_quiet && worth_trying(process->lost) && start_image(self, image.pid != 0);
        if (sub_mode != SUB_ON)
            ready = false;
        if (ready)
            self->generation = process->generation;
    }
    return ready;
}

/* Twice at most: a chain that another thread left may be full itself. */
static struct sub_record *claim_in_next(struct sub_thread *self, uint32_t length) {
    struct sub_record *record = NULL;
    uint64_t signals = hold_signals();
    for (int i = 0; i < 2 && record == NULL && extend_chain(self, length); i++) {
        settle_losses(self);
        self->open++;
        record = sub_claim(length);
        if (record == NULL)
            self->open--;
    }
    release_signals(signals);
    return record;
}

struct sub_record *sub_begin_slow(uint32_t length) {
    struct sub_thread *self = &sub_self;
    if (sub_mode != SUB_ON)
        return NULL;
    if (length > SUB_RECORD_MAX || __atomic_exchange_n(&self->busy, 1, __ATOMIC_ACQUIRE) != 0) {
        count_lost(self, 1);
        return NULL;
    }
    bool ready = take_place(self);
    struct sub_record *record = NULL;
    if (ready) {
        self->open++;
        if (self->base != NULL)
            record = sub_claim(length);
        if (record == NULL) {
            self->open--;
            if (!sub_quiet && worth_trying(count_lost(self, 0)))
                record = claim_in_next(self, length);
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

/*
 * Before a vfork. The child writes to this thread's segment, and the next one it would make in this
 * process's name, which nobody could tell from a forgery: files are made at no known time.
 */
void sub_reserve_for_child(void) {
    struct sub_thread *self = &sub_self;
    if (sub_quiet || self->base == NULL || self->generation != sub_process->generation ||
        self->check != 0)
        return;
    uint32_t room = self->limit / 2 < VFORK_ROOM ? self->limit / 2 : VFORK_ROOM;
    if (SUB_CLAIM_POSITION(self->claim) + room <= self->limit ||
        __atomic_exchange_n(&self->busy, 1, __ATOMIC_ACQUIRE) != 0)
        return;
    if (worth_trying(count_lost(self, 0)))
        extend_chain(self, room);
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
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

/*
 * The page that a forked child finds empty. A flag that no neighbour has (MAP_NORESERVE) keeps it
 * out of the mapping next to it, from which madvise would have to part it again: that costs more
 * than all the rest of this. Before Linux 4.14 there is no such advice; then the hooks of fork tell
 * the child: sub_forked_child.
 */
bool sub_make_process_page(void) {
    long page = SYS6(SYS_mmap, 0, sizeof(struct sub_process), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (page < 0 && page > -4096)
        return false;
    SYS3(SYS_madvise, page, sizeof(struct sub_process), MADV_WIPEONFORK);
    sub_process = (struct sub_process *)page;
    return true;
}

/* The segment and the hello of a fresh image; the calling thread is its first. */
void sub_start_first_image(void) {
    struct sub_thread *self = &sub_self;
    self->busy = 1;
    self->tid = (int32_t)SYS0(SYS_gettid);
    if (!start_image(self, false))
        count_lost(self, 1); /* its hello */
    self->busy = 0;
}

/* For kernels without MADV_WIPEONFORK; elsewhere the page is empty already. */
void sub_forked_child(void) {
    if (sub_mode == SUB_ON && sub_process->generation != 0)
        memset(sub_process, 0, sizeof(*sub_process));
}

void sub_flag_segment(uint32_t flag) {
    struct sub_thread *self = &sub_self;
    if (sub_process->generation == 0 && sub_mode == SUB_ON && !sub_quiet &&
        __atomic_exchange_n(&self->busy, 1, __ATOMIC_ACQUIRE) == 0) {
        take_place(self);
        __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
    }
    unsigned char *base = own_segment(self);
    if (base != NULL) {
        struct sub_segment *header = (struct sub_segment *)(void *)base;
        __atomic_fetch_or(&header->flags, flag, __ATOMIC_RELEASE);
    }
}

/* Called before a filter is installed: any system call of ours may be fatal afterwards. */
bool sub_become_quiet(void) {
    if (sub_self.check != 0 && sub_vfork_child() != 0)
        return false; /* the filter is the child's; the memory is its parent's */
    /* A forked child that has said nothing so far could not say anything later. */
    sub_flag_segment(SUB_SEGMENT_QUIET);
    sub_quiet = 1;
    return true;
}

void sub_become_loud(void) {
    unsigned char *base = own_segment(&sub_self);
    sub_quiet = 0;
    if (base != NULL) {
        struct sub_segment *header = (struct sub_segment *)(void *)base;
        __atomic_fetch_and(&header->flags, ~SUB_SEGMENT_QUIET, __ATOMIC_RELEASE);
    }
}

void sub_mark_exited(void) {
    if (sub_self.base != NULL && sub_self.generation == sub_process->generation &&
        sub_self.check == 0) {
        struct sub_segment *header = (struct sub_segment *)(void *)sub_self.base;
        __atomic_fetch_or(&header->state, SUB_STATE_EXITED, __ATOMIC_RELEASE);
    }
}
