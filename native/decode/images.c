/*
 * Who ran: images, their processes and parents, from what they say of themselves.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>

#include "images.h"

struct slice keep_text(struct images *images, struct slice from, uint32_t most) {
    if (images->text_used > IMAGE_TEXT_TOTAL)
        return (struct slice){NULL, 0};
    struct slice kept = text_keep(&images->text, from, most);
    images->text_used += kept.length;
    return kept;
}

uint32_t add_image(struct images *images) {
    images->list = grow(images->list, images->count, &images->size, sizeof(*images->list));
    struct image *image = &images->list[images->count];
    memset(image, 0, sizeof(*image));
    image->next = image->parent = image->kernel = NONE;
    image->process = images->count;
    return images->count++;
}

static bool has_other_classes(const struct options *options, const struct segment *segment) {
    return options->have_classes &&
           ((segment->classes_off ^ ~options->classes) & SUB_CLASS_ALL) != 0;
}

static void group_segments(struct scan *scan) {
    struct images *images = scan->images;
    for (uint32_t i = 0; i < scan->segments->count; i++) {
        struct segment *segment = &scan->segments->list[i];
        struct image *last = images->count != 0 ? &images->list[images->count - 1] : NULL;
        if (last == NULL || !same_process(&last->self, &segment->self) ||
            last->self.exec_number != segment->self.exec_number) {
            uint32_t added = add_image(images);
            struct image *image = &images->list[added];
            image->self = segment->self;
            image->exec_no = segment->self.exec_number;
            image->first_segment = i;
            image->start_ns = segment->created_ns;
            if (added > 0 && same_process(&images->list[added - 1].self, &image->self)) {
                image->process = images->list[added - 1].process;
                images->list[added - 1].next = added;
            }
        }
        struct image *image = &images->list[images->count - 1];
        image->end_segment = i + 1;
        image->lost += segment->lost;
        if (segment->created_ns < image->start_ns)
            image->start_ns = segment->created_ns;
        image->reported_exit = image->reported_exit || (segment->state & SUB_STATE_EXITED) != 0;
        image->quiet = image->quiet || (segment->flags & SUB_SEGMENT_QUIET) != 0;
        image->passed = image->passed || (segment->flags & SUB_SEGMENT_PASSED) != 0;
        image->muted = image->muted || has_other_classes(scan->options, segment);
        segment->image = images->count - 1;
    }
    images->sorted = images->count;
}

/* --- the directory, to tell what a relative path of a started program stands for -------------- */

static void follow_directory(struct scan *scan, struct slice path) {
    scan->cwd = (struct slice){NULL, 0};
    if (!is_absolute(path) || path.length > SUB_STRING_MAX)
        return;
    memmove(scan->cwd_bytes, path.bytes, path.length);
    scan->cwd = (struct slice){scan->cwd_bytes, path.length};
}

static void take_directory(struct scan *scan, const struct sub_record *record) {
    struct fields fields;
    parse_fields(record, &fields);
    if (record->error != 0 || (record->flags & SUB_FLAG_VFORK_CHILD) != 0)
        return;
    follow_directory(scan, fields.cwd.bytes != NULL
                               ? fields.cwd
                               : absolute(scan->path_bytes, scan->cwd, fields.path));
}

/* --- the first reading: what records say about processes -------------------------------------- */

static void take_hello(struct scan *scan, struct image *image, const struct sub_record *record) {
    struct images *images = scan->images;
    struct fields fields;
    parse_fields(record, &fields);
    if (image->hello || fields.hello == NULL)
        return;
    image->hello = true;
    image->ppid = fields.hello->ppid;
    image->umask = fields.hello->umask;
    image->uid = fields.hello->uid;
    image->start_ns = record->start_ns;
    image->utc_offset_ns = (int64_t)(fields.hello->realtime_ns - record->start_ns);
    image->boot_offset_ns = (int64_t)(fields.hello->boottime_ns - record->start_ns);
    image->forked_from = fields.hello->parent;
    image->argv = keep_text(images, fields.argv, SUB_ARGV_MAX);
    /* What execve was given may be relative, and have dots in it. */
    image->exe = fields.exe;
    if (fields.exe.length != 0 && fields.exe.length < SUB_STRING_MAX &&
        fields.cwd.length < SUB_STRING_MAX)
        image->exe = absolute(scan->path_bytes, fields.cwd, fields.exe);
    image->exe = keep_text(images, image->exe, 2 * SUB_STRING_MAX);
    image->cwd = keep_text(images, fields.cwd, SUB_STRING_MAX);
    image->env_digest = fields.env_digest != NULL ? *fields.env_digest : 0;
    image->truncated_argv = (record->flags & SUB_FLAG_TRUNCATED) != 0;
}

