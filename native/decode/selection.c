/*
 * What belongs to the step: the descendants of its first process. And what they are called.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>

#include "images.h"
#include "sha256.h"

/* Forks of forks that are gone through to the program that all of them run. */
#define FORKS_MAX 1024u

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
        /* Begun by an earlier command of the shell: neither it nor what it starts is this one's. */
        if (found || image->start_ns < options->since_ns)
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

/* A process that only its segments speak of, where the kernel tells all there were. */
static bool is_unknown(const struct scan *scan, const struct image *image) {
    const struct ledger *ledger = scan->ledger;
    return image->kernel == NONE && !image->uncovered && ledger_complete(ledger) &&
           (ledger->attested || ledger->pid_namespace == 0 ||
            image->self.pid_namespace == ledger->pid_namespace);
}

/* The kernel knows who descends from whom; what it does not know of is not believed to exist. */
static void select_by_ledger(struct scan *scan) {
    struct images *images = scan->images;
    struct ledger *ledger = scan->ledger;
    for (uint32_t i = 0; i < images->count; i++) {
        struct image *image = &images->list[i];
        bool selected = image->kernel != NONE && ledger->processes[image->kernel].selected;
        /* Where records were lost, the one that ties a process to the step may be among them. */
        if (selected || (image->kernel != NONE && ledger_complete(ledger))) {
            image->selected = selected;
            image->judged = true;
        } else if (is_unknown(scan, image)) {
            image->judged = true;
            ledger->unknown += image->process == i &&
                               image->start_ns >= scan->options->root_after_ns &&
                               image->start_ns <= ledger->last_ns;
        }
    }
}

static void find_root(struct images *images, const struct options *options) {
    for (uint32_t i = 0; i < images->sorted; i++) {
        const struct image *image = &images->list[i];
        if (image->process == i && image->self.pid == options->root_pid &&
            image->end_ns >= options->root_after_ns && !(image->judged && !image->selected) &&
            (images->root == NONE || image->start_ns < images->list[images->root].start_ns))
            images->root = i;
    }
}

void select_images(struct scan *scan) {
    struct images *images = scan->images;
    const struct options *options = scan->options;
    images->root = NONE;
    if (scan->ledger->used)
        select_by_ledger(scan);
    if (options->have_root)
        find_root(images, options);
    /* A root without a hello is among the processes, with its reason, when the kernel tells of it. */
    images->root_seen = images->root != NONE || (options->have_root && scan->ledger->used);
    for (uint32_t i = 0; i < images->count; i++) {
        struct image *image = &images->list[i];
        if (!image->judged)
            image->selected = !options->have_root || descends_from_root(images, options, i);
        if (!image->selected && image->process == i && image->parent == NONE &&
            image->kernel == NONE && !scan->ledger->used &&
            image->start_ns >= options->root_after_ns)
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

void make_spans(struct images *images, const struct options *options) {
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
}

uint32_t merged_image(const struct images *images, uint32_t image) {
    const struct image *here = &images->list[image];
    return here->self.exec_number == 0 && here->next != NONE ? here->next : image;
}

const struct image *program_of(const struct images *images, const struct image *image) {
    const struct image *program = image;
    for (uint32_t depth = 0; depth < FORKS_MAX; depth++) {
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
