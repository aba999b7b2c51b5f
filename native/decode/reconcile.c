/*
 * What programs say of themselves, held against what the kernel says of them.
 *
 * The kernel knows which process made which segment file and which processes and programs there
 * were. So a segment whose maker is another than the process it speaks of is forged, a program
 * without a hello was not covered, and a process that the kernel does not know is none.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "images.h"

/* --- who made which segment ------------------------------------------------------------------- */

static bool in_world_namespace(const struct ledger *ledger, const struct sub_identity *self) {
    return ledger->pid_namespace == 0 || self->pid_namespace == ledger->pid_namespace;
}

/*
 * A child of vfork borrows its parent's memory, the library's too: when it goes on recording where a
 * segment ends, it makes the next one in its parent's name. Only before it runs a program, and
 * only where the kernel does not say that its memory is its own.
 */
static bool may_borrow(const struct ledger *ledger, const struct kernel_file *file) {
    const struct kernel_process *maker = &ledger->processes[file->process];
    return maker->parent != NONE && !maker->separate &&
           (maker->first_exec == NONE || ledger->execs[maker->first_exec].at_ns > file->at_ns);
}

/* Whose a segment is, by whoever made it; NONE: it says it is another's. */
static uint32_t speaker(const struct ledger *ledger, const struct segment *segment,
                        const struct kernel_file *file, uint32_t expected) {
    const struct kernel_process *maker = &ledger->processes[file->process];
    if (expected != NONE) {
        if (file->process == expected)
            return expected;
        return may_borrow(ledger, file) && maker->parent == expected ? expected : NONE;
    }
    if (!in_world_namespace(ledger, &segment->self) || maker->pid == 0 ||
        maker->pid == segment->self.pid)
        return file->process;
    if (may_borrow(ledger, file) && ledger->processes[maker->parent].pid == segment->self.pid)
        return maker->parent;
    return NONE;
}

static const struct kernel_file *file_of(const struct ledger *ledger,
                                         const struct segment *segment) {
    struct slice name = {segment->name, (uint32_t)strlen(segment->name)};
    return ledger_file(ledger, name);
}

static uint64_t count_records(const struct scan *scan, uint32_t segment) {
    struct reader reader;
    uint64_t records = 0;
    reader_open(&reader, scan->segments, scan->options->directory, segment, segment + 1);
    while (reader_next(&reader) != NULL)
        records++;
    reader_close(&reader);
    return records;
}

/* Is a forged segment this step's doing, and not one that lies there since an earlier one? */
static bool concerns_step(const struct ledger *ledger, const struct segment *segment,
                          const struct kernel_file *file) {
    if (file != NULL && ledger->processes[file->process].selected)
        return true;
    uint32_t claimed = ledger_process(ledger, segment->self.pid, segment->created_ns);
    return claimed != NONE && ledger->processes[claimed].selected;
}

/* Leaves out the segments of one process that are not its own. They stand in list[first..end). */
static void judge_process(struct scan *scan, uint32_t first, uint32_t end, bool *keep) {
    const struct ledger *ledger = scan->ledger;
    struct segment *list = scan->segments->list;
    const struct kernel_file *earliest = NULL;
    uint32_t expected = NONE;
    /* In a pid namespace of its own a pid says nothing to us: then the first to speak is it. */
    for (uint32_t i = first; i < end; i++) {
        const struct kernel_file *file = file_of(ledger, &list[i]);
        if (file != NULL && (earliest == NULL || file->at_ns < earliest->at_ns) &&
            speaker(ledger, &list[i], file, NONE) != NONE) {
            earliest = file;
            expected = speaker(ledger, &list[i], file, NONE);
        }
    }
    for (uint32_t i = first; i < end; i++) {
        const struct kernel_file *file = file_of(ledger, &list[i]);
        keep[i] = true;
        if (file != NULL) {
            list[i].kernel = speaker(ledger, &list[i], file, expected);
            keep[i] = list[i].kernel != NONE;
        } else if (ledger->attested && ledger_complete(ledger) &&
                   (ledger->whole || expected != NONE)) {
            /* Nobody made it under this name; or it came after the ledger was brought up to date. */
            keep[i] = false;
            if (list[i].created_ns > ledger->last_ns) {
                scan->segments->late += concerns_step(ledger, &list[i], NULL);
                continue;
            }
        }
        if (!keep[i] && concerns_step(ledger, &list[i], file)) {
            scan->segments->forged++;
            scan->segments->forged_events += count_records(scan, i);
        }
    }
}

