/*
 * The ledgers' files: what the kernel says of each world, for substrate-decode (ledger.h).
 *
 * A file has no name: it goes with its world, or with us. It is bounded, and what all readers are
 * done with is given back; losses are counted, and told in the file itself.
 */
#include "kernel.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

/* Of records that somebody may still read; about 170,000 processes. */
#define LIVE_BYTES (64u << 20)
/* The last of these are for SUB_LEDGER_LOST records. */
#define RESERVE_BYTES (64u << 10)
#define HOLE_BYTES (1u << 20)
#define RECORD sizeof(struct sub_ledger_record)

static struct ledger *ledgers[LEDGERS_MAX];
static enum { SOURCE_NONE, SOURCE_BPF, SOURCE_CONNECTOR } source;
static bool attests; /* who makes segments */
static const char *const SOURCE_NAMES[] = {"none", "bpf", "proc_connector"};

/* Records on their way to one file. */
static struct {
    struct ledger *ledger;
    size_t count;
    struct sub_ledger_record records[256];
} batch;

uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct ledger *ledger_at(uint32_t slot) {
    return slot < LEDGERS_MAX ? ledgers[slot] : NULL;
}

bool ledger_attests(void) {
    return attests;
}

const char *ledger_source(void) {
    return SOURCE_NAMES[source];
}

/* ---- who is who ------------------------------------------------------------------------------ */

/* By the low bits of the pid: pids in use lie close together, an older one makes room. */
#define PROCESSES (1u << 17)
static struct known_process processes[PROCESSES];

const struct known_process *ledger_known(int32_t host_pid) {
    const struct known_process *process = &processes[(uint32_t)host_pid % PROCESSES];
    return host_pid > 0 && process->host_pid == host_pid ? process : NULL;
}

const struct known_process *ledger_process(const struct ledger *ledger, int32_t host_pid) {
    const struct known_process *process = ledger_known(host_pid);
    return process && process->slot == ledger->slot ? process : NULL;
}

static void learn(const struct ledger *ledger, int32_t host_pid, int32_t pid) {
    struct known_process *process = &processes[(uint32_t)host_pid % PROCESSES];
    struct ledger *other = ledger_at(process->slot);
    /* With the connector what is forgotten cannot be followed any more. */
    if (source == SOURCE_CONNECTOR && process->host_pid && process->host_pid != host_pid &&
        !process->ended_ns && other)
        other->lost++;
    *process = (struct known_process){host_pid, pid, ledger->slot, 0};
}

static void learn_from(const struct ledger *ledger, const struct sub_ledger_record *record) {
    if (record->host_pid <= 0)
        return;
    struct known_process *process = &processes[(uint32_t)record->host_pid % PROCESSES];
    if (record->type == SUB_LEDGER_FORK || record->type == SUB_LEDGER_EXEC)
        learn(ledger, record->host_pid, record->pid);
    else if (record->type == SUB_LEDGER_EXIT && process->host_pid == record->host_pid)
        process->ended_ns = record->time_ns;
}

/* ---- writing --------------------------------------------------------------------------------- */

static uint64_t first_of(const struct ledger *ledger) {
    return ledger->header.first ? ledger->header.first : ledger->header.header_bytes;
}

static bool write_at(const struct ledger *ledger, const void *data, size_t size, uint64_t at) {
    ssize_t put;
    do
        put = pwrite(ledger->fd, data, size, (off_t)at);
    while (put < 0 && errno == EINTR);
    return put == (ssize_t)size;
}

static void write_records(struct ledger *ledger, const struct sub_ledger_record *records,
                          size_t count, uint64_t limit) {
    uint64_t used = ledger->end - first_of(ledger);
    size_t room = used < limit ? (size_t)(limit - used) / RECORD : 0;
    size_t fitting = count < room ? count : room;
    if (fitting && !write_at(ledger, records, fitting * RECORD, ledger->end))
        fitting = 0; /* a full disk; what stands there is written over, or lost again */
    ledger->end += fitting * RECORD;
    ledger->lost += count - fitting;
}

