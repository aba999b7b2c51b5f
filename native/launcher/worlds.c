/* The living boxes: from request to staging to life to removal. */
#include "launcher.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct waiter {
    struct waiter *next;
    struct connection *connection;
    uint32_t request;
};

struct world {
    struct world *next;
    char id[SUB_ID_MAX + 1];
    pid_t stage, init; /* 0: reaped, or not known yet */
    bool live;         /* the init was executed */
    bool removing;
    bool has_box; /* the stage handed over its descriptors */
    int wait_status;
    int report, channel_host, segments, pidfd;
    uint32_t slot;
    struct ledger *ledger;
    struct fail fail;
    struct connection *creator; /* whom to answer; NULL when answered or gone */
    struct sub_header create_header;
    struct waiter *waiters;
};

static struct world *worlds;
static uint8_t slots[ID_SLOTS / 8];
static struct waiter *shutdown_waiters;
static bool shutting_down;

static struct world *find(const char *id) {
    for (struct world *world = worlds; world; world = world->next)
        if (strcmp(world->id, id) == 0)
            return world;
    return NULL;
}

size_t worlds_count(void) {
    size_t count = 0;
    for (struct world *world = worlds; world; world = world->next)
        count++;
    return count;
}

bool worlds_is_shutting_down(void) {
    return shutting_down;
}

static bool take_slot(uint32_t *slot) {
    for (uint32_t i = 0; i < ID_SLOTS; i++) {
        if (!(slots[i / 8] & 1 << i % 8)) {
            slots[i / 8] |= (uint8_t)(1 << i % 8);
            *slot = i;
            return true;
        }
    }
    return false;
}

static uint32_t id_base(const struct world *world) {
    return world->slot == ID_SLOTS ? 0 : ID_RANGE_FIRST + world->slot * ID_RANGE_SIZE;
}

static void wait_for(struct waiter **list, struct connection *connection, uint32_t request) {
    struct waiter *waiter = calloc(1, sizeof *waiter);
    if (!waiter)
        return;
    *waiter = (struct waiter){*list, connection, request};
    *list = waiter;
}

static void answer_waiters(struct waiter **list) {
    while (*list) {
        struct waiter *waiter = *list;
        *list = waiter->next;
        if (waiter->connection)
            server_reply(waiter->connection, SUB_L_OK, waiter->request, NULL, 0, NULL, 0);
        free(waiter);
    }
}

void worlds_connection_lost(struct connection *connection) {
    for (struct waiter *waiter = shutdown_waiters; waiter; waiter = waiter->next)
        if (waiter->connection == connection)
            waiter->connection = NULL;
    for (struct world *world = worlds; world; world = world->next) {
        if (world->creator == connection)
            world->creator = NULL;
        for (struct waiter *waiter = world->waiters; waiter; waiter = waiter->next)
            if (waiter->connection == connection)
                waiter->connection = NULL;
    }
}

static void send_box(struct connection *to, const struct sub_header *asked,
                     const struct world *world) {
    uint8_t space[sizeof(struct sub_box) + 4 + SUB_ID_MAX];
    struct sub_writer writer = {space, 0, sizeof space, false};
    struct sub_box box = {.init_pid = world->init, .id_base = id_base(world)};
    sub_put(&writer, &box, sizeof box);
    sub_put_string(&writer, world->id);
    /* Hosts that do not ask for it take a fourth descriptor for a mistake. */
    SUB_AUTO_FD ledger = asked->flags & SUB_WANTS_LEDGER ? ledger_reader(world->ledger) : -1;
    int fds[] = {world->channel_host, world->segments, world->pidfd, ledger};
    server_reply(to, SUB_L_BOX, asked->request, space, writer.used, fds, ledger < 0 ? 3 : 4);
}

/* ---- creation -------------------------------------------------------------------------------- */

static void kill_world(struct world *world) {
    if (world->stage > 0)
        kill(world->stage, SIGKILL);
    if (world->init > 0)
        kill(world->init, SIGKILL);
}

static void discard_world(struct world *world) {
    for (struct world **at = &worlds; *at; at = &(*at)->next) {
        if (*at == world) {
            *at = world->next;
            break;
        }
    }
    if (world->slot < ID_SLOTS)
        slots[world->slot / 8] &= (uint8_t)~(1 << world->slot % 8);
    ledger_close(world->ledger);
    sub_close_fd(&world->report);
    sub_close_fd(&world->channel_host);
    sub_close_fd(&world->segments);
    sub_close_fd(&world->pidfd);
    free(world);
}

static struct world *new_world(const struct spec *spec, struct fail *fail) {
    struct world *world = calloc(1, sizeof *world);
    if (!world) {
        fail_set(fail, ENOMEM, "creating world %s", spec->world_id);
        return NULL;
    }
    snprintf(world->id, sizeof world->id, "%s", spec->world_id);
    world->report = world->channel_host = world->segments = world->pidfd = -1;
    world->slot = ID_SLOTS;
    world->fail.op = -1;
    if (spec->range && !take_slot(&world->slot)) {
        fail_set(fail, 0, "all %u id ranges are in use; remove worlds first", ID_SLOTS);
        free(world);
        return NULL;
    }
    world->next = worlds;
    worlds = world;
    return world;
}

