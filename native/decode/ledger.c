/*
 * Reading the kernel's ledger: processes, their programs and ends, and who made which segment.
 *
 * The launcher writes it and no program in a world can; it is read as carefully as everything else.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>

#include "decode.h"
#include "ledger.h"

#define RECORDS_MAX (1u << 20)
#define RECORDS_AT_ONCE 512u

/* One record, in as much room as it needs. */
struct entry {
    uint64_t time_ns;
    int32_t pid, parent, host_pid, host_parent, status;
    uint32_t value, number;
    uint16_t type, flags;
    struct slice name;
};

struct reading {
    struct ledger *ledger;
    uint64_t since_ns;
    struct entry *entries;
    uint32_t count, size;
    bool disordered;
    /* The process that has a host pid now: open addressing, process + 1. */
    uint32_t *slots;
    uint32_t slot_count;
};

/* --- the file --------------------------------------------------------------------------------- */

static struct slice text_in(const char *bytes, size_t most) {
    return (struct slice){bytes, (uint32_t)strnlen(bytes, most)};
}

static void take_record(struct reading *reading, const struct sub_ledger_record *record) {
    struct ledger *ledger = reading->ledger;
    if (record->type == SUB_LEDGER_LOST) {
        /* What was lost before the step began is not missing in it. */
        ledger->lost += record->time_ns >= reading->since_ns ? record->value : 0;
        return;
    }
    if (record->type == 0 || record->type > SUB_LEDGER_REMOVED)
        return;
    reading->entries =
        grow(reading->entries, reading->count, &reading->size, sizeof(*reading->entries));
    struct entry *entry = &reading->entries[reading->count];
    struct slice name = text_in(record->name, sizeof(record->name));
    if (record->type == SUB_LEDGER_EXEC && name.length == 0)
        name = text_in(record->comm, sizeof(record->comm));
    *entry = (struct entry){
        .time_ns = record->time_ns,
        .pid = record->pid > 0 ? record->pid : 0,
        .parent = record->parent > 0 ? record->parent : 0,
        .host_pid = record->host_pid,
        .host_parent = record->host_parent,
        .status = record->status,
        .value = record->value,
        .number = reading->count,
        .type = record->type,
        .flags = record->flags,
        .name = record->type >= SUB_LEDGER_SEGMENT || record->type == SUB_LEDGER_EXEC
                    ? text_keep(&ledger->text, name, SUB_LEDGER_NAME + 4)
                    : (struct slice){NULL, 0},
    };
    if (reading->count > 0 && entry->time_ns < reading->entries[reading->count - 1].time_ns)
        reading->disordered = true;
    if (entry->time_ns > ledger->last_ns)
        ledger->last_ns = entry->time_ns;
    reading->count++;
}

/* Why the ledger cannot be read, or NULL. */
static const char *read_header(struct ledger *ledger, int fd, uint64_t *first) {
    struct sub_ledger_header header;
    if (file_read(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header))
        return "it is too short";
    if (header.magic != SUB_LEDGER_MAGIC || header.version != SUB_LEDGER_VERSION ||
        header.header_bytes < sizeof(header) ||
        header.record_bytes != sizeof(struct sub_ledger_record))
        return "it has another format";
    *first = header.first > header.header_bytes ? header.first : header.header_bytes;
    if ((*first - header.header_bytes) % sizeof(struct sub_ledger_record) != 0 ||
        *first > INT64_MAX / 2)
        return "it starts between two records";
    ledger->source = header.source;
    ledger->attested = header.segments_attested != 0;
    ledger->pid_namespace = header.pid_namespace;
    ledger->whole = *first == header.header_bytes;
    return NULL;
}

static void read_records(struct reading *reading, int fd, uint64_t at) {
    struct sub_ledger_record *records = allocate(RECORDS_AT_ONCE * sizeof(*records));
    uint32_t seen = 0;
    for (;;) {
        size_t wanted = RECORDS_AT_ONCE * sizeof(*records), filled = 0;
        ssize_t got;
        while (filled < wanted &&
               (got = file_read(fd, (char *)records + filled, wanted - filled, at + filled)) > 0)
            filled += (size_t)got;
        uint32_t count = (uint32_t)(filled / sizeof(*records));
        for (uint32_t i = 0; i < count; i++) {
            if (seen++ < RECORDS_MAX)
                take_record(reading, &records[i]);
            else
                reading->ledger->lost++;
        }
        if (filled < wanted || seen > 2 * RECORDS_MAX)
            break;
        at += filled;
    }
    free(records);
}

static int compare_entries(const void *left, const void *right) {
    const struct entry *a = left, *b = right;
    if (a->time_ns != b->time_ns)
        return a->time_ns < b->time_ns ? -1 : 1;
    return a->number < b->number ? -1 : 1;
}

/* --- processes -------------------------------------------------------------------------------- */

