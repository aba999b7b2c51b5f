/*
 * Commands of a persistent shell. A shell is an exec whose standard input is its control: text that
 * the host has made, read by the shell at its top level. A command is an exec without a process of
 * its own: while it is the shell's current one, what the shell's streams bring is its output, and it
 * is over when the shell says so on its report pipe, with the word that this command was given.
 * What a command runs has neither control nor report (the text closes them around it), and a shell
 * that reports anything else is ended: it has been spoiled from inside.
 */
#include "init.h"

#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>

#define INTERRUPT_PATIENCE (100 * MS) /* for an ended command to go by itself */
#define SHELL_PATIENCE (2000 * MS)    /* for the shell to come back from it */
#define RETRY (20 * MS)
#define REPORT_MAX (16u << 20) /* of a directory's name, which has no limit in a shell */

int shell_prepare(struct exec *exec) {
    exec->shell = calloc(1, sizeof *exec->shell);
    if (!exec->shell)
        return -1;
    exec->shell->report_fd = -1;
    exec->shell->object_fd = memfd_create("substrate-stdin", MFD_CLOEXEC);
    return exec->shell->object_fd;
}

void shell_release(struct exec *exec) {
    if (exec->shell) {
        sub_close_fd(&exec->shell->report_fd);
        sub_close_fd(&exec->shell->object_fd);
        free(exec->shell);
        exec->shell = NULL;
    }
    if (exec->of_shell && exec->of_shell->shell && exec->of_shell->shell->current == exec)
        exec->of_shell->shell->current = NULL;
    for (uint32_t i = 0; i < execs_high; i++) {
        struct exec *other = execs_at(i);
        if (other && other->of_shell == exec)
            other->of_shell = NULL;
    }
    free(exec->before);
    free(exec->trailer);
    exec->before = NULL;
    exec->trailer = NULL;
}

/* ---- control --------------------------------------------------------------------------------- */

/* Text of any length: unlike a program's input it is the host's own, and it is not windowed. */
static int write_control(struct exec *exec, const char *text, size_t length) {
    struct input *input = &exec->input;
    size_t waiting = input->end - input->begin;
    uint8_t *joined = malloc(waiting + length + 1);
    if (!joined)
        return ENOMEM;
    if (waiting)
        memcpy(joined, input->data + input->begin, waiting);
    memcpy(joined + waiting, text, length);
    free(input->data);
    input->data = joined;
    input->begin = 0;
    input->end = waiting + length;
    input->received += length;
    input_write(exec);
    return exec->stdin_fd < 0 ? EPIPE : 0;
}

static int fill_object(int fd, const char *bytes, size_t length) {
    if (ftruncate(fd, 0))
        return errno;
    for (size_t done = 0; done < length;) {
        ssize_t wrote = pwrite(fd, bytes + done, length - done, (off_t)done);
        if (wrote < 0 && errno != EINTR)
            return errno;
        done += wrote > 0 ? (size_t)wrote : 0;
    }
    return 0;
}

/* ---- whose a process is ---------------------------------------------------------------------- */

struct pids {
    pid_t *list;
    size_t count, room;
};

static void add_pid(pid_t pid, void *context) {
    struct pids *pids = context;
    if (pids->count == pids->room) {
        size_t room = pids->room ? pids->room * 2 : 16;
        pid_t *list = realloc(pids->list, room * sizeof *list);
        if (!list)
            return;
        pids->list = list;
        pids->room = room;
    }
    pids->list[pids->count++] = pid;
}

static bool was_before(const struct exec *command, pid_t pid) {
    for (size_t i = 0; i < command->before_count; i++)
        if (command->before[i] == pid)
            return true;
    return false;
}

struct sending {
    const struct exec *command;
    int signo; /* 0: only counted */
    uint32_t count;
};

/* Not the shell, not what earlier commands left, and not what that has forked since. */
static void send_to_own(pid_t pid, void *context) {
    struct sending *sending = context;
    const struct exec *shell = sending->command->of_shell;
    pid_t at = pid;
    for (int depth = 0; depth < 64 && at > 1 && at != shell->state.pid; depth++) {
        if (was_before(sending->command, at))
            return;
        at = process_parent(at);
    }
    if (pid == shell->state.pid)
        return;
    sending->count++;
    if (sending->signo)
        kill(pid, sending->signo);
}

static uint32_t signal_own(struct exec *command, int signo) {
    struct sending sending = {command, signo, 0};
    tree_visit(command->of_shell, send_to_own, &sending);
    return sending.count;
}

/* ---- starting -------------------------------------------------------------------------------- */

