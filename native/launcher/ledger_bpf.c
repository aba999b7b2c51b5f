/*
 * The ledger's best source: raw tracepoints of the scheduler, filtered in the kernel by cgroup.
 *
 * Needs root, cgroup v2, BTF and a ring buffer with test runs of raw tracepoints: Linux 5.10. The
 * programs wake us only when the ring fills: a wake-up for each fork, exec and exit would cost every
 * command more than all the rest. Whoever needs to know asks (SUB_L_LEDGER), and then we look.
 */
#include "ledger_programs.h"

#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define RING_BYTES (4u << 20)
#define ROUND 8192 /* records taken before others have their turn */
#define PATIENCE 1000

static struct program_maps maps = {-1, -1, -1, -1};
static struct ring_counters *counters;
static uint64_t *consumer;
static const uint64_t *producer;
static const uint8_t *ring;

static int bpf(int command, union bpf_attr *attributes) {
    return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static int make_map(uint32_t type, uint32_t key, uint32_t value, uint32_t entries, uint32_t flags) {
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_type = type;
    attributes.key_size = key;
    attributes.value_size = value;
    attributes.max_entries = entries;
    attributes.map_flags = flags;
    memcpy(attributes.map_name, "substrate", 10);
    return bpf(BPF_MAP_CREATE, &attributes);
}

static int load(const struct program *program) {
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
    attributes.insn_cnt = program->count;
    attributes.insns = (uint64_t)(uintptr_t)program->code;
    attributes.license = (uint64_t)(uintptr_t)"GPL";
    memcpy(attributes.prog_name, "substrate", 10);
    return bpf(BPF_PROG_LOAD, &attributes);
}

static int attach(const struct program *program, const char *tracepoint) {
    SUB_AUTO_FD loaded = load(program);
    if (loaded < 0)
        return -1;
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.raw_tracepoint.name = (uint64_t)(uintptr_t)tracepoint;
    attributes.raw_tracepoint.prog_fd = (uint32_t)loaded;
    return bpf(BPF_RAW_TRACEPOINT_OPEN, &attributes); /* ours for life */
}

/* Our own depths, from inside: a container's /proc shows neither. The worlds' lie below. */
static int find_depths(const struct kernel_offsets *offsets, struct depths *depths,
                       struct fail *fail) {
    static struct program program;
    program.count = 0;
    program_depths(&program, offsets);
    SUB_AUTO_FD loaded = load(&program);
    if (loaded < 0)
        return fail_set(fail, errno, "bpf(PROG_LOAD)");
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.test.prog_fd = (uint32_t)loaded;
    if (bpf(BPF_PROG_TEST_RUN, &attributes))
        return fail_set(fail, errno, "bpf(PROG_TEST_RUN)");
    /* substrate-<hash>, then the world's */
    depths->cgroup = (attributes.test.retval >> 16) - (uint32_t)config.cgroup_up + 2;
    depths->pid = (attributes.test.retval & 0xffff) + 1;
    return 0;
}

static int make_maps(struct fail *fail) {
    maps.worlds = make_map(BPF_MAP_TYPE_HASH, 8, 4, LEDGERS_MAX, 0);
    maps.counters =
        make_map(BPF_MAP_TYPE_ARRAY, 4, sizeof(struct ring_counters), LEDGERS_MAX, BPF_F_MMAPABLE);
    maps.ring = make_map(BPF_MAP_TYPE_RINGBUF, 0, 0, RING_BYTES, 0);
    maps.scratch = make_map(BPF_MAP_TYPE_PERCPU_ARRAY, 4, SCRATCH_BYTES, 1, 0);
    if (maps.worlds < 0 || maps.counters < 0 || maps.ring < 0 || maps.scratch < 0)
        return fail_set(fail, errno, "bpf(MAP_CREATE)");
    return 0;
}

/* Stages are clones of us: they have no use for the maps. */
static void *map_shared(int fd, size_t size, int protection, off_t offset) {
    void *at = mmap(NULL, size, protection, MAP_SHARED, fd, offset);
    if (at == MAP_FAILED)
        return NULL;
    madvise(at, size, MADV_DONTFORK);
    return at;
}

static int map_memory(struct fail *fail) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    counters = map_shared(maps.counters, LEDGERS_MAX * sizeof *counters, PROT_READ | PROT_WRITE, 0);
    consumer = map_shared(maps.ring, page, PROT_READ | PROT_WRITE, 0);
    /* The kernel maps the data twice, so that a record never wraps. */
    producer = map_shared(maps.ring, page + 2 * RING_BYTES, PROT_READ, (off_t)page);
    if (!counters || !consumer || !producer)
        return fail_set(fail, errno, "mapping the ring");
    ring = (const uint8_t *)producer + page;
    return 0;
}