static uint32_t *slot_of(struct reading *reading, int32_t host_pid) {
    const struct ledger *ledger = reading->ledger;
    uint32_t at = (uint32_t)host_pid * 2654435761u & (reading->slot_count - 1);
    while (reading->slots[at] != 0 &&
           ledger->processes[reading->slots[at] - 1].host_pid != host_pid)
        at = (at + 1) & (reading->slot_count - 1);
    return &reading->slots[at];
}

static uint32_t add_process(struct reading *reading, int32_t host_pid, uint64_t at_ns) {
    struct ledger *ledger = reading->ledger;
    ledger->processes = grow(ledger->processes, ledger->process_count, &ledger->process_size,
                             sizeof(*ledger->processes));
    ledger->processes[ledger->process_count] = (struct kernel_process){
        .host_pid = host_pid,
        .parent = NONE,
        .began_ns = at_ns,
        .ended_ns = UINT64_MAX,
        .first_exec = NONE,
        .last_exec = NONE,
        .first_image = NONE,
        .recent_image = NONE,
        .origin = NONE,
    };
    *slot_of(reading, host_pid) = ledger->process_count + 1;
    return ledger->process_count++;
}

/* The process that has this host pid; one that nobody saw starting is taken up as it is. */
static uint32_t process_now(struct reading *reading, int32_t host_pid) {
    uint32_t found = *slot_of(reading, host_pid);
    return found != 0 ? found - 1 : add_process(reading, host_pid, 0);
}

static void take_fork(struct reading *reading, const struct entry *entry) {
    /*
     * Whoever called, where the kernel tells: with CLONE_PARENT the child is the caller's sibling,
     * and that of a step's first process would belong to no step.
     */
    int32_t host_parent = entry->host_parent, parent_pid = entry->parent;
    if (entry->value != 0 && entry->value <= INT32_MAX) {
        host_parent = (int32_t)entry->value;
        parent_pid = entry->status > 0 ? entry->status : 0;
    }
    uint32_t parent = host_parent > 0 ? process_now(reading, host_parent) : NONE;
    uint32_t added = add_process(reading, entry->host_pid, entry->time_ns);
    struct kernel_process *process = &reading->ledger->processes[added];
    process->forked = true;
    process->separate = (entry->flags & SUB_LEDGER_SEPARATE) != 0;
    process->parent = parent;
    if (parent != NONE && reading->ledger->processes[parent].pid == 0)
        reading->ledger->processes[parent].pid = parent_pid;
}

static void take_exec(struct ledger *ledger, uint32_t of, const struct entry *entry) {
    struct kernel_process *process = &ledger->processes[of];
    ledger->execs =
        grow(ledger->execs, ledger->exec_count, &ledger->exec_size, sizeof(*ledger->execs));
    ledger->execs[ledger->exec_count] = (struct kernel_exec){
        .at_ns = entry->time_ns,
        .name = entry->name,
        .cut = (entry->flags & SUB_LEDGER_CUT) != 0,
        .next = NONE,
    };
    if (process->last_exec == NONE)
        process->first_exec = ledger->exec_count;
    else
        ledger->execs[process->last_exec].next = ledger->exec_count;
    process->last_exec = ledger->exec_count++;
}

static void take_entry(struct reading *reading, const struct entry *entry) {
    struct ledger *ledger = reading->ledger;
    if (entry->host_pid <= 0) {
        ledger->lost += entry->type != SUB_LEDGER_REMOVED;
        return;
    }
    if (entry->type == SUB_LEDGER_FORK)
        take_fork(reading, entry);
    uint32_t of = process_now(reading, entry->host_pid);
    if (entry->type == SUB_LEDGER_EXEC && ledger->processes[of].ended_ns != UINT64_MAX)
        of = add_process(reading, entry->host_pid, entry->time_ns); /* its fork was lost */
    struct kernel_process *process = &ledger->processes[of];
    if (process->pid == 0)
        process->pid = entry->pid;
    switch (entry->type) {
    case SUB_LEDGER_EXEC:
        take_exec(ledger, of, entry);
        break;
    case SUB_LEDGER_EXIT:
        process->ended_ns = entry->time_ns;
        process->status = entry->status;
        break;
    case SUB_LEDGER_SEGMENT:
        ledger->files =
            grow(ledger->files, ledger->file_count, &ledger->file_size, sizeof(*ledger->files));
        ledger->files[ledger->file_count++] =
            (struct kernel_file){.name = entry->name, .process = of, .at_ns = entry->time_ns};
        break;
    case SUB_LEDGER_REMOVED:
        ledger->removals = grow(ledger->removals, ledger->removal_count, &ledger->removal_size,
                                sizeof(*ledger->removals));
        ledger->removals[ledger->removal_count++] =
            (struct kernel_removal){.name = entry->name, .at_ns = entry->time_ns};
        break;
    default:
        break;
    }
}

/* --- looking things up ------------------------------------------------------------------------ */

static int compare_names(struct slice a, struct slice b) {
    uint32_t length = a.length < b.length ? a.length : b.length;
    int order = length != 0 ? memcmp(a.bytes, b.bytes, length) : 0;
    return order != 0 ? order : a.length < b.length ? -1 : a.length > b.length;
}

