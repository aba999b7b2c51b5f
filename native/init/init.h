/*
 * substrate-init: pid 1 of a box. Starts execs, moves their input and output, knows how they ended.
 *
 * One epoll loop (nursery.c has a thread, and runs only while the loop waits for it), and nothing in
 * it waits: not for the host, which may be gone for
 * a while, and not for a program, which may be hostile. What is known about an exec stays until the
 * host says FORGET.
 */
#ifndef SUBSTRATE_INIT_H
#define SUBSTRATE_INIT_H

#define _GNU_SOURCE

#include "wire.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <time.h>

#define EXECS_MAX 16384u
#define START_ASKERS_MAX 8u /* for one exec, while it is starting */
#define MS 1000000ull

/* ---- what init knows about itself ------------------------------------------------------------ */

struct self {
    int channel;     /* to the host */
    int cgroup_fd;   /* the box's cgroup directory; -1: subreaper mode */
    int last_pid_fd; /* /proc/sys/kernel/ns_last_pid; -1: not settable */
    int memory_fd;   /* cgroup v1: where each exec gets a directory for its memory; -1: none */
    int pids_fd;     /* a cgroup's directory with pids.events; -1: none */
    bool single_id;  /* only the caller's id is mapped (rootless) */
    uint64_t pid_namespace;
};
extern struct self self;

static inline uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* ---- request.c: START, parsed ---------------------------------------------------------------- */

struct start {
    struct sub_start head;
    char exec_id[SUB_ID_MAX + 1];
    char *cwd, *user;
    char **argv, **env;
    struct sub_rlimit *rlimits;
    int output_fd; /* SUB_START_OUTPUT: what stdout is to be; else -1 */
};

bool start_parse(struct start *start, const uint8_t *payload, size_t length);
void start_release(struct start *start);

struct shell_run {
    struct sub_shell_run head;
    char *text, *trailer;
    const char *input; /* in the packet */
    size_t input_length;
};

bool shell_run_parse(struct shell_run *run, const uint8_t *payload, size_t length);
void shell_run_release(struct shell_run *run);

/* ---- execs.c --------------------------------------------------------------------------------- */

enum dirty { DIRTY_OUTPUT = 1, DIRTY_EXITED = 2, DIRTY_STDIN = 4 };

struct input {
    uint8_t *data; /* SUB_STDIN_WINDOW bytes, allocated on first use */
    size_t begin, end;
    uint64_t received, written;
    bool eof, closed;
};

#define SHELL_FDS 4

struct shell {
    int report_fd;
    int object_fd; /* what commands read */
    struct exec *current;
    char word[SUB_ID_MAX];   /* of the current command, or of the last */
    char before[SUB_ID_MAX]; /* of the one before it */
    char line[8192];
    size_t used;
    size_t dropped; /* of a line that is longer */
    bool spoiled;
};

struct exec {
    struct sub_state state; /* its exec_id is padded, `id` is terminated */
    char id[SUB_ID_MAX + 1];
    uint32_t index, sequence;
    pid_t main_pid;       /* 0 when reaped */
    pid_t supervisor_pid; /* subreaper mode; 0 when reaped */
    int outputs[3];       /* stdout, stderr, terminal; -1 when ended */
    int stdin_fd;
    int status_fd; /* SPAWN_FAILURE from the child; ends at execve */
    int supervisor_fd;
    int log_fd;
    int cgroup_fd;
    int memory_fd;         /* its own cgroup v1 directory, or -1 */
    uint64_t oom_before;   /* what was counted in the shared one, where it was born there */
    uint64_t pids_refused; /* in the box, when it began */
    uint64_t output_limit, output_kept;
    uint64_t deadline_ns; /* monotonic; 0: none. Of a frozen exec it comes later. */
    uint64_t ending_since_ns, kill_scan_ns, pty_quiet_since_ns;
    uint64_t last_note_ns;
    struct input input;
    struct shell *shell;   /* where it is a shell */
    struct exec *of_shell; /* where it is a command of one */
    pid_t *before;         /* processes of the shell when it began */
    size_t before_count;
    char *trailer;
    uint64_t again_ns;                         /* when to interrupt it once more; 0: not */
    char directory[4097];                      /* where the shell was afterwards */
    uint32_t start_requests[START_ASKERS_MAX]; /* who waits for the answer to START */
    uint32_t start_askers;
    uint32_t watched; /* epoll events wanted on stdin_fd */
    uint8_t dirty;
    bool is_pty;
    bool pty_quiet; /* nobody has the terminal open; not watched until looked at again */
    bool supervisor_lost;
    bool main_exited, timed_out, killed, cgroup_gone;
    bool memory_gone; /* its directory in memory_fd has been removed */
    bool born_shared; /* in the nursery's cgroup v1, alone when it began */
    bool forgotten;   /* only drains what background processes still write */
};

struct exec *exec_new(const struct start *start);
void exec_delete(struct exec *exec);
void exec_reply_started(uint32_t request, const struct exec *exec, bool existing);
void exec_reply_failed(uint32_t request, const char *exec_id, int error, uint32_t stage);
void execs_start(uint32_t request, struct sub_packet *packet);
struct exec *execs_find(const char *id); /* exec_id[64], need not be terminated */
struct exec *execs_at(uint32_t index);
size_t execs_count(void);
void execs_forget(struct exec *exec);
void execs_read_status(struct exec *exec);
void execs_read_supervisor(struct exec *exec);
void execs_reap(void);
int execs_tick(void); /* deadlines; milliseconds until the next, or -1 */
int execs_signal(struct exec *exec, int signo, uint32_t scope);
extern uint32_t execs_high; /* one more than the highest index in use */