static int attach_all(const struct kernel_offsets *offsets, struct depths depths,
                      struct fail *fail) {
    static struct program program;
    program.count = 0;
    program_fork(&program, &maps, offsets, depths);
    if (attach(&program, "sched_process_fork") < 0)
        return fail_set(fail, errno, "attaching to sched_process_fork");
    program.count = 0;
    program_exec(&program, &maps, offsets, depths);
    if (attach(&program, "sched_process_exec") < 0)
        return fail_set(fail, errno, "attaching to sched_process_exec");
    /* A program that reads an argument that the tracepoint does not have is refused. */
    for (int told = 1; told >= 0; told--) {
        program.count = 0;
        program_exit(&program, &maps, offsets, depths, told);
        if (attach(&program, "sched_process_exit") >= 0)
            return 0;
    }
    return fail_set(fail, errno, "attaching to sched_process_exit");
}

static void let_go(void) {
    sub_close_fd(&maps.worlds);
    sub_close_fd(&maps.counters);
    sub_close_fd(&maps.ring);
    sub_close_fd(&maps.scratch);
}

int bpf_start(struct fail *fail) {
    struct kernel_offsets offsets = {0};
    struct depths depths;
    if (config.cgroup_fd < 0)
        return fail_set(fail, 0, "no cgroup v2 directory to tell worlds apart by");
    if (btf_offsets(&offsets, fail) || find_depths(&offsets, &depths, fail))
        return -1;
    if (make_maps(fail) || map_memory(fail) || attach_all(&offsets, depths, fail)) {
        let_go();
        return -1;
    }
    return maps.ring;
}

int bpf_add(struct ledger *ledger) {
    counters[ledger->slot] = (struct ring_counters){0};
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_fd = (uint32_t)maps.worlds;
    attributes.key = (uint64_t)(uintptr_t)&ledger->cgroup_id;
    attributes.value = (uint64_t)(uintptr_t)&ledger->slot;
    return bpf(BPF_MAP_UPDATE_ELEM, &attributes);
}

void bpf_remove(struct ledger *ledger) {
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_fd = (uint32_t)maps.worlds;
    attributes.key = (uint64_t)(uintptr_t)&ledger->cgroup_id;
    bpf(BPF_MAP_DELETE_ELEM, &attributes);
}

uint64_t bpf_lost(const struct ledger *ledger) {
    return __atomic_load_n(&counters[ledger->slot].lost, __ATOMIC_RELAXED);
}

static void take(const struct ring_event *event) {
    struct ledger *ledger = ledger_at(event->slot);
    if (!ledger || ledger->cgroup_id != event->cgroup_id)
        return; /* of a world that is gone */
    uint64_t *consumed = &counters[event->slot].consumed;
    __atomic_store_n(consumed, *consumed + 1, __ATOMIC_RELAXED);
    ledger_append(ledger, &event->record);
}

/* The record at `at`, as the header says (kernel/bpf/ringbuf.c); busy ones are being written. */
static uint32_t header_at(uint64_t at) {
    return __atomic_load_n((const uint32_t *)(ring + (at & (RING_BYTES - 1))), __ATOMIC_ACQUIRE);
}

void bpf_drain(bool all) {
    if (!ring)
        return;
    uint64_t at = __atomic_load_n(consumer, __ATOMIC_ACQUIRE);
    uint64_t until = __atomic_load_n(producer, __ATOMIC_ACQUIRE);
    int patience = PATIENCE;
    for (int taken = 0; at < until && (all || taken < ROUND); taken++) {
        uint32_t header = header_at(at);
        while (header & BPF_RINGBUF_BUSY_BIT && all && patience-- > 0) {
            sched_yield(); /* its writer holds a processor, for some hundred instructions */
            header = header_at(at);
        }
        if (header & BPF_RINGBUF_BUSY_BIT)
            break;
        uint32_t length = header & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
        if (!(header & BPF_RINGBUF_DISCARD_BIT) && length == sizeof(struct ring_event))
            take((const void *)(ring + (at & (RING_BYTES - 1)) + BPF_RINGBUF_HDR_SZ));
        at += (length + BPF_RINGBUF_HDR_SZ + 7) / 8 * 8;
        __atomic_store_n(consumer, at, __ATOMIC_RELEASE);
    }
}