static int compare_files(const void *left, const void *right) {
    const struct kernel_file *a = left, *b = right;
    int order = compare_names(a->name, b->name);
    if (order != 0)
        return order;
    return a->at_ns < b->at_ns ? -1 : a->at_ns > b->at_ns;
}

const struct kernel_file *ledger_file(const struct ledger *ledger, struct slice name) {
    uint32_t low = 0, high = ledger->file_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (compare_names(ledger->files[middle].name, name) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || compare_names(ledger->files[low - 1].name, name) != 0)
        return NULL;
    return &ledger->files[low - 1];
}

static const struct ledger *sorting; /* qsort has no argument for it */

static int compare_pids(const void *left, const void *right) {
    uint32_t i = *(const uint32_t *)left, j = *(const uint32_t *)right;
    const struct kernel_process *a = &sorting->processes[i], *b = &sorting->processes[j];
    if (a->pid != b->pid)
        return a->pid < b->pid ? -1 : 1;
    if (a->began_ns != b->began_ns)
        return a->began_ns < b->began_ns ? -1 : 1;
    return i < j ? -1 : i > j;
}

static void sort_by_pid(struct ledger *ledger) {
    ledger->by_pid = allocate(((size_t)ledger->process_count + 1) * sizeof(*ledger->by_pid));
    for (uint32_t i = 0; i < ledger->process_count; i++) {
        ledger->by_pid[i] = i;
        ledger->nameless += ledger->processes[i].pid == 0 && ledger->processes[i].forked;
    }
    sorting = ledger;
    if (ledger->process_count != 0)
        qsort(ledger->by_pid, ledger->process_count, sizeof(*ledger->by_pid), compare_pids);
}

uint32_t ledger_process(const struct ledger *ledger, int32_t pid, uint64_t at_ns) {
    uint32_t low = 0, high = ledger->process_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct kernel_process *process = &ledger->processes[ledger->by_pid[middle]];
        if (process->pid < pid || (process->pid == pid && process->began_ns <= at_ns))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NONE;
    const struct kernel_process *process = &ledger->processes[ledger->by_pid[low - 1]];
    return process->pid == pid && process->ended_ns >= at_ns ? ledger->by_pid[low - 1] : NONE;
}

bool ledger_complete(const struct ledger *ledger) {
    return ledger->used && ledger->lost == 0 && ledger->nameless == 0;
}

/* --- all of it -------------------------------------------------------------------------------- */

/* Marks the step's processes: parents come before their children. */
static bool select_processes(struct ledger *ledger, const struct options *options) {
    uint32_t root = NONE;
    for (uint32_t i = 0; i < ledger->process_count && options->have_root && root == NONE; i++) {
        const struct kernel_process *process = &ledger->processes[i];
        uint64_t since = process->forked               ? process->began_ns
                         : process->first_exec != NONE ? ledger->execs[process->first_exec].at_ns
                                                       : 0;
        if (process->pid == options->root_pid && since >= options->root_after_ns)
            root = i;
    }
    for (uint32_t i = 0; i < ledger->process_count; i++) {
        struct kernel_process *process = &ledger->processes[i];
        process->selected =
            options->have_root
                ? i == root || (process->parent != NONE && process->began_ns >= options->since_ns &&
                                ledger->processes[process->parent].selected)
                : process->forked || process->first_exec != NONE;
    }
    return !options->have_root || root != NONE;
}

void ledger_read(struct ledger *ledger, const struct options *options) {
    uint64_t first;
    struct reading reading = {.ledger = ledger, .since_ns = options->root_after_ns};
    ledger->why = "";
    if (options->ledger < 0)
        return;
    ledger->given = true;
    ledger->why = read_header(ledger, options->ledger, &first);
    if (ledger->why != NULL)
        return;
    ledger->why = "";
    read_records(&reading, options->ledger, first);
    if (reading.disordered)
        qsort(reading.entries, reading.count, sizeof(*reading.entries), compare_entries);
    reading.slot_count = 64;
    while (reading.slot_count < 4 * (uint64_t)reading.count)
        reading.slot_count *= 2; /* an entry has two host pids at most */
    reading.slots = allocate(reading.slot_count * sizeof(*reading.slots));
    for (uint32_t i = 0; i < reading.count; i++)
        take_entry(&reading, &reading.entries[i]);
    free(reading.slots);
    free(reading.entries);
    if (ledger->file_count != 0)
        qsort(ledger->files, ledger->file_count, sizeof(*ledger->files), compare_files);
    sort_by_pid(ledger);
    ledger->used = select_processes(ledger, options) && ledger->process_count != 0;
    if (!ledger->used)
        ledger->why =
            options->have_root ? "it does not know the step's first process" : "it is empty";
}

void ledger_free(struct ledger *ledger) {
    free(ledger->processes);
    free(ledger->execs);
    free(ledger->files);
    free(ledger->removals);
    free(ledger->by_pid);
    text_free(&ledger->text);
}