void judge_segments(struct scan *scan) {
    struct segments *segments = scan->segments;
    bool *keep = allocate(segments->count * sizeof(*keep));
    for (uint32_t first = 0, end; first < segments->count; first = end) {
        end = first + 1;
        while (end < segments->count &&
               same_process(&segments->list[end].self, &segments->list[first].self))
            end++;
        judge_process(scan, first, end, keep);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < segments->count; i++) {
        if (keep[i])
            segments->list[kept++] = segments->list[i];
    }
    segments->count = kept;
    free(keep);
}

/* --- which image is which process ------------------------------------------------------------- */

static uint32_t kernel_of(const struct scan *scan, const struct image *image) {
    const struct ledger *ledger = scan->ledger;
    for (uint32_t i = image->first_segment; i < image->end_segment; i++) {
        if (scan->segments->list[i].kernel != NONE)
            return scan->segments->list[i].kernel;
    }
    if (!in_world_namespace(ledger, &image->self) || (ledger->attested && ledger_complete(ledger)))
        return NONE;
    return ledger_process(ledger, image->self.pid, image->start_ns);
}

struct known {
    uint32_t kernel, image;
    uint64_t start_ns;
    uint32_t exec_number;
};

static int compare_known(const void *left, const void *right) {
    const struct known *a = left, *b = right;
    if (a->kernel != b->kernel)
        return a->kernel < b->kernel ? -1 : 1;
    if (a->start_ns != b->start_ns)
        return a->start_ns < b->start_ns ? -1 : 1;
    if (a->exec_number != b->exec_number)
        return a->exec_number < b->exec_number ? -1 : 1;
    return a->image < b->image ? -1 : a->image > b->image;
}

/* The images whose process the kernel knows, by process and time. */
static struct known *match_images(const struct scan *scan, uint32_t *count) {
    struct images *images = scan->images;
    struct known *list = allocate(images->sorted * sizeof(*list));
    *count = 0;
    for (uint32_t i = 0; i < images->sorted; i++) {
        struct image *image = &images->list[i];
        image->kernel = kernel_of(scan, image);
        if (image->kernel == NONE && image->process != i)
            image->kernel = images->list[image->process].kernel;
        if (image->kernel != NONE)
            list[(*count)++] = (struct known){.kernel = image->kernel,
                                              .image = i,
                                              .start_ns = image->start_ns,
                                              .exec_number = image->self.exec_number};
    }
    if (*count != 0)
        qsort(list, *count, sizeof(*list), compare_known);
    return list;
}

/* --- programs that said no hello -------------------------------------------------------------- */

/*
 * The image that a process was started from; where its parent has none, that of whoever started that
 * one. Processes come in the order of their beginnings, so what was found for the parent, and the
 * place in the parent's programs that the last child came to, are still there.
 */
static uint32_t find_origin(const struct scan *scan, const struct kernel_process *process) {
    const struct image *list = scan->images->list;
    if (process->parent == NONE)
        return NONE;
    struct kernel_process *parent = &scan->ledger->processes[process->parent];
    if (parent->first_image == NONE)
        return parent->origin;
    uint32_t found = parent->recent_image;
    if (found == NONE || list[found].start_ns > process->began_ns)
        found = parent->first_image;
    while (list[found].next != NONE && list[list[found].next].start_ns <= process->began_ns)
        found = list[found].next;
    parent->recent_image = found;
    return found;
}

uint32_t add_kernel_image(struct scan *scan, uint32_t kernel, uint64_t at_ns) {
    const struct kernel_process *process = &scan->ledger->processes[kernel];
    uint32_t parent = process->origin;
    uint32_t added = add_image(scan->images);
    struct image *image = &scan->images->list[added];
    /* The times of images that only the kernel speaks of tell them apart. */
    image->self = (struct sub_identity){.pid_namespace = scan->ledger->pid_namespace,
                                        .start_ticks = 1ULL << 63 | at_ns,
                                        .pid = process->pid};
    image->kernel = kernel;
    image->uncovered = image->kernel_start = true;
    image->start_ns = image->end_ns = at_ns;
    image->parent = parent;
    if (process->parent != NONE)
        image->ppid = scan->ledger->processes[process->parent].pid;
    if (parent != NONE) {
        image->utc_offset_ns = scan->images->list[parent].utc_offset_ns;
        image->boot_offset_ns = scan->images->list[parent].boot_offset_ns;
        image->filtered = scan->images->list[parent].quiet || scan->images->list[parent].filtered;
    }
    return added;
}

