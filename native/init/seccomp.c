/*
 * The system call filter of every exec: Docker's default profile (moby/profiles/seccomp) for a
 * container without added capabilities; tests/escape/test_against_docker.py compares the two. Allowed calls
 * are listed; of the others those the table knows the range of answer EPERM, later ones ENOSYS, so
 * that programs built for newer kernels fall back.
 *
 * Programs of i386 on x86_64 have numbers of their own, and so a table (seccomp_i386.h). Those of
 * other foreign architectures (arm on aarch64) are killed with SIGSYS; x32 finds no call it knows.
 */
#include "init.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
#include "seccomp_i386.h"
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "no system call table for this architecture"
#endif

static const uint16_t ALLOWED[] = {
    SYS_accept,
    SYS_accept4,
    SYS_adjtimex,
    SYS_bind,
    SYS_brk,
    SYS_capget,
    SYS_capset,
    SYS_chdir,
    SYS_clock_adjtime,
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_connect,
    SYS_copy_file_range,
    SYS_dup,
    SYS_dup3,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_execve,
    SYS_execveat,
    SYS_exit,
    SYS_exit_group,
    SYS_faccessat,
    SYS_fadvise64,
    SYS_fallocate,
    SYS_fanotify_mark,
    SYS_fchdir,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_fchownat,
    SYS_fcntl,
    SYS_fdatasync,
    SYS_fgetxattr,
    SYS_flistxattr,
    SYS_flock,
    SYS_fremovexattr,
    SYS_fsetxattr,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_futex,
    SYS_get_robust_list,
    SYS_getcpu,
    SYS_getcwd,
    SYS_getdents64,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getgroups,
    SYS_getitimer,
    SYS_getpeername,
    SYS_getpgid,
    SYS_getpid,
    SYS_getppid,
    SYS_getpriority,
    SYS_getrandom,
    SYS_getresgid,
    SYS_getresuid,
    SYS_getrlimit,
    SYS_getrusage,
    SYS_getsid,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_gettid,
    SYS_gettimeofday,
    SYS_getuid,
    SYS_getxattr,
    SYS_inotify_add_watch,
    SYS_inotify_init1,
    SYS_inotify_rm_watch,
    SYS_io_cancel,
    SYS_io_destroy,
    SYS_io_getevents,
    SYS_io_setup,
    SYS_io_submit,
    SYS_ioctl,
    SYS_ioprio_get,
    SYS_ioprio_set,
    SYS_kill,
    SYS_lgetxattr,
    SYS_linkat,
    SYS_listen,
    SYS_listxattr,
    SYS_llistxattr,
    SYS_lremovexattr,
    SYS_lseek,
    SYS_lsetxattr,
    SYS_madvise,
    SYS_membarrier,
    SYS_memfd_create,
    SYS_mincore,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_mlock,
    SYS_mlock2,
    SYS_mlockall,
    SYS_mmap,
    SYS_mprotect,
    SYS_mq_getsetattr,
    SYS_mq_notify,
    SYS_mq_open,
    SYS_mq_timedreceive,
    SYS_mq_timedsend,
    SYS_mq_unlink,
    SYS_mremap,
    SYS_msgctl,
    SYS_msgget,
    SYS_msgrcv,
    SYS_msgsnd,
    SYS_msync,
    SYS_munlock,
    SYS_munlockall,
    SYS_munmap,
    SYS_name_to_handle_at,
    SYS_nanosleep,
    SYS_newfstatat,
    SYS_openat,
    SYS_pipe2,
    SYS_pkey_alloc,
    SYS_pkey_free,
    SYS_pkey_mprotect,
    SYS_ppoll,
    SYS_prctl,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_prlimit64,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_pselect6,
    SYS_ptrace,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_read,
    SYS_readahead,
    SYS_readlinkat,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_remap_file_pages,
    SYS_removexattr,
    SYS_renameat,
    SYS_renameat2,
    SYS_restart_syscall,
    SYS_rt_sigaction,
    SYS_rt_sigpending,
    SYS_rt_sigprocmask,
    SYS_rt_sigqueueinfo,
    SYS_rt_sigreturn,
    SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait,
    SYS_rt_tgsigqueueinfo,
    SYS_sched_get_priority_max,
    SYS_sched_get_priority_min,
    SYS_sched_getaffinity,
    SYS_sched_getattr,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_sched_rr_get_interval,
    SYS_sched_setaffinity,
    SYS_sched_setattr,
    SYS_sched_setparam,
    SYS_sched_setscheduler,
    SYS_sched_yield,
    SYS_seccomp,
    SYS_semctl,
    SYS_semget,
    SYS_semop,
    SYS_semtimedop,
    SYS_sendfile,
    SYS_sendmmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_set_robust_list,
    SYS_set_tid_address,
    SYS_setfsgid,
    SYS_setfsuid,
    SYS_setgid,
    SYS_setgroups,
    SYS_setitimer,
    SYS_setpgid,
    SYS_setpriority,
    SYS_setregid,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setreuid,
    SYS_setrlimit,
    SYS_setsid,
    SYS_setsockopt,
    SYS_setuid,
    SYS_setxattr,
    SYS_shmat,
    SYS_shmctl,
    SYS_shmdt,
    SYS_shmget,
    SYS_shutdown,
    SYS_sigaltstack,
    SYS_signalfd4,
    SYS_socketpair,
    SYS_splice,
    SYS_statfs,
    SYS_statx,
    SYS_symlinkat,
    SYS_sync,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_sysinfo,
    SYS_tee,
    SYS_tgkill,
    SYS_timer_create,
    SYS_timer_delete,
    SYS_timer_getoverrun,
    SYS_timer_gettime,
    SYS_timer_settime,
    SYS_timerfd_create,
    SYS_timerfd_gettime,
    SYS_timerfd_settime,
    SYS_times,
    SYS_tkill,
    SYS_truncate,
    SYS_umask,
    SYS_uname,
    SYS_unlinkat,
    SYS_utimensat,
    SYS_vmsplice,
    SYS_wait4,
    SYS_waitid,
    SYS_write,
    SYS_writev,
    SYS_rseq,
    /* One number on every architecture from here on; libc headers may be older than the call. */
    424, /* pidfd_send_signal */
    434, /* pidfd_open */
    436, /* close_range */
    437, /* openat2 */
    439, /* faccessat2 */
    441, /* epoll_pwait2 */
    444,
    445,
    446, /* landlock_create_ruleset, _add_rule, _restrict_self */
    447, /* memfd_secret */
    448, /* process_mrelease */
    449, /* futex_waitv */
    451, /* cachestat */
    452, /* fchmodat2 */
    453, /* map_shadow_stack */
    454,
    455,
    456, /* futex_wake, futex_wait, futex_requeue */
    462, /* mseal */
    463,
    464,
    465,
    466, /* setxattrat, getxattrat, listxattrat, removexattrat */
#if defined(__x86_64__)
    SYS_access,
    SYS_alarm,
    SYS_arch_prctl,
    SYS_chmod,
    SYS_chown,
    SYS_creat,
    SYS_dup2,
    SYS_epoll_create,
    SYS_epoll_ctl_old,
    SYS_epoll_wait,
    SYS_epoll_wait_old,
    SYS_eventfd,
    SYS_fork,
    SYS_futimesat,
    SYS_get_thread_area,
    SYS_getdents,
    SYS_getpgrp,
    SYS_inotify_init,
    SYS_lchown,
    SYS_link,
    SYS_lstat,
    SYS_mkdir,
    SYS_mknod,
    SYS_modify_ldt,
    SYS_open,
    SYS_pause,
    SYS_pipe,
    SYS_poll,
    SYS_readlink,
    SYS_rename,
    SYS_rmdir,
    SYS_select,
    SYS_set_thread_area,
    SYS_signalfd,
    SYS_stat,
    SYS_symlink,
    SYS_time,
    SYS_unlink,
    SYS_utime,
    SYS_utimes,
    SYS_vfork,
    333, /* io_pgetevents */
    335, /* uretprobe */
#elif defined(__aarch64__)
    292, /* io_pgetevents */
#endif
};
/* The newest call this table has an opinion on. */
#define LAST_KNOWN 466u

