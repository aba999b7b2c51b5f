/*
 * Who ran: images, their processes and parents, which of them descend from the root, and those that
 * others started but that never said hello.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "decode.h"
#include "sha256.h"

#define LINKS_MAX (1u << 20)
#define LINK_TEXT_MAX 1024u
#define LINK_TEXT_TOTAL (64u << 20)
#define DEPTH_MAX 65536u
/* Images, and links, of one pid that are looked at: no pid comes back so often in a step. */
#define SAME_PID_MAX 1024u

struct waited {
    uint64_t pid_namespace;
    int32_t pid;
    int32_t status;
    uint64_t at_ns;
};

struct scan {
    struct images *images;
    struct segments *segments;
    struct waited *waits;
    uint32_t wait_count, wait_size;
    uint64_t text_used;
    uint32_t sorted; /* images that come from segments, in the order of their identity */
};

static struct slice copy_slice(struct slice from, uint32_t most) {
    struct slice to = {NULL, 0};
    uint32_t length = from.length < most ? from.length : most;
    if (length == 0)
        return to;
    char *bytes = malloc(length);
    if (bytes == NULL)
        die("out of memory: raise --memory-limit");
    memcpy(bytes, from.bytes, length);
    to.bytes = bytes;
    to.length = length;
    return to;
}

static uint32_t add_image(struct images *images) {
    if (images->count == images->size) {
        images->size = images->size != 0 ? images->size * 2 : 256;
        images->list = realloc(images->list, images->size * sizeof(*images->list));
        if (images->list == NULL)
            die("out of memory: raise --memory-limit");
    }
    struct image *image = &images->list[images->count];
    memset(image, 0, sizeof(*image));
    image->next = image->parent = NONE;
    image->process = images->count;
    return images->count++;
}

static bool same_process(const struct sub_identity *a, const struct sub_identity *b) {
    return a->pid_namespace == b->pid_namespace && a->pid == b->pid &&
           a->start_ticks == b->start_ticks;
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
        segment->image = images->count - 1;
    }
    scan->sorted = images->count;
}

/* --- the first reading: what records say about processes -------------------------------------- */

static void take_hello(struct image *image, const struct sub_record *record) {
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
    image->argv = copy_slice(fields.argv, SUB_ARGV_MAX);
    image->exe = copy_slice(fields.exe, SUB_STRING_MAX);
    image->cwd = copy_slice(fields.cwd, SUB_STRING_MAX);
    image->env_digest = fields.env_digest != NULL ? *fields.env_digest : 0;
    image->truncated_argv = (record->flags & SUB_FLAG_TRUNCATED) != 0;
}

static void add_link(struct scan *scan, uint32_t from, int32_t pid, const struct sub_record *record,
                     bool executes) {
    struct images *images = scan->images;
    if (images->link_count == LINKS_MAX) {
        images->links_dropped++;
        return;
    }
    if (images->link_count == images->link_size) {
        images->link_size = images->link_size != 0 ? images->link_size * 2 : 256;
        images->links = realloc(images->links, images->link_size * sizeof(*images->links));
        if (images->links == NULL)
            die("out of memory: raise --memory-limit");
    }
    struct link *link = &images->links[images->link_count++];
    memset(link, 0, sizeof(*link));
    link->pid_namespace = images->list[from].self.pid_namespace;
    link->pid = pid;
    link->from = from;
    link->at_ns = record->start_ns;
    link->type = record->type;
    link->executes = executes;
    link->image = NONE;
    if (executes && scan->text_used < LINK_TEXT_TOTAL) {
        struct fields fields;
        parse_fields(record, &fields);
        link->path = copy_slice(fields.path, LINK_TEXT_MAX);
        link->argv = copy_slice(fields.argv, LINK_TEXT_MAX);
        scan->text_used += link->path.length + link->argv.length;
    }
}