static int launch(struct world *world, const struct spec *spec, struct fail *fail) {
    int channel[2], report[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, channel))
        return fail_set(fail, errno, "socketpair");
    world->channel_host = channel[0];
    SUB_AUTO_FD channel_box = channel[1];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, report))
        return fail_set(fail, errno, "socketpair");
    world->report = report[0];
    SUB_AUTO_FD report_box = report[1];
    struct box_cgroups cgroups;
    if (cgroup_make(world->id, spec->range ? id_base(world) + INIT_ID : 0, &spec->limits, &cgroups,
                    fail)) {
        cgroup_release(&cgroups);
        return -1;
    }
    world->ledger = ledger_open(cgroups.world); /* before anybody is in there */
    struct stage_request request = {.spec = spec,
                                    .id_base = id_base(world),
                                    .channel_box = channel_box,
                                    .report = report_box,
                                    .cgroups = &cgroups};
    world->stage = stage_start(&request);
    int error = errno;
    cgroup_release(&cgroups);
    errno = error;
    if (world->stage < 0) {
        world->stage = 0;
        return fail_set(fail, errno, "clone3(stage)");
    }
    if (server_watch(world->report, WATCH_REPORT))
        return fail_set(fail, errno, "epoll_ctl");
    return 0;
}

void worlds_create(struct connection *from, const struct sub_packet *packet) {
    struct fail fail = {.op = -1};
    uint32_t request = packet->header.request;
    struct spec *spec = spec_parse(packet->payload, packet->header.length, &fail);
    struct world *world = NULL;
    if (!spec)
        server_reply_fail(from, request, &fail);
    else if (shutting_down)
        fail_set(&fail, 0, "the launcher is shutting down");
    else if (find(spec->world_id))
        fail_set(&fail, EEXIST, "world %s", spec->world_id);
    else if (spec->range && !config.range_works)
        fail_set(&fail, 0, "id_mapping \"range\" does not work here%s",
                 config.is_root ? "" : ": it needs root");
    else
        world = new_world(spec, &fail);
    if (spec && !world)
        server_reply_fail(from, request, &fail);
    if (world) {
        world->creator = from;
        world->create_header = packet->header;
        if (launch(world, spec, &fail)) {
            server_reply_fail(from, request, &fail);
            world->creator = NULL;
            kill_world(world);
            if (!world->stage) {
                cgroup_remove(world->id);
                discard_world(world);
            }
        }
    }
    spec_free(spec);
}

static struct world *find_by_report(int fd) {
    for (struct world *world = worlds; world; world = world->next)
        if (world->report == fd)
            return world;
    return NULL;
}

static void take_report(struct world *world, struct sub_packet *packet) {
    struct stage_report report;
    if (packet->header.length != sizeof report)
        return;
    memcpy(&report, packet->payload, sizeof report);
    if (report.kind == STAGE_INIT_PID) {
        world->init = report.init_pid;
        ledger_init_started(world->ledger, world->init);
    } else if (report.kind == STAGE_BOX && packet->fd_count == 2) {
        world->pidfd = sub_packet_take_fd(packet, 0);
        world->segments = sub_packet_take_fd(packet, 1);
        world->has_box = true;
        ledger_segments(world->ledger, world->segments);
    } else if (report.kind == STAGE_FAILED && !world->fail.text[0]) {
        world->fail = report.fail;
    }
}

/* The report ended: the init was executed, or somebody died. */
static void finish_staging(struct world *world) {
    sub_close_fd(&world->report); /* leaves the epoll set with it */
    world->live = world->has_box && !world->fail.text[0];
    if (!world->live) {
        fail_set(&world->fail, 0, "the staging process of world %s ended without a word",
                 world->id);
        kill_world(world);
    } else if (world->creator && !world->removing) {
        send_box(world->creator, &world->create_header, world);
        world->creator = NULL;
    }
}

static void drain_report(struct world *world) {
    static struct sub_packet packet;
    for (;;) {
        int got = sub_receive(world->report, &packet);
        if (got > 0) {
            take_report(world, &packet);
            sub_packet_release(&packet);
        } else if (got < 0 && errno == EAGAIN) {
            return;
        } else if (got == 0 || errno != EPROTO) {
            finish_staging(world);
            return;
        }
    }
}

