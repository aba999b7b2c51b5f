/*
 * Where memory is counted by cgroup v1: a second thread of init, which sits in the execs' cgroup and
 * makes their processes, so that they are born there.
 *
 * Version 1 knows no CLONE_INTO_CGROUP, and a process that moves waits for an RCU grace period
 * (cgroup_threadgroup_rwsem): some 10 ms, where the rest of a start takes less than one. A thread
 * may be in another cgroup than its process, whose memory stays charged to the first thread's. So
 * init itself is not among those that the kernel ends where the world is short of memory.
 *
 * It shares everything with init, libc's thread-local storage too, and libc knows nothing of it. So
 * it runs only while init waits for it. The one exception is the move into its cgroup, which is made
 * beside everything else; errno is init's meanwhile, hence the system calls past libc.
 */
#include "init.h"

#include "../preload/system.h"

#include <linux/futex.h>
#include <linux/sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define STACK_BYTES ((size_t)8 << 20) /* as much as init's own; reserved, not used */
#define GUARD_BYTES ((size_t)64 << 10)

enum state { ABSENT, MOVING, FAILED, IDLE, ASKED, DONE };

static int state = ABSENT; /* a futex */
static int tasks_fd = -1, shared_fd = -1;
static struct birth *job;

static void set_state(enum state next) {
    __atomic_store_n(&state, (int)next, __ATOMIC_SEQ_CST);
    SYS3(SYS_futex, &state, FUTEX_WAKE_PRIVATE, 1);
}

static enum state wait_while(enum state now) {
    int seen;
    while ((seen = __atomic_load_n(&state, __ATOMIC_SEQ_CST)) == (int)now)
        SYS4(SYS_futex, &state, FUTEX_WAIT_PRIVATE, now, NULL);
    return (enum state)seen;
}

static _Noreturn void run(void) {
    bool moved = SYS3(SYS_write, tasks_fd, "0", 1) == 1;
    set_state(moved ? IDLE : FAILED);
    while (moved) {
        while (wait_while(IDLE) != ASKED)
            wait_while(DONE);
        birth_clone(job);
        set_state(DONE);
    }
    for (;;)
        SYS1(SYS_exit, 0); /* of this thread */
}

/* libc's clone() makes no thread that libc does not know of. Returns as the system call does. */
static long begin_thread(struct clone_args *arguments) {
    void (*begin)(void) = run;
#if defined(__x86_64__)
    register void (*target)(void) __asm__("r8") = begin;
    long result;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call *%[target]\n"
                     "1:"
                     : "=a"(result)
                     : "a"(SYS_clone3), "D"(arguments), "S"(sizeof *arguments), [target] "r"(target)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register void (*target)(void) __asm__("x4") = begin;
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)arguments;
    register long x1 __asm__("x1") = (long)sizeof *arguments;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "blr %[target]\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), [target] "r"(target)
                     : "memory");
    return x0;
#else
#error "no threads for this architecture"
#endif
}

/* A number that no exec is going to get: a recorded one asks for the number it had. */
static void take_last_number(void) {
    char text[24] = "";
    SUB_AUTO_FD fd = open("/proc/sys/kernel/pid_max", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, text, sizeof text - 1) > 0)
        set_last_pid(strtoll(text, NULL, 10) - 2);
}

void nursery_start(void) {
    static const char name[] = "shared";
    if (self.memory_fd < 0 || (mkdirat(self.memory_fd, name, 0700) && errno != EEXIST))
        return;
    shared_fd = openat(self.memory_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    tasks_fd = shared_fd < 0 ? -1 : openat(shared_fd, "tasks", O_WRONLY | O_CLOEXEC);
    if (tasks_fd < 0)
        return;
    char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return;
    (void)!mprotect(stack, GUARD_BYTES, PROT_NONE);
    take_last_number();
    state = MOVING;
    struct clone_args arguments = {.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND |
                                            CLONE_THREAD | CLONE_SYSVSEM,
                                   .stack = (uint64_t)(uintptr_t)stack,
                                   .stack_size = STACK_BYTES};
    if (begin_thread(&arguments) < 0)
        state = ABSENT;
}

bool nursery_ready(void) {
    return wait_while(MOVING) == IDLE;
}

uint64_t nursery_oom_kills(void) {
    return read_count(shared_fd, "memory.oom_control", "oom_kill");
}

void nursery_clone(struct birth *birth) {
    job = birth;
    set_state(ASKED);
    wait_while(ASKED);
    __atomic_store_n(&state, (int)IDLE, __ATOMIC_SEQ_CST);
}