static int begin(struct exec *shell, struct exec *command, const struct shell_run *run) {
    struct pids before = {0};
    int error = fill_object(shell->shell->object_fd, run->input, run->input_length);
    if (error)
        return error;
    output_drain(shell); /* what came while nobody asked is nobody's */
    tree_visit(shell, add_pid, &before);
    command->before = before.list;
    command->before_count = before.count;
    command->trailer = strdup(run->trailer);
    if (!command->trailer)
        return ENOMEM;
    command->of_shell = shell;
    command->state.oom_kills = limits_oom_kills(shell); /* counted from there on */
    command->state.pid = shell->state.pid;
    command->state.start_ticks = shell->state.start_ticks;
    command->state.start_mono_ns = clock_ns(CLOCK_MONOTONIC);
    command->state.start_boot_ns = clock_ns(CLOCK_BOOTTIME);
    if (run->head.timeout_ms)
        command->deadline_ns = command->state.start_mono_ns + run->head.timeout_ms * MS;
    memcpy(shell->shell->before, shell->shell->word, sizeof shell->shell->before);
    memcpy(shell->shell->word, run->head.word, sizeof shell->shell->word);
    shell->shell->current = command;
    command->state.phase = SUB_PHASE_RUNNING;
    error = write_control(shell, run->text, strlen(run->text));
    return error ? error : write_control(shell, run->trailer, strlen(run->trailer));
}

static int run_new(uint32_t request, struct exec *shell, const struct shell_run *run, int log_fd) {
    struct stat status;
    struct start start = {.head = {.output_limit = run->head.output_limit}};
    memcpy(start.head.exec_id, run->head.exec_id, SUB_ID_MAX);
    memcpy(start.exec_id, run->head.exec_id, SUB_ID_MAX);
    struct exec *command = exec_new(&start);
    if (!command)
        return errno;
    command->log_fd = fcntl(log_fd, F_DUPFD_CLOEXEC, 3);
    if (command->log_fd >= 0 && fstat(command->log_fd, &status) == 0)
        command->state.log_bytes = (uint64_t)status.st_size;
    int error = begin(shell, command, run);
    if (error) {
        exec_delete(command);
        return error;
    }
    exec_reply_started(request, command, false);
    return 0;
}

void shells_run(uint32_t request, struct sub_packet *packet) {
    struct shell_run run;
    bool good = shell_run_parse(&run, packet->payload, packet->header.length);
    SUB_AUTO_FD log_fd = sub_packet_take_fd(packet, 0);
    struct exec *known = good ? execs_find(run.head.exec_id) : NULL;
    struct exec *shell = good ? execs_find(run.head.shell_id) : NULL;
    int error = 0;
    if (!good || log_fd < 0)
        error = EINVAL;
    else if (known)
        exec_reply_started(request, known, true);
    else if (!shell || !shell->shell || shell->main_exited || shell->stdin_fd < 0)
        error = ESRCH;
    else if (shell->shell->current || shell->state.phase != SUB_PHASE_RUNNING)
        error = EBUSY;
    else
        error = run_new(request, shell, &run, log_fd);
    if (error)
        exec_reply_failed(request, good ? run.head.exec_id : "", error, SUB_STAGE_REQUEST);
    shell_run_release(&run);
}

/* ---- ending ---------------------------------------------------------------------------------- */

static void finish(struct exec *command) {
    struct sub_state *state = &command->state;
    struct exec *shell = command->of_shell;
    output_drain(shell);
    state->remaining = signal_own(command, 0);
    shell->shell->current = NULL;
    command->main_exited = true;
    state->pids_refused = limits_pids_refused() - command->pids_refused;
    uint64_t oom_kills = limits_oom_kills(shell), before = state->oom_kills;
    state->oom_kills = oom_kills > before ? oom_kills - before : 0;
    command->deadline_ns = 0;
    state->end_mono_ns = clock_ns(CLOCK_MONOTONIC);
    state->end_boot_ns = clock_ns(CLOCK_BOOTTIME);
    if (command->timed_out) {
        state->reason = SUB_REASON_TIMEOUT;
        state->signo = SIGKILL;
    } else if (command->killed) {
        state->reason = SUB_REASON_SIGNALED;
        state->signo = SIGKILL;
    }
    if (command->killed)
        state->flags |= SUB_STATE_KILLED;
    state->phase = SUB_PHASE_EXITED;
    command->dirty = (uint8_t)((command->dirty | DIRTY_EXITED) & ~DIRTY_OUTPUT);
}

void shell_gone(struct exec *shell) {
    struct exec *command = shell->shell->current;
    if (!command)
        return;
    const struct sub_state *end = &shell->state;
    command->state.flags |= SUB_STATE_SHELL_ENDED | (end->flags & SUB_STATE_LOST);
    if (shell->shell->spoiled)
        command->state.flags |= SUB_STATE_SPOILED;
    command->state.reason = end->reason;
    command->state.exit_code = end->exit_code;
    command->state.signo = end->signo;
    finish(command);
}

