/*
 * Images that cannot speak: forked children that had nothing to say, programs whose segments were
 * removed, or that found no room for one.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>

#include "images.h"

/* --- forked children without a word ----------------------------------------------------------- */

/*
 * A forked child makes its segment with the first call that is recorded. Without one it either made
 * no such call, or is a child of what is not covered.
 */
void add_silent_child(struct scan *scan, uint32_t kernel) {
    const struct kernel_process *process = &scan->ledger->processes[kernel];
    if (process->origin == NONE)
        return;
    uint32_t added = add_kernel_image(scan, kernel, process->began_ns);
    struct image *image = &scan->images->list[added];
    const struct image *origin = &scan->images->list[process->origin];
    image->uncovered = origin->uncovered;
    image->silent = !origin->uncovered;
    image->quiet = origin->quiet && image->silent;
    chain_image(scan, kernel, NONE, added);
}

/*
 * Pids come back: where only programs tell what there was, the first of this pid is taken.
 */
void take_unborn_of_pid(const struct segments *segments, struct image *image) {
    uint32_t low = 0, high = segments->unborn_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (segments->unborn[middle].pid < image->self.pid)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == segments->unborn_count || segments->unborn[low].pid != image->self.pid)
        return;
    image->no_room = segments->unborn[low].no_room;
    image->unfinished = !image->no_room;
    image->uncovered = true; /* it began to speak, so it had something to say */
    image->silent = false;
}

/* The same where only its parent tells of it: nobody with this pid came, nor ran a program. */
void add_silent_fork(struct scan *scan, uint32_t index) {
    struct images *images = scan->images;
    const struct link link = images->links[index];
    const struct link *next = index + 1 < images->link_count ? &images->links[index + 1] : NULL;
    bool again = next != NULL && next->pid_namespace == link.pid_namespace && next->pid == link.pid;
    uint32_t known = image_at(images, link.pid_namespace, link.pid, UINT64_MAX);
    if ((again && next->executes) ||
        (known != NONE && images->list[known].start_ns >= link.at_ns && !again))
        return;
    uint32_t added = add_image(images);
    struct image *image = &images->list[added];
    const struct image *from = &images->list[link.from];
    image->self = (struct sub_identity){.pid_namespace = link.pid_namespace,
                                        .start_ticks = 1ULL << 63 | link.at_ns,
                                        .pid = link.pid};
    image->silent = true;
    image->quiet = image->filtered = from->quiet || from->filtered;
    image->parent = link.from;
    image->ppid = from->self.pid;
    image->start_ns = link.at_ns;
    image->utc_offset_ns = from->utc_offset_ns;
    image->boot_offset_ns = from->boot_offset_ns;
    images->links[index].image = added;
    take_unborn_of_pid(scan->segments, image);
}

/* --- what is left of segments ----------------------------------------------------------------- */

/* A segment that was removed, or one that never came to be, of the kernel's process. */
struct trace {
    uint32_t process, exec_number;
    bool removed, no_room;
};

static int compare_traces(const void *left, const void *right) {
    const struct trace *a = left, *b = right;
    if (a->process != b->process)
        return a->process < b->process ? -1 : 1;
    return a->exec_number < b->exec_number ? -1 : a->exec_number > b->exec_number;
}

/* The exec number in a segment's name, the third of its parts. */
static uint32_t exec_number_in(struct slice name) {
    uint32_t part = 0, number = 0;
    for (uint32_t i = 0; i < name.length; i++) {
        if (name.bytes[i] == '-')
            part++;
        else if (part == 2 && name.bytes[i] >= '0' && name.bytes[i] <= '9')
            number = number * 10 + (uint32_t)(name.bytes[i] - '0');
    }
    return number;
}

static uint32_t add_trace(const struct ledger *ledger, struct trace *traces, uint32_t count,
                          struct slice name, struct trace trace) {
    const struct kernel_file *file = ledger_file(ledger, name);
    if (file == NULL || !ledger->processes[file->process].selected)
        return count;
    trace.process = file->process;
    trace.exec_number = exec_number_in(name);
    traces[count] = trace;
    return count + 1;
}

static uint32_t next_speaking(const struct image *list, uint32_t at, bool speaking) {
    while (at != NONE && (list[at].uncovered || list[at].silent) == speaking)
        at = list[at].next;
    return at;
}

/*
 * Hands out the traces of one process, in the order of their numbers. Those are counted by whoever
 * said hello: a number that nobody has belongs to the next image that is silent.
 */
static void take_traces(struct scan *scan, const struct trace *traces, uint32_t count) {
    const struct kernel_process *process = &scan->ledger->processes[traces[0].process];
    if (process->first_image == NONE)
        chain_image(scan, traces[0].process, NONE,
                    add_kernel_image(scan, traces[0].process, process->began_ns));
    struct image *list = scan->images->list;
    uint32_t speaking = next_speaking(list, process->first_image, true);
    uint32_t silent = next_speaking(list, process->first_image, false);
    for (uint32_t i = 0; i < count; i++) {
        while (speaking != NONE && list[speaking].self.exec_number < traces[i].exec_number)
            speaking = next_speaking(list, list[speaking].next, true);
        if (speaking != NONE && list[speaking].self.exec_number == traces[i].exec_number) {
            list[speaking].removed_segments += traces[i].removed;
            continue;
        }
        if (silent == NONE)
            return;
        /* A forked child that began to speak had something to say. */
        list[silent].silent = false;
        list[silent].uncovered = true;
        list[silent].removed_segments += traces[i].removed;
        list[silent].no_room = list[silent].no_room || traces[i].no_room;
        list[silent].unfinished =
            list[silent].unfinished || (!traces[i].no_room && !traces[i].removed);
        bool last = i + 1 == count || traces[i + 1].exec_number != traces[i].exec_number;
        uint32_t next = last ? next_speaking(list, list[silent].next, false) : NONE;
        silent = next != NONE ? next : silent;
    }
}

void take_absent(struct scan *scan) {
    const struct ledger *ledger = scan->ledger;
    const struct segments *segments = scan->segments;
    struct trace *traces =
        allocate(((size_t)ledger->removal_count + segments->unborn_count + 1) * sizeof(*traces));
    uint32_t count = 0;
    for (uint32_t i = 0; i < ledger->removal_count; i++)
        count = add_trace(ledger, traces, count, ledger->removals[i].name,
                          (struct trace){.removed = true});
    for (uint32_t i = 0; i < segments->unborn_count; i++) {
        const struct unborn *unborn = &segments->unborn[i];
        struct slice name = {unborn->name, (uint32_t)strlen(unborn->name)};
        count = add_trace(ledger, traces, count, name, (struct trace){.no_room = unborn->no_room});
    }
    if (count != 0)
        qsort(traces, count, sizeof(*traces), compare_traces);
    for (uint32_t first = 0, end; first < count; first = end) {
        end = first + 1;
        while (end < count && traces[end].process == traces[first].process)
            end++;
        take_traces(scan, &traces[first], end - first);
    }
    free(traces);
}