/* The exec calls of a chain that have not come back yet, newest last. */
struct pending_execs {
#define PENDING_MAX 16u
    struct {
        uint32_t sequence, link;
    } list[PENDING_MAX];
    uint32_t count;
};

static void take_exec(struct scan *scan, uint32_t from, const struct sub_record *record,
                      struct pending_execs *pending) {
    bool child = (record->flags & SUB_FLAG_VFORK_CHILD) != 0;
    int32_t pid = child ? (int32_t)record->tid : scan->images->list[from].self.pid;
    uint32_t links = scan->images->link_count;
    add_link(scan, from, pid, record, true);
    if (scan->images->link_count == links)
        return;
    if (pending->count == PENDING_MAX) {
        memmove(&pending->list[0], &pending->list[1], (PENDING_MAX - 1) * sizeof(pending->list[0]));
        pending->count--;
    }
    pending->list[pending->count].sequence = record->sequence;
    pending->list[pending->count++].link = links;
}

static void take_failure(struct scan *scan, const struct sub_record *record,
                         struct pending_execs *pending) {
    for (uint32_t i = pending->count; i > 0; i--) {
        if (pending->list[i - 1].sequence == (uint32_t)record->arg[0]) {
            scan->images->links[pending->list[i - 1].link].executes = false;
            return;
        }
    }
}

/*
 * A writer counts what it could not write as it counts what it wrote, and tries a few times: so much
 * may be missing in a sequence without a record being gone.
 */
#define TRIES_PER_LOSS 8u

/* Are there segments, or records at the end of a segment, that once were? */
static void find_gaps(struct scan *scan, struct image *image, uint32_t first, uint32_t end) {
    const struct segment *list = scan->segments->list;
    for (uint32_t i = first; i < end; i++) {
        const struct segment *segment = &list[i];
        if (i + 1 == end) {
            struct file_status status;
            char name[SEGMENT_NAME_MAX];
            if ((segment->state & SUB_STATE_CONTINUED) == 0 || segment->index == UINT32_MAX)
                continue;
            /* It may have been made after the directory was listed: then it is not gone. */
            segment_name(name, &segment->self, segment->chain, segment->index + 1);
            int fd = file_open(scan->options->directory, name, &status);
            if (fd >= 0)
                file_close(fd);
            else
                image->gone_segments++;
            continue;
        }
        if (list[i + 1].index > segment->index + 1)
            image->gone_segments += list[i + 1].index - segment->index - 1;
        uint64_t missing = (uint32_t)(list[i + 1].first_sequence - segment->next_sequence);
        uint64_t excused = TRIES_PER_LOSS * (segment->lost + 1);
        if (missing < INT32_MAX && missing > excused) {
            image->gone_records += missing - excused;
            image->lost += missing - excused;
        }
    }
    if (list[first].index != 0)
        image->gone_segments += list[first].index;
}

static void scan_chain(struct scan *scan, uint32_t from, uint32_t first, uint32_t end) {
    struct reader reader;
    struct pending_execs pending = {.count = 0};
    const struct sub_record *record;
    reader_open(&reader, scan->segments, scan->options->directory, first, end);
    while ((record = reader_next(&reader)) != NULL) {
        struct image *image = &scan->images->list[from];
        bool child = (record->flags & SUB_FLAG_VFORK_CHILD) != 0;
        uint64_t end_ns = record->start_ns + record->elapsed_ns;
        if (end_ns > image->end_ns)
            image->end_ns = end_ns;
        scan->segments->list[reader.current].next_sequence = record->sequence + 1;
        switch (record->type) {
        case SUB_HELLO:
            take_hello(scan, image, record);
            follow_directory(scan, image->cwd);
            break;
        case SUB_CHDIR:
            take_directory(scan, record);
            break;
        case SUB_EXIT:
            if (!child) {
                image->have_exit = image->ended = true;
                image->exit_code = record->arg[0] & 0xff;
            }
            break;
        case SUB_FORK:
            if (record->result > 0 && record->result <= INT32_MAX)
                add_link(scan, from, (int32_t)record->result, record, false);
            break;
        case SUB_SPAWN:
            if (record->result == 0 && record->arg[0] > 0 && record->op != SUB_OP_system &&
                record->op != SUB_OP_popen)
                add_link(scan, from, record->arg[0], record, true);
            break;
        case SUB_EXEC:
            take_exec(scan, from, record, &pending);
            break;
        case SUB_FAILED:
            take_failure(scan, record, &pending);
            break;
        case SUB_WAIT:
            if (record->result > 0 && record->result <= INT32_MAX)
                add_wait(scan, from, record);
            break;
        default:
            break;
        }
    }
    scan->segments->torn += reader.torn;
    scan->segments->corrupt += reader.corrupt;
    reader_close(&reader);
    find_gaps(scan, &scan->images->list[from], first, end);
}