#define NAMESPACE_FLAGS 0x7e020000u /* CLONE_NEW*; NEWTIME's bit means a signal in clone(2) */
#define AF_VSOCK_NUMBER 40
#define AF_ALG_NUMBER 38
#define AF_LAST_KNOWN 45

/* An architecture's calls: those allowed, and the numbers of those whose arguments decide. */
struct table {
    const uint16_t *allowed;
    size_t count;
    uint32_t clone, socket, personality, prlimit64, setuid, setfsuid, setreuid, setresuid;
};
#define ALLOWED_MAX 512

static const struct table NATIVE = {
    .allowed = ALLOWED,
    .count = sizeof ALLOWED / sizeof ALLOWED[0],
    .clone = SYS_clone,
    .socket = SYS_socket,
    .personality = SYS_personality,
    .prlimit64 = SYS_prlimit64,
    .setuid = SYS_setuid,
    .setfsuid = SYS_setfsuid,
    .setreuid = SYS_setreuid,
    .setresuid = SYS_setresuid,
};
_Static_assert(sizeof ALLOWED / sizeof ALLOWED[0] <= ALLOWED_MAX, "see seccomp_prepare");

#if defined(__x86_64__)
static const struct table I386 = {
    .allowed = I386_ALLOWED,
    .count = sizeof I386_ALLOWED / sizeof I386_ALLOWED[0],
    .clone = I386_clone,
    .socket = I386_socket,
    .personality = I386_personality,
    .prlimit64 = I386_prlimit64,
    .setuid = I386_setuid32,
    .setfsuid = I386_setfsuid32,
    .setreuid = I386_setreuid32,
    .setresuid = I386_setresuid32,
};
_Static_assert(sizeof I386_ALLOWED / sizeof I386_ALLOWED[0] <= ALLOWED_MAX, "see seccomp_prepare");
#endif