static uint32_t add_program(struct scan *scan, uint32_t kernel, const struct kernel_exec *exec,
                            uint32_t number, uint64_t before_ns) {
    uint32_t added = add_kernel_image(scan, kernel, exec->at_ns);
    struct image *image = &scan->images->list[added];
    image->self.exec_number = image->exec_no = number;
    image->exe = exec->name;
    /* Whoever started it may have said what with. */
    struct link *link = link_between(scan->images, image->self.pid_namespace, image->self.pid,
                                     before_ns, exec->at_ns);
    if (link != NULL && link->image == NONE) {
        link->image = added;
        image->argv = link->argv;
        if (!is_absolute(exec->name) && link->path.length != 0)
            image->exe = link->path;
    }
    return added;
}

void chain_image(struct scan *scan, uint32_t kernel, uint32_t last, uint32_t image) {
    struct images *images = scan->images;
    struct kernel_process *process = &scan->ledger->processes[kernel];
    if (last == NONE)
        process->first_image = image;
    else
        images->list[last].next = image;
    images->list[image].process = process->first_image;
    images->list[image].next = NONE;
    if (last != NONE) {
        images->list[image].parent = images->list[process->first_image].parent;
        if (images->list[last].quiet || images->list[last].filtered)
            images->list[image].filtered = true;
    }
}

/*
 * The images of one process in the order of its programs. The kernel counts all of them, a program
 * that says hello only those that did: so a hello belongs to the last program before it.
 */
static void order_process(struct scan *scan, uint32_t kernel, const struct known *known,
                          uint32_t count) {
    const struct ledger *ledger = scan->ledger;
    const struct kernel_process *process = &ledger->processes[kernel];
    uint32_t number = 0, current = NONE, next = process->first_exec; /* programs run, so far */
    uint32_t last = NONE, taken = 0;
    uint64_t before_ns = 0; /* posix_spawn is told with the time before it forked */
    for (;;) {
        uint64_t until = next != NONE ? ledger->execs[next].at_ns : UINT64_MAX;
        uint32_t here = taken;
        while (taken < count && (known[taken].start_ns < until || next == NONE)) {
            struct image *image = &scan->images->list[known[taken].image];
            if (image->self.exec_number != 0 && number != 0)
                image->exec_no = number;
            chain_image(scan, kernel, last, known[taken].image);
            last = known[taken++].image;
        }
        if (current != NONE && here == taken && process->selected) {
            uint32_t added = add_program(scan, kernel, &ledger->execs[current], number, before_ns);
            chain_image(scan, kernel, last, added);
            last = added;
            scan->ledger->uncovered++;
        }
        if (next == NONE)
            break;
        before_ns = current != NONE ? ledger->execs[current].at_ns : 0;
        current = next;
        next = ledger->execs[next].next;
        number++;
    }
}

static void take_parents(struct scan *scan, const struct kernel_process *process) {
    struct image *list = scan->images->list;
    if (process->origin == NONE || process->first_image == NONE ||
        list[process->origin].process == process->first_image)
        return;
    for (uint32_t at = process->first_image; at != NONE; at = list[at].next)
        list[at].parent = process->origin;
}

/* --- all of it -------------------------------------------------------------------------------- */

void reconcile(struct scan *scan) {
    struct ledger *ledger = scan->ledger;
    uint32_t count, at = 0;
    struct known *known = match_images(scan, &count);
    for (uint32_t kernel = 0; kernel < ledger->process_count; kernel++) {
        uint32_t first = at;
        while (at < count && known[at].kernel == kernel)
            at++;
        ledger->processes[kernel].origin = find_origin(scan, &ledger->processes[kernel]);
        order_process(scan, kernel, known + first, at - first);
        if (!ledger->processes[kernel].selected)
            continue;
        if (ledger->processes[kernel].first_image == NONE)
            add_silent_child(scan, kernel);
        take_parents(scan, &ledger->processes[kernel]);
    }
    free(known);
    take_absent(scan);
}

void take_kernel_exits(struct scan *scan) {
    for (uint32_t i = 0; i < scan->ledger->process_count; i++) {
        const struct kernel_process *process = &scan->ledger->processes[i];
        uint32_t last = process->first_image;
        if (last == NONE || process->ended_ns == UINT64_MAX)
            continue;
        while (scan->images->list[last].next != NONE)
            last = scan->images->list[last].next;
        struct image *image = &scan->images->list[last];
        image->ended = image->have_exit = image->kernel_exit = true;
        image->signal = WIFSIGNALED(process->status) ? WTERMSIG(process->status) : 0;
        image->exit_code = WIFEXITED(process->status) ? WEXITSTATUS(process->status) : 0;
        image->end_ns = process->ended_ns;
    }
}