void worlds_read_report(int fd) {
    struct world *world = find_by_report(fd);
    if (world)
        drain_report(world);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void bury(struct world *world) {
    /* Its pid namespace is empty now: the kernel ends everybody else before pid 1 is reaped. */
    cgroup_remove(world->id);
    if (world->live && !world->removing) {
        uint8_t space[sizeof(struct sub_gone) + 4 + SUB_ID_MAX];
        struct sub_writer writer = {space, 0, sizeof space, false};
        struct sub_gone gone = {.wait_status = world->wait_status};
        sub_put(&writer, &gone, sizeof gone);
        sub_put_string(&writer, world->id);
        server_broadcast(SUB_L_GONE, space, writer.used);
    }
    if (world->creator) {
        fail_set(&world->fail, 0, "world %s was removed while it was being made", world->id);
        server_reply_fail(world->creator, world->create_header.request, &world->fail);
    }
    answer_waiters(&world->waiters);
    discard_world(world);
}

static void settle(void) {
    for (struct world *world = worlds, *next; world; world = next) {
        next = world->next;
        if (!world->stage && !world->init && world->report < 0)
            bury(world);
    }
    if (shutting_down && !worlds) {
        cgroup_remove_all();
        answer_waiters(&shutdown_waiters);
    }
}

void worlds_reap(void) {
    /* Reports first: they say which pid is whose. */
    for (struct world *world = worlds, *next; world; world = next) {
        next = world->next;
        if (world->report >= 0)
            drain_report(world);
    }
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        for (struct world *world = worlds; world; world = world->next) {
            if (world->stage == pid) {
                world->stage = 0;
            } else if (world->init == pid) {
                world->init = 0;
                world->wait_status = status;
            }
        }
    }
    /* An init that died before its report was read has been reaped just now, or is next. */
    for (struct world *world = worlds; world; world = world->next)
        if (world->init > 0 && kill(world->init, 0) && errno == ESRCH)
            world->init = 0;
    settle();
}

void worlds_remove(struct connection *from, uint32_t request, const char *world_id) {
    struct world *world = find(world_id);
    if (!world) {
        server_reply(from, SUB_L_OK, request, NULL, 0, NULL, 0);
        return;
    }
    wait_for(&world->waiters, from, request);
    world->removing = true;
    kill_world(world);
}

void worlds_shutdown(struct connection *from, uint32_t request) {
    shutting_down = true;
    if (from)
        wait_for(&shutdown_waiters, from, request);
    for (struct world *world = worlds; world; world = world->next) {
        world->removing = true;
        kill_world(world);
    }
    settle();
}

/* ---- looking --------------------------------------------------------------------------------- */

void worlds_attach(struct connection *from, const struct sub_header *header, const char *world_id) {
    struct world *world = find(world_id);
    struct fail fail = {.op = -1};
    if (world && world->live && !world->removing && world->init) {
        send_box(from, header, world);
        return;
    }
    fail_set(&fail, ENOENT, "world %s", world_id);
    server_reply_fail(from, header->request, &fail);
}

void worlds_sync_ledger(struct connection *from, uint32_t request, const uint8_t *payload,
                        size_t size) {
    struct sub_reader reader = {payload, size, false};
    struct fail fail = {.op = -1};
    uint64_t from_ns;
    sub_get_into(&reader, &from_ns, sizeof from_ns);
    SUB_AUTO_STRING id = sub_get_string(&reader);
    struct world *world = id && sub_id_is_valid(id) ? find(id) : NULL;
    if (world && world->ledger) {
        ledger_sync(world->ledger, from_ns);
        server_reply(from, SUB_L_OK, request, NULL, 0, NULL, 0);
        return;
    }
    fail_set(&fail, ENOENT, "ledger of world %s", id ? id : "");
    server_reply_fail(from, request, &fail);
}

void worlds_limit(struct connection *from, uint32_t request, const uint8_t *payload, size_t size) {
    struct sub_reader reader = {payload, size, false};
    struct fail fail = {.op = -1};
    struct sub_limits limits;
    sub_get_into(&reader, &limits, sizeof limits);
    if (!limits.pids)
        limits.pids = BOX_PROCESSES;
    SUB_AUTO_STRING id = sub_get_string(&reader);
    struct world *world = id && sub_id_is_valid(id) ? find(id) : NULL;
    if (!world || !world->live || world->removing)
        fail_set(&fail, ENOENT, "world %s", id ? id : "");
    else if (cgroup_limit(world->id, &limits, &fail) == 0) {
        server_reply(from, SUB_L_OK, request, NULL, 0, NULL, 0);
        return;
    }
    server_reply_fail(from, request, &fail);
}

void worlds_list(struct connection *to, uint32_t request) {
    static uint8_t space[SUB_PACKET_MAX - sizeof(struct sub_header)];
    struct sub_writer writer = {space, sizeof(uint32_t), sizeof space, false};
    uint32_t count = 0;
    for (struct world *world = worlds; world; world = world->next) {
        if (!world->live || world->removing || !world->init)
            continue;
        size_t before = writer.used;
        sub_put_string(&writer, world->id);
        if (writer.bad) {
            writer.used = before;
            break;
        }
        count++;
    }
    memcpy(space, &count, sizeof count);
    server_reply(to, SUB_L_WORLDS, request, space, writer.used, NULL, 0);
}