static void spoil(struct exec *shell) {
    if (!shell->shell->spoiled && !shell->main_exited) {
        shell->shell->spoiled = true;
        shell->state.flags |= SUB_STATE_SPOILED;
        tree_signal(shell, SIGKILL);
    }
}

static bool begins_with(const char *line, const char *word) {
    size_t length = strnlen(word, SUB_ID_MAX);
    return length && strncmp(line, word, length) == 0 && line[length] == ' ';
}

/*
 * "WORD STATUS DIRECTORY"; one that is late, of an interrupted command's second trailer, is known,
 * also when the next command has begun meanwhile.
 */
static void take_report(struct exec *shell, const char *line) {
    struct shell *about = shell->shell;
    size_t word = strnlen(about->word, sizeof about->word);
    char *end;
    if (begins_with(line, about->before))
        return;
    if (!begins_with(line, about->word)) {
        spoil(shell);
        return;
    }
    long status = strtol(line + word + 1, &end, 10);
    if (status < 0 || status > 255 || *end != ' ') {
        spoil(shell);
        return;
    }
    struct exec *command = about->current;
    if (!command)
        return;
    /* A name that no system call takes is not passed on. */
    if (!about->dropped && strlen(end + 1) < sizeof command->directory)
        strcpy(command->directory, end + 1);
    command->state.reason = SUB_REASON_EXITED;
    command->state.exit_code = (int32_t)status;
    finish(command);
}

/* A line that is too long for us is kept where it begins, which is all that counts. */
static void shorten(struct exec *shell) {
    struct shell *about = shell->shell;
    size_t kept = sizeof about->line / 2;
    about->dropped += about->used - kept;
    about->used = kept;
    bool known = begins_with(about->line, about->word) || begins_with(about->line, about->before);
    if (!known || about->dropped > REPORT_MAX) {
        spoil(shell);
        about->used = 0;
    }
}

void shell_read_report(struct exec *shell) {
    struct shell *about = shell->shell;
    while (about->report_fd >= 0) {
        size_t room = sizeof about->line - about->used;
        ssize_t got = read(about->report_fd, about->line + about->used, room);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0) {
            sub_close_fd(&about->report_fd);
            return;
        }
        about->used += (size_t)got;
        for (char *end; (end = memchr(about->line, 0, about->used));) {
            size_t taken = (size_t)(end - about->line) + 1;
            take_report(shell, about->line);
            about->dropped = 0;
            about->used -= taken;
            memmove(about->line, about->line + taken, about->used);
        }
        if (about->used == sizeof about->line)
            shorten(shell);
    }
}

/* ---- interrupting ---------------------------------------------------------------------------- */

/*
 * The shell's group has its foreground commands; what it started in the background ignores SIGINT.
 * A shell that is interrupted between commands drops the line it reads, which may be the trailer.
 */
static void interrupt(struct exec *command) {
    struct exec *shell = command->of_shell;
    kill(-shell->state.pid, SIGINT);
    (void)!write_control(shell, command->trailer, strlen(command->trailer));
}

int shell_signal(struct exec *command, int signo) {
    if (!command->of_shell || command->main_exited)
        return ESRCH;
    if (signo == SIGINT) {
        /* A shell that is just about to start a program takes note of it only after that program. */
        if (!signal_own(command, 0))
            command->again_ns = clock_ns(CLOCK_MONOTONIC) + RETRY;
        interrupt(command);
    } else if (signo == SIGKILL) {
        command->killed = true;
        shell_end_command(command, clock_ns(CLOCK_MONOTONIC));
    } else {
        signal_own(command, signo);
    }
    return 0;
}

void shell_end_command(struct exec *command, uint64_t now) {
    uint64_t since = command->ending_since_ns ? now - command->ending_since_ns : 0;
    if (!command->ending_since_ns)
        command->ending_since_ns = now;
    if (!command->of_shell)
        return;
    command->kill_scan_ns = now;
    if (since >= SHELL_PATIENCE) {
        tree_signal(command->of_shell, SIGKILL);
        return;
    }
    if (since >= INTERRUPT_PATIENCE)
        signal_own(command, SIGKILL);
    else
        signal_own(command, SIGINT);
    interrupt(command);
}

uint64_t shell_tick(struct exec *command, uint64_t now) {
    if (command->main_exited)
        return UINT64_MAX;
    if (command->deadline_ns && command->deadline_ns <= now) {
        command->deadline_ns = 0;
        command->timed_out = true;
        shell_end_command(command, now);
    } else if (command->ending_since_ns && now - command->kill_scan_ns >= RETRY) {
        shell_end_command(command, now);
    }
    if (command->again_ns && command->again_ns <= now) {
        command->again_ns = 0;
        interrupt(command);
    }
    uint64_t next = command->deadline_ns ? command->deadline_ns : UINT64_MAX;
    if (command->ending_since_ns)
        next = now + RETRY;
    return command->again_ns && command->again_ns < next ? command->again_ns : next;
}