static void scan_images(struct scan *scan) {
    for (uint32_t i = 0; i < scan->images->sorted; i++) {
        follow_directory(scan, (struct slice){NULL, 0});
        const struct segment *list = scan->segments->list;
        uint32_t first = scan->images->list[i].first_segment;
        uint32_t end = scan->images->list[i].end_segment;
        while (first < end) {
            uint32_t next = first + 1;
            while (next < end && list[next].chain == list[first].chain)
                next++;
            scan_chain(scan, i, first, next);
            first = next;
        }
    }
}

/* --- looking things up ------------------------------------------------------------------------ */

/* Images are in the order of pid, then of what tells processes of one pid apart, which grows. */
uint32_t image_at(const struct images *images, uint64_t pid_namespace, int32_t pid,
                  uint64_t at_ns) {
    uint32_t low = 0, high = images->sorted;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct image *image = &images->list[middle];
        int order = order_pid(image->self.pid_namespace, image->self.pid, pid_namespace, pid);
        if (order < 0 || (order == 0 && image->start_ns <= at_ns))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NONE;
    const struct image *image = &images->list[low - 1];
    bool found = order_pid(image->self.pid_namespace, image->self.pid, pid_namespace, pid) == 0;
    return found && image->start_ns <= at_ns ? low - 1 : NONE;
}

static uint32_t image_by_identity(const struct images *images, const struct sub_identity *wanted) {
    uint32_t low = 0, high = images->sorted;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (compare_identities(&images->list[middle].self, wanted) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < images->sorted && compare_identities(&images->list[low].self, wanted) == 0;
    return found ? low : NONE;
}

/* --- parents ---------------------------------------------------------------------------------- */

static void find_parents(struct scan *scan) {
    struct images *images = scan->images;
    for (uint32_t i = 0; i < images->sorted; i++) {
        struct image *image = &images->list[i];
        if (image->process != i) {
            image->parent = images->list[image->process].parent;
            continue;
        }
        struct link *link = link_to(images, image);
        if (link != NULL) {
            link->image = i;
            image->parent = link->from;
        }
        if (image->forked_from.pid != 0) {
            uint32_t parent = image_by_identity(images, &image->forked_from);
            if (parent != NONE)
                image->parent = parent;
        } else if (image->parent == NONE && image->hello) {
            image->parent =
                image_at(images, image->self.pid_namespace, image->ppid, image->start_ns);
        }
        if (image->parent != NONE && images->list[image->parent].process == i)
            image->parent = NONE; /* nobody is its own parent */
    }
}

void build_images(struct images *images, struct segments *segments, struct ledger *ledger,
                  const struct options *options) {
    struct scan *scan = allocate(sizeof(*scan));
    scan->images = images;
    scan->segments = segments;
    scan->ledger = ledger;
    scan->options = options;
    if (ledger->used)
        judge_segments(scan);
    group_segments(scan);
    scan_images(scan);
    sort_links(images);
    find_parents(scan);
    if (ledger->used)
        reconcile(scan);
    if (!ledger_complete(ledger))
        add_uncovered(scan);
    take_waits(scan);
    mark_executed(images);
    if (ledger->used)
        take_kernel_exits(scan);
    select_images(scan);
    make_spans(images, options);
    free(scan->waits);
    free(scan);
}

void images_free(struct images *images) {
    free(images->list);
    free(images->links);
    text_free(&images->text);
}