/* ---- spawn.c, child.c, supervisor.c ---------------------------------------------------------- */

struct spawn_failure {
    int32_t error;
    uint32_t stage;
};

struct stdio {
    int fds[3];           /* the child's ends */
    int pty_master;       /* -1 without a terminal */
    int shell[SHELL_FDS]; /* a shell's, at descriptor `shell_base` and above; -1 without */
    int shell_base;
};

struct supervisor_report {
    uint32_t kind; /* 1: started, 2: main ended */
    int32_t pid;
    int32_t wait_status;
    struct rusage usage;
};

/* Fills pid, descriptors; 0 or -1 with errno. */
int spawn(struct exec *exec, const struct start *start);
void child_prepare(const struct rlimit *files);
_Noreturn void child_run(const struct start *start, const struct stdio *stdio, int status_fd);
_Noreturn void supervisor_run(const struct start *start, const struct stdio *stdio, int status_fd,
                              int report_fd);
void set_last_pid(int64_t last_pid);

/* What a process of an exec begins with. */
struct birth {
    struct exec *exec;
    const struct start *start;
    const struct stdio *stdio;
    int status_end, report_end; /* the latter where it gets a supervisor */
    pid_t pid;                  /* or -1 */
    int error;
};

/* Makes the process; does not return in it. */
void birth_clone(struct birth *birth);

/* ---- nursery.c ------------------------------------------------------------------------------- */

void nursery_start(void);
/* Whether processes can be born in the execs' shared cgroup v1; waits until that is known. */
bool nursery_ready(void);
void nursery_clone(struct birth *birth);
uint64_t nursery_oom_kills(void); /* ever, of whoever is in there */

/* ---- users.c --------------------------------------------------------------------------------- */

#define GROUPS_MAX 256

struct identity {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    size_t group_count;
};

/* 0, or an errno: ENOENT no such user or group. Reads the box's /etc/passwd and /etc/group. */
int identity_find(const struct start *start, struct identity *identity);

/* ---- seccomp.c, landlock.c, builtin*.c ------------------------------------------------------- */

void seccomp_prepare(void);
int seccomp_apply(void);
/* Restricts this process and all it starts to the box's files; 0 also where the kernel cannot. */
int landlock_enter(void);
/* Runs argv[0] as a file operation; never returns. Its exit status is the errno, 0 for success. */
_Noreturn void builtin_run(char **argv);
bool builtin_exists(const char *name);

/* ---- output.c -------------------------------------------------------------------------------- */

void output_read(struct exec *exec, int stream);
void output_look_again(struct exec *exec);
void output_drain(struct exec *exec);
bool output_is_open(const struct exec *exec);

/* ---- input.c --------------------------------------------------------------------------------- */

int input_add(struct exec *exec, uint64_t offset, const uint8_t *data, size_t length, bool eof);
void input_write(struct exec *exec);
void input_close(struct exec *exec);

/* ---- shells.c -------------------------------------------------------------------------------- */

int shell_prepare(struct exec *exec);
void shell_release(struct exec *exec);
void shells_run(uint32_t request, struct sub_packet *packet);
void shell_gone(struct exec *shell);
void shell_read_report(struct exec *shell);
int shell_signal(struct exec *command, int signo);
void shell_end_command(struct exec *command, uint64_t now);
uint64_t shell_tick(struct exec *command, uint64_t now); /* when to call it again */

/* ---- tree.c ---------------------------------------------------------------------------------- */

int tree_make(struct exec *exec, bool may_share);
int tree_enter(const struct exec *exec); /* by the child, before it is anybody else */
void tree_remove(struct exec *exec);
int tree_signal(struct exec *exec, int signo);
uint32_t tree_count(struct exec *exec);
/* Every process of the box, with the exec it belongs to. */
size_t tree_list(struct sub_proc *out, size_t room, bool *truncated);
uint64_t process_start_ticks(pid_t pid);
pid_t process_parent(pid_t pid);
typedef void tree_visitor(pid_t pid, void *context);
uint32_t tree_visit(struct exec *exec, tree_visitor *each, void *context);
size_t tree_kill_strays(void);

/* ---- limits.c: what the kernel counted, and who may run ---------------------------------------- */

uint64_t limits_oom_kills(const struct exec *exec);
/* The number after a word in a file of "word number" lines; 0 without. */
uint64_t read_count(int dir, const char *file, const char *word);
uint64_t limits_pids_refused(void);
/* Stops, or lets go on, all execs; how many are not yet as asked. */
uint32_t limits_freeze(bool frozen);
bool limits_frozen(void);

/* ---- channel.c ------------------------------------------------------------------------------- */

void channel_reply(uint16_t type, uint32_t request, const void *payload, size_t length);
void channel_error(uint32_t request, int error, const char *text);
void channel_read(void);
int channel_flush(void); /* milliseconds until it should be called again, or -1 */

/* ---- loop (main.c) --------------------------------------------------------------------------- */

enum watch_kind {
    WATCH_CHANNEL = 1,
    WATCH_SIGNALS,
    WATCH_OUT, /* + stream index */
    WATCH_ERR,
    WATCH_PTY,
    WATCH_STDIN,
    WATCH_STATUS,
    WATCH_SUPERVISOR,
    WATCH_REPORT,
};

int loop_watch(int fd, enum watch_kind kind, uint32_t index, uint32_t events);
void loop_unwatch(int fd);
int loop_change(int fd, enum watch_kind kind, uint32_t index, uint32_t events);

#endif
