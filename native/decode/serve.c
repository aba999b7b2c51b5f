/*
 * Decoding for a caller that asks often: one process that stands by, and for each request a copy of
 * it that does what the program would do by itself.
 *
 * Starting a program costs more than reading a short step, forking a small one does not. The process
 * that stands by reads nothing but its caller's requests; what reads segments is a child of its own
 * for each request, made before the first hostile byte, which gives up all rights (sandbox.c) and
 * ends with its answer. So nothing of one world is in memory when another's is read, and a child
 * that crashes, or is killed for taking too long, takes nobody else's answer along.
 *
 * The caller's socket is of type SOCK_SEQPACKET. A request is {u32 id} and options as on the command
 * line, each with its NUL, and as SCM_RIGHTS what become the descriptors from 1 on: standard output,
 * standard error, and those that the options name. One without options ends the child of that id.
 * An answer is {u32 id, i32 status as of wait(2)}.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "decode.h"
#include "serve.h"

#define REQUEST_MAX (192u << 10)
#define ARGUMENTS_MAX 4096
#define DESCRIPTORS_MAX 5 /* output, errors, segments, summary, ledger */
#define CHILDREN_MAX 1024
#define REFUSED (126 << 8) /* a wait status: no child was made */

struct child {
    pid_t pid;
    uint32_t request;
};

struct request {
    uint32_t id;
    size_t length; /* of the options; none: no more of the child that was made for that id */
    bool torn;     /* some of it was lost on the way, by our limit of descriptors, say */
    int descriptors[DESCRIPTORS_MAX];
    size_t descriptor_count;
};

static char buffer[sizeof(uint32_t) + REQUEST_MAX];
static struct child children[CHILDREN_MAX];
static uint32_t child_count;

static void answer(int socket, uint32_t id, int32_t status) {
    uint32_t words[2] = {id, (uint32_t)status};
    while (send(socket, words, sizeof words, MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

/* --- the child -------------------------------------------------------------------------------- */

/* Puts what came along at 1 and on, and leaves nothing else open: the caller's socket above all. */
static void arrange(const struct request *request) {
    int high[DESCRIPTORS_MAX];
    int count = (int)request->descriptor_count;
    for (int i = 0; i < count; i++)
        if ((high[i] = fcntl(request->descriptors[i], F_DUPFD_CLOEXEC, 64)) < 0)
            _exit(1);
    for (int i = 0; i < count; i++)
        if (dup2(high[i], i + 1) < 0)
            _exit(1);
    if (syscall(SYS_close_range, count + 1, ~0u, 0) != 0)
        _exit(1);
}

static _Noreturn void decode_request(const struct request *request) {
    static char *argv[ARGUMENTS_MAX + 2];
    static char name[] = "substrate-decode";
    int argc = 0;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    arrange(request);
    argv[argc++] = name;
    char *text = buffer + sizeof(uint32_t), *end = text + request->length;
    while (text < end && argc <= ARGUMENTS_MAX) {
        argv[argc++] = text;
        text += strlen(text) + 1;
    }
    struct options options;
    optind = 0; /* getopt(3) begins anew */
    options_parse(&options, argc, argv);
    /* What it writes to files in memory is the caller's memory. */
    struct rlimit most = {options.memory_limit, options.memory_limit};
    setrlimit(RLIMIT_FSIZE, &most);
    enter_sandbox(&options);
    decode_all(&options);
    exit(0);
}

/* --- the process that stands by --------------------------------------------------------------- */

static void begin(int socket, const struct request *request) {
    bool good = child_count < CHILDREN_MAX && request->descriptor_count >= 4 &&
                buffer[sizeof(uint32_t) + request->length - 1] == '\0';
    pid_t pid = good ? fork() : -1;
    if (pid == 0)
        decode_request(request);
    if (pid < 0)
        answer(socket, request->id, REFUSED);
    else
        children[child_count++] = (struct child){pid, request->id};
}

static void cancel(uint32_t id) {
    for (uint32_t i = 0; i < child_count; i++)
        if (children[i].request == id)
            kill(children[i].pid, SIGKILL);
}

static void reap(int socket) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        for (uint32_t i = 0; i < child_count; i++) {
            if (children[i].pid != pid)
                continue;
            answer(socket, children[i].request, status);
            children[i] = children[--child_count];
            break;
        }
    }
}

/* One request into `buffer`; false when the caller is gone. */
static bool take(int socket, struct request *request) {
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
    } control;
    struct iovec part = {buffer, sizeof buffer};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t got;
    do
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < (ssize_t)sizeof request->id)
        return false;
    memcpy(&request->id, buffer, sizeof request->id);
    request->length = (size_t)got - sizeof request->id;
    request->descriptor_count = 0;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        request->descriptor_count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(request->descriptors, CMSG_DATA(header), request->descriptor_count * sizeof(int));
    }
    request->torn = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    return true;
}

_Noreturn void serve(int socket) {
    sigset_t death;
    sigemptyset(&death);
    sigaddset(&death, SIGCHLD);
    sigprocmask(SIG_BLOCK, &death, NULL);
    int deaths = signalfd(-1, &death, SFD_CLOEXEC | SFD_NONBLOCK);
    if (deaths < 0)
        die_errno("cannot hear of children");
    prctl(PR_SET_DUMPABLE, 0);
    struct pollfd watched[2] = {{.fd = socket, .events = POLLIN}, {.fd = deaths, .events = POLLIN}};
    for (;;) {
        if (poll(watched, 2, -1) < 0 && errno != EINTR)
            die_errno("cannot wait for requests");
        struct signalfd_siginfo info;
        while (read(deaths, &info, sizeof info) > 0)
            ;
        reap(socket);
        if (watched[0].revents == 0)
            continue;
        struct request request;
        if (!take(socket, &request))
            break;
        if (request.torn || (request.length == 0 && request.descriptor_count > 0))
            answer(socket, request.id, REFUSED);
        else if (request.length > 0)
            begin(socket, &request);
        else
            cancel(request.id);
        for (size_t i = 0; i < request.descriptor_count; i++)
            close(request.descriptors[i]);
    }
    for (uint32_t i = 0; i < child_count; i++)
        kill(children[i].pid, SIGKILL);
    exit(0);
}