void ledger_flush(void) {
    if (batch.count)
        write_records(batch.ledger, batch.records, batch.count, LIVE_BYTES - RESERVE_BYTES);
    batch.count = 0;
}

void ledger_append(struct ledger *ledger, const struct sub_ledger_record *record) {
    if (batch.ledger != ledger || batch.count == sizeof batch.records / RECORD)
        ledger_flush();
    batch.ledger = ledger;
    batch.records[batch.count++] = *record;
    learn_from(ledger, record);
}

static void tell_losses(struct ledger *ledger) {
    uint64_t lost = ledger->lost + (source == SOURCE_BPF ? bpf_lost(ledger) : 0);
    if (lost == ledger->told)
        return;
    uint64_t fresh = lost - ledger->told;
    struct sub_ledger_record record = {.type = SUB_LEDGER_LOST,
                                       .value = fresh > UINT32_MAX ? UINT32_MAX : (uint32_t)fresh,
                                       .time_ns = monotonic_ns()};
    uint64_t before = ledger->lost;
    write_records(ledger, &record, 1, LIVE_BYTES);
    if (ledger->lost == before)
        ledger->told = lost;
    ledger->lost = before; /* this record is none of the kernel's */
}

/* ---- cutting --------------------------------------------------------------------------------- */

static void cut(struct ledger *ledger, uint64_t from_ns) {
    struct sub_ledger_record records[64];
    uint64_t at = first_of(ledger);
    bool stop = false;
    while (!stop && at < ledger->end) {
        ssize_t got = pread(ledger->fd, records, sizeof records, (off_t)at);
        if (got < (ssize_t)RECORD)
            break;
        for (size_t i = 0; !stop && i < (size_t)got / RECORD; i++) {
            stop = records[i].time_ns >= from_ns;
            at += stop ? 0 : RECORD;
        }
    }
    if (at == first_of(ledger))
        return;
    ledger->header.first = at;
    if (!write_at(ledger, &ledger->header, sizeof ledger->header, 0))
        return;
    if (at - ledger->holes >= HOLE_BYTES) {
        /* Whole pages; the rest next time. */
        uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), until = at / page * page;
        if (fallocate(ledger->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)ledger->holes,
                      (off_t)(until - ledger->holes)) == 0)
            ledger->holes = until;
    }
}

static void drain_processes(bool all) {
    if (source == SOURCE_BPF)
        bpf_drain(all);
    else if (source == SOURCE_CONNECTOR)
        connector_drain(all);
}

void ledger_read_processes(void) {
    drain_processes(true);
}

/* Processes before their files: who made one is looked up. */
static void drain(bool all) {
    drain_processes(all);
    segments_drain();
    ledger_flush();
}

void ledger_sync(struct ledger *ledger, uint64_t from_ns) {
    drain(true);
    tell_losses(ledger);
    if (from_ns)
        cut(ledger, from_ns);
}

void ledger_read(void) {
    drain(false);
}

void ledger_read_all(void) {
    drain(true);
}

/* ---- a world's ------------------------------------------------------------------------------- */