static void add_wait(struct scan *scan, uint32_t from, const struct sub_record *record) {
    if (scan->wait_count == LINKS_MAX)
        return;
    if (scan->wait_count == scan->wait_size) {
        scan->wait_size = scan->wait_size != 0 ? scan->wait_size * 2 : 256;
        scan->waits = realloc(scan->waits, scan->wait_size * sizeof(*scan->waits));
        if (scan->waits == NULL)
            die("out of memory: raise --memory-limit");
    }
    struct waited *wait = &scan->waits[scan->wait_count++];
    wait->pid_namespace = scan->images->list[from].self.pid_namespace;
    wait->pid = (int32_t)record->result;
    wait->status = record->arg[0];
    wait->at_ns = record->start_ns + record->elapsed_ns;
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

static void scan_chain(struct scan *scan, uint32_t from, uint32_t first, uint32_t end,
                       int directory) {
    struct reader reader;
    struct pending_execs pending = {.count = 0};
    const struct sub_record *record;
    reader_open(&reader, scan->segments, directory, first, end);
    while ((record = reader_next(&reader)) != NULL) {
        struct image *image = &scan->images->list[from];
        bool child = (record->flags & SUB_FLAG_VFORK_CHILD) != 0;
        uint64_t end_ns = record->start_ns + record->elapsed_ns;
        if (end_ns > image->end_ns)
            image->end_ns = end_ns;
        switch (record->type) {
        case SUB_HELLO:
            take_hello(image, record);
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
}

static void scan_images(struct scan *scan, int directory) {
    for (uint32_t i = 0; i < scan->sorted; i++) {
        const struct segment *list = scan->segments->list;
        uint32_t first = scan->images->list[i].first_segment;
        uint32_t end = scan->images->list[i].end_segment;
        while (first < end) {
            uint32_t next = first + 1;
            while (next < end && list[next].chain == list[first].chain)
                next++;
            scan_chain(scan, i, first, next, directory);
            first = next;
        }
    }
}

/* --- looking things up ------------------------------------------------------------------------ */

static int order_pid(uint64_t namespace_a, int32_t pid_a, uint64_t namespace_b, int32_t pid_b) {
    if (namespace_a != namespace_b)
        return namespace_a < namespace_b ? -1 : 1;
    return pid_a < pid_b ? -1 : pid_a > pid_b;
}

static int compare_links(const void *left, const void *right) {
    const struct link *a = left, *b = right;
    int order = order_pid(a->pid_namespace, a->pid, b->pid_namespace, b->pid);
    if (order != 0)
        return order;
    return a->at_ns < b->at_ns ? -1 : a->at_ns > b->at_ns;
}

/* Index of the first link of (namespace, pid), or of where it would stand. */
static uint32_t first_link(const struct images *images, uint64_t pid_namespace, int32_t pid) {
    uint32_t low = 0, high = images->link_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct link *link = &images->links[middle];
        if (order_pid(link->pid_namespace, link->pid, pid_namespace, pid) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool link_is_of(const struct images *images, uint32_t index, uint64_t pid_namespace,
                       int32_t pid) {
    return index < images->link_count && images->links[index].pid_namespace == pid_namespace &&
           images->links[index].pid == pid;
}

/* Is this link an exec of the process itself, not of a child? */
static bool is_own_exec(const struct images *images, const struct link *link) {
    return link->type == SUB_EXEC && link->pid == images->list[link->from].self.pid;
}

static uint32_t first_image(const struct scan *scan, uint64_t pid_namespace, int32_t pid) {
    uint32_t low = 0, high = scan->sorted;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct sub_identity *self = &scan->images->list[middle].self;
        if (order_pid(self->pid_namespace, self->pid, pid_namespace, pid) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The image that ran as `pid` at that time. */
static uint32_t image_at(const struct scan *scan, uint64_t pid_namespace, int32_t pid,
                         uint64_t at_ns) {
    uint32_t found = NONE, first = first_image(scan, pid_namespace, pid);
    for (uint32_t i = first; i < scan->sorted && i - first < SAME_PID_MAX; i++) {
        const struct image *image = &scan->images->list[i];
        if (order_pid(image->self.pid_namespace, image->self.pid, pid_namespace, pid) != 0)
            break;
        if (image->start_ns <= at_ns &&
            (found == NONE || image->start_ns >= scan->images->list[found].start_ns))
            found = i;
    }
    return found;
}

static uint32_t image_by_identity(const struct scan *scan, const struct sub_identity *wanted) {
    uint32_t first = first_image(scan, wanted->pid_namespace, wanted->pid);
    for (uint32_t i = first; i < scan->sorted && i - first < SAME_PID_MAX; i++) {
        const struct sub_identity *self = &scan->images->list[i].self;
        if (order_pid(self->pid_namespace, self->pid, wanted->pid_namespace, wanted->pid) != 0)
            break;
        if (self->start_ticks == wanted->start_ticks && self->exec_number == wanted->exec_number)
            return i;
    }
    return NONE;
}

uint32_t image_of_child(const struct images *images, const struct image *parent, int32_t pid,
                        uint64_t at_ns) {
    uint32_t from = (uint32_t)(parent - images->list);
    uint32_t first = first_link(images, parent->self.pid_namespace, pid);
    for (uint32_t i = first;
         i - first < SAME_PID_MAX && link_is_of(images, i, parent->self.pid_namespace, pid); i++) {
        const struct link *link = &images->links[i];
        if (link->from == from && link->at_ns >= at_ns && link->image != NONE)
            return link->image;
    }
    return NONE;
}

/* --- parents ---------------------------------------------------------------------------------- */

/* The link by which the process of `head` was started: the latest before it showed itself. */
static struct link *link_to(const struct images *images, const struct image *head) {
    struct link *found = NULL;
    uint32_t first = first_link(images, head->self.pid_namespace, head->self.pid);
    for (uint32_t i = first; i - first < SAME_PID_MAX &&
                             link_is_of(images, i, head->self.pid_namespace, head->self.pid);
         i++) {
        struct link *link = &images->links[i];
        if (link->at_ns > head->start_ns)
            break;
        if (!is_own_exec(images, link))
            found = link;
    }
    return found;
}

static void find_parents(struct scan *scan) {
    struct images *images = scan->images;
    for (uint32_t i = 0; i < scan->sorted; i++) {
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
            uint32_t parent = image_by_identity(scan, &image->forked_from);
            if (parent != NONE)
                image->parent = parent;
        } else if (image->parent == NONE && image->hello) {
            image->parent = image_at(scan, image->self.pid_namespace, image->ppid, image->start_ns);
        }
        if (image->parent != NONE && images->list[image->parent].process == i)
            image->parent = NONE; /* nobody is its own parent */
    }
}

/* Images for the programs that were started and never said hello. */
static void add_uncovered(struct scan *scan) {
    struct images *images = scan->images;
    for (uint32_t i = 0; i < images->link_count; i++) {
        struct link link = images->links[i];
        if (!link.executes || link.image != NONE)
            continue;
        bool own = is_own_exec(images, &link);
        if (own && images->list[link.from].next != NONE) {
            images->links[i].image = images->list[link.from].next;
            continue;
        }
        uint32_t added = add_image(images);
        struct image *image = &images->list[added];
        const struct image *from = &images->list[link.from];
        image->self = from->self;
        if (own) {
            image->self.exec_number++;
            image->process = from->process;
            image->parent = from->parent;
            image->ppid = from->ppid;
        } else {
            image->self.pid = link.pid;
            image->self.start_ticks = 1ULL << 63 | link.at_ns;
            image->self.exec_number = 1;
            image->parent = link.from;
            image->ppid = from->self.pid;
        }
        image->uncovered = true;
        image->start_ns = link.at_ns;
        image->utc_offset_ns = from->utc_offset_ns;
        image->boot_offset_ns = from->boot_offset_ns;
        image->exe = link.path;
        image->argv = link.argv;
        if (own)
            images->list[link.from].next = added;
        images->links[i].image = added;
    }
}

/* --- ends ------------------------------------------------------------------------------------- */

static void end_image(struct image *image, const struct waited *wait) {
    image->ended = image->have_exit = true;
    image->signal = WIFSIGNALED(wait->status) ? WTERMSIG(wait->status) : 0;
    image->exit_code = WIFEXITED(wait->status) ? WEXITSTATUS(wait->status) : 0;
    image->end_ns = wait->at_ns;
}

static void take_waits(struct scan *scan) {
    struct images *images = scan->images;
    for (uint32_t i = 0; i < scan->wait_count; i++) {
        const struct waited *wait = &scan->waits[i];
        if (!WIFEXITED(wait->status) && !WIFSIGNALED(wait->status))
            continue;
        uint32_t found = image_at(scan, wait->pid_namespace, wait->pid, wait->at_ns);
        uint64_t since = found != NONE ? images->list[found].start_ns : 0;
        uint32_t first = first_link(images, wait->pid_namespace, wait->pid);
        for (uint32_t j = first;
             j - first < SAME_PID_MAX && link_is_of(images, j, wait->pid_namespace, wait->pid);
             j++) {
            const struct link *link = &images->links[j];
            if (link->image != NONE && link->at_ns <= wait->at_ns && link->at_ns >= since) {
                found = link->image;
                since = link->at_ns;
            }
        }
        while (found != NONE && images->list[found].next != NONE)
            found = images->list[found].next;
        if (found != NONE)
            end_image(&images->list[found], wait);
    }
    for (uint32_t i = 0; i < images->count; i++) {
        struct image *image = &images->list[i];
        if (image->next != NONE) {
            image->executed = true;
            image->end_ns = images->list[image->next].start_ns;
            image->have_exit = false;
        }
    }
}

/* --- the root's descendants ------------------------------------------------------------------- */

/* What is found out is remembered for all on the way up, so that nobody is gone through twice. */
static bool descends_from_root(struct images *images, const struct options *options, uint32_t of) {
    bool found = false;
    uint32_t depth = 0;
    for (uint32_t at = of; at != NONE && depth < DEPTH_MAX; depth++) {
        const struct image *image = &images->list[at];
        if (image->judged) {
            found = image->selected;
            break;
        }
        /* The root itself may not be seen; its children can be. */
        found = image->process == images->root ||
                (image->parent == NONE && images->root == NONE &&
                 image->ppid == options->root_pid && image->start_ns >= options->root_after_ns);
        if (found)
            break;
        at = image->parent;
    }
    for (uint32_t at = of; at != NONE && !images->list[at].judged; depth--) {
        images->list[at].judged = true;
        images->list[at].selected = found;
        if (depth == 0)
            break;
        at = images->list[at].parent;
    }
    return found;
}

static void select_images(struct scan *scan, const struct options *options) {
    struct images *images = scan->images;
    images->root = NONE;
    if (options->have_root) {
        for (uint32_t i = 0; i < scan->sorted; i++) {
            const struct image *image = &images->list[i];
            if (image->process == i && image->self.pid == options->root_pid &&
                image->end_ns >= options->root_after_ns &&
                (images->root == NONE || image->start_ns < images->list[images->root].start_ns))
                images->root = i;
        }
        images->root_seen = images->root != NONE;
    }
    for (uint32_t i = 0; i < images->count; i++) {
        bool selected = !options->have_root || descends_from_root(images, options, i);
        images->list[i].selected = selected;
        if (!selected && images->list[i].process == i && images->list[i].parent == NONE &&
            images->list[i].start_ns >= options->root_after_ns)
            images->unattributed++;
    }
}

/* --- spans ------------------------------------------------------------------------------------ */

static uint64_t span_of(const struct options *options, const struct sub_identity *self) {
    char text[256];
    uint8_t digest[32];
    int length = snprintf(text, sizeof(text), "%s:%llu:%d:%llu:%u", options->span,
                          (unsigned long long)self->pid_namespace, self->pid,
                          (unsigned long long)self->start_ticks, self->exec_number);
    sha256(text, (size_t)length < sizeof(text) ? (size_t)length : sizeof(text) - 1, digest);
    uint64_t span = 0;
    for (int i = 0; i < 8; i++)
        span = span << 8 | digest[i];
    return span;
}

uint32_t merged_image(const struct images *images, uint32_t image) {
    const struct image *here = &images->list[image];
    return here->self.exec_number == 0 && here->next != NONE ? here->next : image;
}

const struct image *program_of(const struct images *images, const struct image *image) {
    const struct image *program = image;
    for (uint32_t depth = 0; depth < DEPTH_MAX; depth++) {
        if (program->self.exec_number != 0 || program->exe.length != 0 || program->parent == NONE)
            break;
        program = &images->list[program->parent];
    }
    return program;
}

uint64_t parent_span(const struct images *images, const struct image *image) {
    if (image->parent == NONE || !images->list[image->parent].selected)
        return 0; /* the step itself */
    return images->list[merged_image(images, image->parent)].span;
}

void build_images(struct images *images, struct segments *segments, const struct options *options) {
    struct scan scan = {.images = images, .segments = segments};
    group_segments(&scan);
    scan_images(&scan, options->directory);
    if (images->link_count != 0)
        qsort(images->links, images->link_count, sizeof(*images->links), compare_links);
    find_parents(&scan);
    add_uncovered(&scan);
    take_waits(&scan);
    select_images(&scan, options);
    for (uint32_t i = 0; i < images->count; i++) {
        images->list[i].span = span_of(options, &images->list[i].self);
        images->list[i].began_ns = images->list[i].start_ns;
    }
    for (uint32_t i = 0; i < images->count; i++) {
        struct image *image = &images->list[i];
        struct image *merged = &images->list[merged_image(images, i)];
        image->span = merged->span;
        if (image->start_ns < merged->began_ns)
            merged->began_ns = image->start_ns;
    }
    free(scan.waits);
}

static const struct images *sorting; /* qsort has no argument for it */

static int compare_starts(const void *left, const void *right) {
    const struct image *a = &sorting->list[*(const uint32_t *)left];
    const struct image *b = &sorting->list[*(const uint32_t *)right];
    if (a->began_ns != b->began_ns)
        return a->began_ns < b->began_ns ? -1 : 1;
    /* What began together was merged: the forked child comes before the program. */
    if (a->self.exec_number != b->self.exec_number)
        return a->self.exec_number < b->self.exec_number ? -1 : 1;
    return a < b ? -1 : a > b;
}

uint32_t *images_in_order(const struct images *images, uint32_t *count) {
    uint32_t *order = allocate((images->count + 1) * sizeof(*order));
    *count = 0;
    for (uint32_t i = 0; i < images->count; i++) {
        if (images->list[i].selected)
            order[(*count)++] = i;
    }
    sorting = images;
    if (*count != 0)
        qsort(order, *count, sizeof(*order), compare_starts);
    return order;
}
