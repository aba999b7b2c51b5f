/*
 * The ledger's second source: the process events connector (CN_PROC over netlink), for kernels
 * without BTF or cgroup v2.
 *
 * It tells of every process on the host, so the worlds' are picked by descent from their inits.
 * Pids are the host's: a world's own come from /proc, while a process is there to be asked. The end
 * of a group's first thread stands for the end of the process.
 */
#include "kernel.h"

#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define BUFFER_BYTES (8 << 20)
#define ROUND 4096
#define PATIENCE_MS 500

static int channel = -1;

static int subscribe(void) {
    enum proc_cn_mcast_op operation = PROC_CN_MCAST_LISTEN;
    struct cn_msg connector = {.id = {CN_IDX_PROC, CN_VAL_PROC}, .len = sizeof operation};
    struct nlmsghdr netlink = {.nlmsg_len = NLMSG_LENGTH(sizeof connector + sizeof operation),
                               .nlmsg_type = NLMSG_DONE};
    struct iovec parts[] = {
        {&netlink, sizeof netlink}, {&connector, sizeof connector}, {&operation, sizeof operation}};
    return writev(channel, parts, 3) == (ssize_t)netlink.nlmsg_len ? 0 : -1;
}

/* The next event; NULL with errno. */
static const struct proc_event *receive(void) {
    static _Alignas(8) char space[4096];
    struct sockaddr_nl from;
    socklen_t from_size = sizeof from;
    ssize_t got =
        recvfrom(channel, space, sizeof space, MSG_DONTWAIT, (struct sockaddr *)&from, &from_size);
    const struct cn_msg *message = NLMSG_DATA((const struct nlmsghdr *)space);
    if (got < 0)
        return NULL;
    errno = EPROTO;
    bool whole = (size_t)got >= NLMSG_SPACE(0) + sizeof *message + sizeof(struct proc_event) - 8;
    return whole && from.nl_pid == 0 && message->id.idx == CN_IDX_PROC ? (const void *)message->data
                                                                       : NULL;
}

static int await_answer(struct fail *fail) {
    struct pollfd ready = {.fd = channel, .events = POLLIN};
    for (int i = 0; i < 1000 && poll(&ready, 1, PATIENCE_MS) > 0; i++) {
        const struct proc_event *event = receive();
        if (event && event->what == PROC_EVENT_NONE && event->event_data.ack.err)
            return fail_set(fail, (int)event->event_data.ack.err, "PROC_CN_MCAST_LISTEN");
        if (event)
            return 0; /* also somebody's fork: we are listening */
    }
    return fail_set(fail, 0, "the process events connector does not answer (a container?)");
}

int connector_start(struct fail *fail) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC};
    int size = BUFFER_BYTES;
    channel = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_CONNECTOR);
    if (channel < 0 || bind(channel, (struct sockaddr *)&address, sizeof address) ||
        setsockopt(channel, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) || subscribe())
        fail_set(fail, errno, "the process events connector");
    if (fail->text[0] || await_answer(fail))
        sub_close_fd(&channel);
    return channel;
}

/* ---- what /proc knows ------------------------------------------------------------------------ */

/* In the namespace below ours; 0 where the process is gone. */
static int32_t pid_inside(int32_t host_pid) {
    char path[48], line[256];
    int32_t ours, inside = 0;
    snprintf(path, sizeof path, "/proc/%d/status", host_pid);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "NSpid: %d %d", &ours, &inside) == 2)
            break;
    if (file)
        fclose(file);
    return inside;
}

static void program_of(int32_t host_pid, struct sub_ledger_record *record) {
    char path[48], name[4096];
    snprintf(path, sizeof path, "/proc/%d/exe", host_pid);
    ssize_t length = readlink(path, name, sizeof name);
    size_t cut =
        length >= (ssize_t)sizeof record->name ? (size_t)length - (sizeof record->name - 1) : 0;
    if (length > 0)
        memcpy(record->name, name + cut, (size_t)length - cut);
    record->flags = cut ? SUB_LEDGER_CUT : 0;
    snprintf(path, sizeof path, "/proc/%d/comm", host_pid);
    SUB_AUTO_FD file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? 0 : read(file, name, sizeof record->comm - 1);
    for (ssize_t i = 0; i < got && name[i] != '\n'; i++)
        record->comm[i] = name[i];
}

/* ---- events ---------------------------------------------------------------------------------- */

static struct ledger *world_of(int32_t host_pid) {
    const struct known_process *process = ledger_known(host_pid);
    return process ? ledger_at(process->slot) : NULL;
}

static void take_fork(const struct proc_event *event) {
    int32_t child = event->event_data.fork.child_tgid;
    int32_t parent = event->event_data.fork.parent_tgid;
    struct ledger *ledger = world_of(parent);
    if (!ledger || event->event_data.fork.child_pid != child)
        return;
    struct sub_ledger_record record = {.type = SUB_LEDGER_FORK,
                                       .time_ns = event->timestamp_ns,
                                       .pid = pid_inside(child),
                                       .parent = ledger_known(parent)->pid,
                                       .host_pid = child,
                                       .host_parent = parent};
    ledger_append(ledger, &record);
}

static void take_exec(const struct proc_event *event) {
    int32_t host_pid = event->event_data.exec.process_tgid;
    struct ledger *ledger = world_of(host_pid);
    if (!ledger)
        return;
    struct sub_ledger_record record = {.type = SUB_LEDGER_EXEC,
                                       .time_ns = event->timestamp_ns,
                                       .pid = ledger_known(host_pid)->pid,
                                       .host_pid = host_pid};
    if (!record.pid)
        record.pid = pid_inside(host_pid);
    program_of(host_pid, &record);
    ledger_append(ledger, &record);
}

static void take_exit(const struct proc_event *event) {
    int32_t host_pid = event->event_data.exit.process_tgid;
    struct ledger *ledger = world_of(host_pid);
    if (!ledger || event->event_data.exit.process_pid != host_pid)
        return;
    struct sub_ledger_record record = {.type = SUB_LEDGER_EXIT,
                                       .time_ns = event->timestamp_ns,
                                       .pid = ledger_known(host_pid)->pid,
                                       .host_pid = host_pid,
                                       .status = (int32_t)event->event_data.exit.exit_code};
    ledger_append(ledger, &record);
}

static void overrun(void) {
    for (uint32_t slot = 0; slot < LEDGERS_MAX; slot++)
        if (ledger_at(slot))
            ledger_at(slot)->lost++; /* nobody says how many */
}

void connector_drain(bool all) {
    for (int taken = 0; channel >= 0 && (all || taken < ROUND); taken++) {
        const struct proc_event *event = receive();
        if (!event && errno == ENOBUFS)
            overrun();
        else if (!event && errno == EAGAIN)
            return;
        else if (!event)
            continue;
        else if (event->what == PROC_EVENT_FORK)
            take_fork(event);
        else if (event->what == PROC_EVENT_EXEC)
            take_exec(event);
        else if (event->what == PROC_EVENT_EXIT)
            take_exit(event);
    }
}
