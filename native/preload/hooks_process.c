/*
 * Making, awaiting and ending processes.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "descriptors.h"
#include "hook.h"
#include "process.h"
#include "system.h"

static void record_simple(uint16_t type, enum sub_operation op, uint64_t start, int64_t result,
                          int error, int argument) {
    struct sub_record *record = sub_begin(type, (uint16_t)op, start, 0);
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    record->arg[0] = argument;
    sub_commit(record);
}

/* --- fork ------------------------------------------------------------------------------------- */

/* The child writes nothing until it does something: most children go on to exec at once. */
#define FORK_HOOK_OF(hook, symbol)                                                                 \
    hook(pid_t, symbol, (void)) {                                                                  \
        uint64_t start = sub_enter();                                                              \
        pid_t (*next)(void) = NEXT(symbol, pid_t (*)(void));                                       \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        pid_t child = next();                                                                      \
        if (start == 0)                                                                            \
            return child;                                                                          \
        if (child == 0)                                                                            \
            sub_forked_child();                                                                    \
        else                                                                                       \
            record_simple(SUB_FORK, SUB_OP_##symbol, start, child, sub_error(child < 0), 0);       \
        return child;                                                                              \
    }

FORK_HOOK_OF(HOOK, fork)
FORK_HOOK_OF(HOOK, __fork)
FORK_HOOK_OF(LATE_HOOK, _Fork)
FORK_HOOK_OF(HOOK, __libc_fork)

HOOK(pid_t, forkpty,
     (int *terminal, char *name, const struct termios *modes, const struct winsize *size)) {
    uint64_t start = sub_enter();
    typedef pid_t forkpty_function(int *, char *, const struct termios *, const struct winsize *);
    forkpty_function *next = NEXT(forkpty, forkpty_function *);
    if (next == NULL) {
        errno = ENOSYS;
        return -1;
    }
    pid_t child = next(terminal, name, modes, size);
    if (child == 0) {
        if (start != 0)
            sub_forked_child();
        return child;
    }
    int error = sub_error(child < 0);
    if (start != 0 && sub_wants(SUB_CLASS_OPEN))
        sub_record_master(SUB_OP_forkpty, start, O_RDWR, child < 0 ? -1 : *terminal, error);
    else if (child > 0)
        sub_descriptor_unnamed(*terminal);
    if (start != 0)
        record_simple(SUB_FORK, SUB_OP_forkpty, start, child, error, 0);
    return child;
}

/* The caller goes on in a child; its parent exits inside. */
HOOK(int, daemon, (int keep_directory, int keep_streams)) {
    uint64_t start = sub_enter();
    int (*next)(int, int) = NEXT(daemon, int (*)(int, int));
    if (next == NULL) {
        errno = ENOSYS;
        return -1;
    }
    int result = next(keep_directory, keep_streams);
    if (start != 0 && result == 0)
        sub_forked_child();
    return result;
}

/*
 * clone without CLONE_THREAD. A child that shares the memory but not the thread pointer's owner
 * looks like its parent thread to us, for as long as both live: ask the kernel each time.
 */
static int hooked_clone(enum sub_operation op, int (*function)(void *), void *stack, int flags,
                        void *argument, pid_t *parent_tid, void *tls, pid_t *child_tid) {
    typedef int clone_function(int (*)(void *), void *, int, void *, ...);
    uint64_t start = sub_enter();
    clone_function *next = (clone_function *)sub_next(op);
    if (next == NULL) {
        errno = ENOSYS;
        return -1;
    }
    bool process = (flags & CLONE_THREAD) == 0;
    if (start != 0 && process && (flags & (CLONE_VM | CLONE_SETTLS)) == CLONE_VM) {
        sub_reserve_for_child();
        sub_self.check = (flags & CLONE_VFORK) != 0 ? 1 : 2;
    }
    int child = next(function, stack, flags, argument, parent_tid, tls, child_tid);
    if (start != 0 && process)
        record_simple(SUB_FORK, op, start, child, sub_error(child < 0), flags);
    return child;
}

#define CLONE_HOOK(symbol)                                                                         \
    HOOK(int, symbol, (int (*function)(void *), void *stack, int flags, void *argument, ...)) {    \
        va_list arguments;                                                                         \
        va_start(arguments, argument);                                                             \
        pid_t *parent_tid = va_arg(arguments, pid_t *);                                            \
        void *tls = va_arg(arguments, void *);                                                     \
        pid_t *child_tid = va_arg(arguments, pid_t *);                                             \
        va_end(arguments);                                                                         \
        return hooked_clone(SUB_OP_##symbol, function, stack, flags, argument, parent_tid, tls,    \
                            child_tid);                                                            \
    }

CLONE_HOOK(clone)
CLONE_HOOK(__clone)

/* --- vfork ------------------------------------------------------------------------------------ */

/*
 * The child of vfork returns from the caller's frame while the parent waits, so no frame of ours
 * may lie between: when the parent returned through it, the child would have overwritten it. The
 * stubs below take the record first and then jump to libc's vfork as if the caller had called it.
 */
__attribute__((used)) void *sub_prepare_vfork(enum sub_operation op) {
    uint64_t start = sub_enter();
    if (start != 0) {
        struct sub_record *record = sub_begin(SUB_VFORK, (uint16_t)op, start, 0);
        if (record != NULL) {
            record->elapsed_ns = 0;
            sub_commit(record);
        }
        sub_reserve_for_child();
        if (sub_self.check == 0)
            sub_self.check = 1;
    }
    void *next = sub_next(op);
    if (next == NULL)
        next = sub_next(SUB_OP_fork); /* POSIX lets vfork be fork */
    return next;
}

#define STRING(x) STRING_OF(x)
#define STRING_OF(x) #x

#if defined(__x86_64__)
#define VFORK_STUB(symbol, prepare)                                                                \
    __asm__(".text\n"                                                                              \
            ".globl " #symbol "\n"                                                                 \
            ".type " #symbol ", @function\n"                                                       \
            ".p2align 4\n" #symbol ":\n"                                                           \
            ".cfi_startproc\n"                                                                     \
            "    .byte 0xf3, 0x0f, 0x1e, 0xfa\n" /* endbr64 */                                     \
            "    subq $8, %rsp\n"                                                                  \
            "    .cfi_adjust_cfa_offset 8\n"                                                       \
            "    call " #prepare "\n"                                                              \
            "    addq $8, %rsp\n"                                                                  \
            "    .cfi_adjust_cfa_offset -8\n"                                                      \
            "    jmp *%rax\n"                                                                      \
            ".cfi_endproc\n"                                                                       \
            ".size " #symbol ", . - " #symbol "\n")
#elif defined(__aarch64__)
#define VFORK_STUB(symbol, prepare)                                                                \
    __asm__(".text\n"                                                                              \
            ".globl " #symbol "\n"                                                                 \
            ".type " #symbol ", %function\n"                                                       \
            ".p2align 4\n" #symbol ":\n"                                                           \
            ".cfi_startproc\n"                                                                     \
            "    hint #34\n" /* bti c */                                                           \
            "    stp x29, x30, [sp, #-16]!\n"                                                      \
            "    .cfi_adjust_cfa_offset 16\n"                                                      \
            "    .cfi_offset 29, -16\n"                                                            \
            "    .cfi_offset 30, -8\n"                                                             \
            "    bl " #prepare "\n"                                                                \
            "    ldp x29, x30, [sp], #16\n"                                                        \
            "    .cfi_adjust_cfa_offset -16\n"                                                     \
            "    .cfi_restore 29\n"                                                                \
            "    .cfi_restore 30\n"                                                                \
            "    mov x16, x0\n"                                                                    \
            "    br x16\n"                                                                         \
            ".cfi_endproc\n"                                                                       \
            ".size " #symbol ", . - " #symbol "\n")
#endif

__attribute__((used)) void *sub_prepare_vfork_plain(void);
__attribute__((used)) void *sub_prepare_vfork_private(void);

void *sub_prepare_vfork_plain(void) {
    return sub_prepare_vfork(SUB_OP_vfork);
}

void *sub_prepare_vfork_private(void) {
    return sub_prepare_vfork(SUB_OP___vfork);
}

VFORK_STUB(vfork, sub_prepare_vfork_plain);
VFORK_STUB(__vfork, sub_prepare_vfork_private);

/* --- wait ------------------------------------------------------------------------------------- */

static void record_wait(enum sub_operation op, uint64_t start, pid_t pid, int status) {
    if (start != 0 && pid > 0)
        record_simple(SUB_WAIT, op, start, pid, 0, status);
}

/* The status goes through a variable of ours where the caller wants none. */
HOOK(pid_t, wait, (int *status)) {
    uint64_t start = sub_enter();
    int own = 0;
    pid_t (*next)(int *) = NEXT(wait, pid_t (*)(int *));
    int *where = status != NULL ? status : &own;
    pid_t pid =
        next != NULL ? next(where) : (pid_t)sub_libc_result(SYS4(SYS_wait4, -1, where, 0, 0));
    record_wait(SUB_OP_wait, start, pid, pid > 0 ? *where : 0);
    return pid;
}

HOOK(pid_t, waitpid, (pid_t which, int *status, int options)) {
    uint64_t start = sub_enter();
    int own = 0;
    pid_t (*next)(pid_t, int *, int) = NEXT(waitpid, pid_t (*)(pid_t, int *, int));
    int *where = status != NULL ? status : &own;
    pid_t pid = next != NULL ? next(which, where, options)
                             : (pid_t)sub_libc_result(SYS4(SYS_wait4, which, where, options, 0));
    record_wait(SUB_OP_waitpid, start, pid, pid > 0 ? *where : 0);
    return pid;
}

HOOK(pid_t, wait3, (int *status, int options, struct rusage *usage)) {
    uint64_t start = sub_enter();
    int own = 0;
    pid_t (*next)(int *, int, struct rusage *) =
        NEXT(wait3, pid_t (*)(int *, int, struct rusage *));
    int *where = status != NULL ? status : &own;
    pid_t pid = next != NULL ? next(where, options, usage)
                             : (pid_t)sub_libc_result(SYS4(SYS_wait4, -1, where, options, usage));
    record_wait(SUB_OP_wait3, start, pid, pid > 0 ? *where : 0);
    return pid;
}

HOOK(pid_t, wait4, (pid_t which, int *status, int options, struct rusage *usage)) {
    uint64_t start = sub_enter();
    int own = 0;
    pid_t (*next)(pid_t, int *, int, struct rusage *) =
        NEXT(wait4, pid_t (*)(pid_t, int *, int, struct rusage *));
    int *where = status != NULL ? status : &own;
    pid_t pid = next != NULL
                    ? next(which, where, options, usage)
                    : (pid_t)sub_libc_result(SYS4(SYS_wait4, which, where, options, usage));
    record_wait(SUB_OP_wait4, start, pid, pid > 0 ? *where : 0);
    return pid;
}

HOOK(int, waitid, (idtype_t kind, id_t which, siginfo_t *info, int options)) {
    uint64_t start = sub_enter();
    int (*next)(idtype_t, id_t, siginfo_t *, int) =
        NEXT(waitid, int (*)(idtype_t, id_t, siginfo_t *, int));
    int result = next != NULL
                     ? next(kind, which, info, options)
                     : (int)sub_libc_result(SYS5(SYS_waitid, kind, which, info, options, NULL));
    if (start != 0 && result == 0 && info != NULL && info->si_pid > 0 && (options & WNOWAIT) == 0) {
        int status = info->si_code == CLD_EXITED   ? (info->si_status & 0xff) << 8
                     : info->si_code == CLD_KILLED ? info->si_status & 0x7f
                     : info->si_code == CLD_DUMPED ? (info->si_status & 0x7f) | 0x80
                                                   : 0x7f;
        record_simple(SUB_WAIT, SUB_OP_waitid, start, info->si_pid, 0, status);
    }
    return result;
}

/* --- exit ------------------------------------------------------------------------------------- */

void sub_record_exit(uint16_t op, int status) {
    uint64_t start = sub_enter();
    if (start == 0)
        return;
    if (sub_libraries_pending != NULL)
        sub_record_libraries(true);
    record_simple(SUB_EXIT, (enum sub_operation)op, start, 0, 0, status);
    sub_mark_exited();
}

#define EXIT_HOOK(symbol, number)                                                                  \
    HOOK(_Noreturn void, symbol, (int status)) {                                                   \
        sub_record_exit(SUB_OP_##symbol, status);                                                  \
        void (*next)(int) = NEXT(symbol, void (*)(int));                                           \
        if (next != NULL)                                                                          \
            next(status);                                                                          \
        for (;;)                                                                                   \
            SYS1(number, status);                                                                  \
    }

EXIT_HOOK(_exit, SYS_exit_group)
EXIT_HOOK(_Exit, SYS_exit_group)
EXIT_HOOK(quick_exit, SYS_exit_group)

#ifndef __GLIBC__
/* musl has no on_exit, so a return from main is made a call of exit. */
EXIT_HOOK(exit, SYS_exit_group)

typedef int main_function(int, char **, char **);
static main_function *program_main;

static int recorded_main(int argc, char **argv, char **environment) {
    hook_exit(program_main(argc, argv, environment));
}

HOOK(int, __libc_start_main,
     (main_function * main, int argc, char **argv, void (*init)(void), void (*fini)(void),
      void (*loader_fini)(void))) {
    typedef int start_function(main_function *, int, char **, void (*)(void), void (*)(void),
                               void (*)(void));
    start_function *next = NEXT(__libc_start_main, start_function *);
    program_main = main;
    return next(recorded_main, argc, argv, init, fini, loader_fini);
}
#endif