#define INSTRUCTIONS_MAX 2048
static struct sock_filter program[INSTRUCTIONS_MAX];
static uint16_t length;

static void emit(uint16_t code, uint32_t value, uint8_t when_true, uint8_t when_false) {
    if (length < INSTRUCTIONS_MAX)
        program[length++] = (struct sock_filter){code, when_true, when_false, value};
}

static void load(uint32_t offset) {
    emit(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
}

static void answer(uint32_t action) {
    emit(BPF_RET | BPF_K, action, 0, 0);
}

#define REFUSE(error) (SECCOMP_RET_ERRNO | (error))
#define ARGUMENT(index) ((uint32_t)offsetof(struct seccomp_data, args[index])) /* low half */

/* `call` is refused when one of its first `arguments` is `value`; they all have 32 bits. */
static void emit_refusal(uint32_t call, uint8_t arguments, uint32_t value, uint32_t action) {
    emit(BPF_JMP | BPF_JEQ | BPF_K, call, 0, (uint8_t)(3 * arguments + 1));
    for (uint8_t i = 0; i < arguments; i++) {
        load(ARGUMENT(i));
        emit(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
        answer(action);
    }
    answer(SECCOMP_RET_ALLOW);
}

/*
 * Pid 1 is the recorder. The kernel asks for equal ids only before it lets a process change another
 * one's limits, and a small RLIMIT_FSIZE of init cuts every output log; so nobody may name it, nor
 * take its id, which root of the box otherwise could.
 */
static void emit_recorder(const struct table *table) {
    emit_refusal(table->prlimit64, 1, 1, REFUSE(EPERM));
    if (self.single_id)
        return; /* there its id is everybody's */
    emit_refusal(table->setuid, 1, (uint32_t)getuid(), REFUSE(EINVAL));
    emit_refusal(table->setfsuid, 1, (uint32_t)getuid(), REFUSE(EINVAL));
    emit_refusal(table->setreuid, 2, (uint32_t)getuid(), REFUSE(EINVAL));
    emit_refusal(table->setresuid, 3, (uint32_t)getuid(), REFUSE(EINVAL));
}

/* Calls whose arguments decide. The accumulator holds the call's number. */
static void emit_conditional(const struct table *table) {
    static const uint32_t personalities[] = {0, 8, 0x20000, 0x20008, 0xffffffff};
    emit(BPF_JMP | BPF_JEQ | BPF_K, 435 /* clone3 */, 0, 1);
    answer(REFUSE(ENOSYS)); /* its flags are behind a pointer; libc falls back to clone */

    emit(BPF_JMP | BPF_JEQ | BPF_K, table->clone, 0, 4);
    load(ARGUMENT(0));
    emit(BPF_JMP | BPF_JSET | BPF_K, NAMESPACE_FLAGS, 0, 1);
    answer(REFUSE(EPERM));
    answer(SECCOMP_RET_ALLOW);

    emit(BPF_JMP | BPF_JEQ | BPF_K, table->socket, 0, 6);
    load(ARGUMENT(0));
    emit(BPF_JMP | BPF_JGT | BPF_K, AF_LAST_KNOWN, 2, 0);
    emit(BPF_JMP | BPF_JEQ | BPF_K, AF_VSOCK_NUMBER, 1, 0);
    emit(BPF_JMP | BPF_JEQ | BPF_K, AF_ALG_NUMBER, 0, 1);
    answer(REFUSE(EPERM));
    answer(SECCOMP_RET_ALLOW);

    uint8_t count = sizeof personalities / sizeof personalities[0];
    emit(BPF_JMP | BPF_JEQ | BPF_K, table->personality, 0, (uint8_t)(count + 3));
    load(ARGUMENT(0));
    for (uint8_t i = 0; i < count; i++)
        emit(BPF_JMP | BPF_JEQ | BPF_K, personalities[i], (uint8_t)(count - i), 0);
    answer(REFUSE(EPERM));
    answer(SECCOMP_RET_ALLOW);
}

static int compare(const void *a, const void *b) {
    return *(const uint16_t *)a - *(const uint16_t *)b;
}

struct range {
    uint32_t first; /* holds until the next range's first */
    uint32_t action;
};

/* A binary search over ranges: about seven comparisons instead of three hundred. */
static void emit_search(const struct range *ranges, size_t count) {
    if (count == 1) {
        answer(ranges[0].action);
        return;
    }
    size_t half = count / 2;
    uint16_t jump = length;
    emit(BPF_JMP | BPF_JGE | BPF_K, ranges[half].first, 0, 1);
    emit(BPF_JMP | BPF_JA, 0, 0, 0); /* conditional jumps reach 255 only */
    uint16_t lower = length;
    emit_search(ranges, half);
    program[jump + 1].k = (uint32_t)(length - lower);
    emit_search(ranges + half, count - half);
}

/* The answers to one architecture's calls; every path of it ends in an answer. */
static void emit_calls(const struct table *table) {
    static uint16_t sorted[ALLOWED_MAX];
    static struct range ranges[2 * ALLOWED_MAX + 3];
    size_t count = 0, numbers = table->count;
    memcpy(sorted, table->allowed, numbers * sizeof sorted[0]);
    qsort(sorted, numbers, sizeof sorted[0], compare);
    ranges[count++] = (struct range){0, REFUSE(EPERM)};
    for (size_t i = 0; i < numbers; i++) {
        if (ranges[count - 1].action == SECCOMP_RET_ALLOW && sorted[i] == sorted[i - 1] + 1u)
            continue;
        if (i && ranges[count - 1].action == SECCOMP_RET_ALLOW)
            ranges[count++] = (struct range){sorted[i - 1] + 1u, REFUSE(EPERM)};
        if (ranges[count - 1].first == sorted[i])
            ranges[count - 1].action = SECCOMP_RET_ALLOW;
        else
            ranges[count++] = (struct range){sorted[i], SECCOMP_RET_ALLOW};
    }
    uint32_t end = sorted[numbers - 1] + 1u;
    if (end <= LAST_KNOWN)
        ranges[count++] = (struct range){end, REFUSE(EPERM)};
    ranges[count++] = (struct range){LAST_KNOWN + 1, REFUSE(ENOSYS)};

    load(offsetof(struct seccomp_data, nr)); /* x32 numbers are above LAST_KNOWN: ENOSYS */
    emit_recorder(table);
    emit_conditional(table);
    emit_search(ranges, count);
}

void seccomp_prepare(void) {
    load(offsetof(struct seccomp_data, arch));
    uint16_t jump = length;
    emit(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
    emit(BPF_JMP | BPF_JA, 0, 0, 0); /* conditional jumps reach 255 only */
    uint16_t first = length;
    emit_calls(&NATIVE);
    program[jump + 1].k = (uint32_t)(length - first);
#if defined(__x86_64__)
    emit(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_I386, 1, 0);
    answer(SECCOMP_RET_KILL_PROCESS);
    emit_calls(&I386);
#else
    answer(SECCOMP_RET_KILL_PROCESS);
#endif
}

int seccomp_apply(void) {
    if (length == 0 || length >= INSTRUCTIONS_MAX) {
        errno = EINVAL;
        return -1;
    }
    struct sock_fprog filter = {.len = length, .filter = program};
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter);
}