static int make_file(void) {
    int fd = open(config.state_dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : memfd_create("substrate-ledger", MFD_CLOEXEC);
}

void ledger_close(struct ledger *ledger) {
    if (!ledger)
        return;
    if (batch.ledger == ledger) {
        batch.ledger = NULL;
        batch.count = 0;
    }
    if (source == SOURCE_BPF)
        bpf_remove(ledger);
    for (uint32_t i = 0; source == SOURCE_CONNECTOR && i < PROCESSES; i++)
        if (processes[i].slot == ledger->slot)
            processes[i] = (struct known_process){0}; /* nobody is of the next world by descent */
    ledgers[ledger->slot] = NULL;
    sub_close_fd(&ledger->fd);
    free(ledger);
}

struct ledger *ledger_open(int cgroup_fd) {
    uint32_t slot = 0;
    while (slot < LEDGERS_MAX && ledgers[slot])
        slot++;
    struct stat status = {0};
    if (source == SOURCE_NONE || slot == LEDGERS_MAX ||
        (source == SOURCE_BPF && (cgroup_fd < 0 || fstat(cgroup_fd, &status))))
        return NULL;
    struct ledger *ledger = calloc(1, sizeof *ledger);
    if (!ledger)
        return NULL;
    ledger->slot = slot;
    /* On cgroup v2 a directory's inode number is the cgroup's id (kernfs, 64-bit). */
    ledger->cgroup_id = status.st_ino;
    ledger->fd = make_file();
    ledgers[slot] = ledger;
    ledger->header = (struct sub_ledger_header){
        .magic = SUB_LEDGER_MAGIC,
        .version = SUB_LEDGER_VERSION,
        .header_bytes = sizeof ledger->header,
        .record_bytes = RECORD,
        .source = source == SOURCE_BPF ? SUB_LEDGER_BPF : SUB_LEDGER_PROC_CONNECTOR,
    };
    ledger->end = sizeof ledger->header;
    if (ledger->fd < 0 || !write_at(ledger, &ledger->header, sizeof ledger->header, 0) ||
        (source == SOURCE_BPF && bpf_add(ledger))) {
        ledger_close(ledger);
        return NULL;
    }
    return ledger;
}

void ledger_init_started(struct ledger *ledger, pid_t init) {
    if (!ledger)
        return;
    char path[48];
    struct stat status;
    ledger->init = init;
    snprintf(path, sizeof path, "/proc/%d/ns/pid", init);
    if (stat(path, &status) == 0)
        ledger->header.pid_namespace = status.st_ino;
    write_at(ledger, &ledger->header, sizeof ledger->header, 0);
    learn(ledger, init, 1); /* whom all others descend from */
}

void ledger_segments(struct ledger *ledger, int segments_fd) {
    if (!ledger || !attests || segments_watch(ledger, segments_fd))
        return;
    ledger->header.segments_attested = 1;
    write_at(ledger, &ledger->header, sizeof ledger->header, 0);
}

int ledger_reader(const struct ledger *ledger) {
    if (!ledger)
        return -1;
    char path[48];
    snprintf(path, sizeof path, "/proc/self/fd/%d", ledger->fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* ---- start ----------------------------------------------------------------------------------- */

/* `wanted` by name, or NULL for the best that works. */
static int try_source(const char *wanted, int which, int (*start)(struct fail *)) {
    struct fail fail = {.op = -1};
    if (wanted && strcmp(wanted, SOURCE_NAMES[which]) != 0)
        fail_set(&fail, 0, "switched off");
    int fd = fail.text[0] ? -1 : start(&fail);
    size_t used = strlen(config.ledger_problem);
    if (fd < 0)
        snprintf(config.ledger_problem + used, sizeof config.ledger_problem - used, "%s%s: %s",
                 used ? "; " : "", SOURCE_NAMES[which], fail.text);
    else
        source = which;
    return fd;
}

int ledger_start(void) {
    struct fail fail = {.op = -1};
    if (!config.is_root) {
        snprintf(config.ledger_problem, sizeof config.ledger_problem, "it needs root");
        return 0;
    }
    int fd = try_source(config.ledger, SOURCE_BPF, bpf_start);
    if (fd < 0)
        fd = try_source(config.ledger, SOURCE_CONNECTOR, connector_start);
    if (fd < 0)
        return 0;
    attests = segments_start(&fail) == 0;
    snprintf(config.segments_problem, sizeof config.segments_problem, "%s", fail.text);
    return server_watch(fd, WATCH_LEDGER);
}
