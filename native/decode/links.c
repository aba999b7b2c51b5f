/*
 * Whom programs say they started and waited for. Where there is no kernel's ledger, this is how
 * programs that never said hello are known at all.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "images.h"

#define LINKS_MAX (1u << 20)
#define LINK_TEXT_MAX 1024u

void add_link(struct scan *scan, uint32_t from, int32_t pid, const struct sub_record *record,
              bool executes) {
    struct images *images = scan->images;
    if (images->link_count == LINKS_MAX) {
        images->links_dropped++;
        return;
    }
    images->links =
        grow(images->links, images->link_count, &images->link_size, sizeof(*images->links));
    struct link *link = &images->links[images->link_count++];
    memset(link, 0, sizeof(*link));
    link->pid_namespace = images->list[from].self.pid_namespace;
    link->pid = pid;
    link->from = from;
    link->at_ns = record->start_ns;
    link->type = record->type;
    link->executes = executes;
    link->image = NONE;
    if (executes) {
        struct fields fields;
        parse_fields(record, &fields);
        struct slice path = fields.path;
        /* A bare name was looked up in PATH, and a descriptor leads elsewhere. */
        if (path.length != 0 && memchr(path.bytes, '/', path.length) != NULL &&
            fields.directory.bytes == NULL && fields.directory_id == NULL)
            path = absolute(scan->path_bytes, scan->cwd, path);
        link->path = keep_text(images, path, LINK_TEXT_MAX);
        link->argv = keep_text(images, fields.argv, LINK_TEXT_MAX);
    }
}

void add_wait(struct scan *scan, uint32_t from, const struct sub_record *record) {
    if (scan->wait_count == LINKS_MAX)
        return;
    scan->waits = grow(scan->waits, scan->wait_count, &scan->wait_size, sizeof(*scan->waits));
    struct waited *wait = &scan->waits[scan->wait_count++];
    wait->pid_namespace = scan->images->list[from].self.pid_namespace;
    wait->pid = (int32_t)record->result;
    wait->status = record->arg[0];
    wait->at_ns = record->start_ns + record->elapsed_ns;
}

/* --- looking things up ------------------------------------------------------------------------ */

int order_pid(uint64_t namespace_a, int32_t pid_a, uint64_t namespace_b, int32_t pid_b) {
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

void sort_links(struct images *images) {
    if (images->link_count != 0)
        qsort(images->links, images->link_count, sizeof(*images->links), compare_links);
}

/* Index of the first link of (namespace, pid) from a time on, or of where it would stand. */
static uint32_t first_link(const struct images *images, uint64_t pid_namespace, int32_t pid,
                           uint64_t from_ns) {
    uint32_t low = 0, high = images->link_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct link *link = &images->links[middle];
        int order = order_pid(link->pid_namespace, link->pid, pid_namespace, pid);
        if (order < 0 || (order == 0 && link->at_ns < from_ns))
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

uint32_t image_of_child(const struct images *images, const struct image *parent, int32_t pid,
                        uint64_t at_ns) {
    uint32_t from = (uint32_t)(parent - images->list);
    uint32_t first = first_link(images, parent->self.pid_namespace, pid, at_ns);
    for (uint32_t i = first;
         i - first < SAME_PID_MAX && link_is_of(images, i, parent->self.pid_namespace, pid); i++) {
        const struct link *link = &images->links[i];
        if (link->from == from && link->image != NONE)
            return link->image;
    }
    return NONE;
}

/* Behind the last link of (namespace, pid) that is not later; then go backwards. */
static uint32_t behind_link(const struct images *images, uint64_t pid_namespace, int32_t pid,
                            uint64_t until_ns) {
    return first_link(images, pid_namespace, pid, until_ns == UINT64_MAX ? until_ns : until_ns + 1);
}

struct link *link_to(const struct images *images, const struct image *head) {
    uint32_t end = behind_link(images, head->self.pid_namespace, head->self.pid, head->start_ns);
    for (uint32_t i = end; i > 0 && end - i < SAME_PID_MAX &&
                           link_is_of(images, i - 1, head->self.pid_namespace, head->self.pid);
         i--) {
        if (!is_own_exec(images, &images->links[i - 1]))
            return &images->links[i - 1];
    }
    return NULL;
}

struct link *link_between(const struct images *images, uint64_t pid_namespace, int32_t pid,
                          uint64_t after_ns, uint64_t until_ns) {
    uint32_t end = behind_link(images, pid_namespace, pid, until_ns);
    for (uint32_t i = end;
         i > 0 && end - i < SAME_PID_MAX && link_is_of(images, i - 1, pid_namespace, pid) &&
         images->links[i - 1].at_ns >= after_ns;
         i--) {
        if (images->links[i - 1].executes)
            return &images->links[i - 1];
    }
    return NULL;
}

/* --- programs that said no hello -------------------------------------------------------------- */

void add_uncovered(struct scan *scan) {
    struct images *images = scan->images;
    for (uint32_t i = 0; i < images->link_count; i++) {
        struct link link = images->links[i];
        if (link.type == SUB_FORK && link.image == NONE)
            add_silent_fork(scan, i);
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
            image->exec_no = from->exec_no + 1;
            image->process = from->process;
            image->parent = from->parent;
            image->ppid = from->ppid;
        } else {
            image->self.pid = link.pid;
            image->self.start_ticks = 1ULL << 63 | link.at_ns;
            image->self.exec_number = image->exec_no = 1;
            image->parent = link.from;
            image->ppid = from->self.pid;
        }
        image->uncovered = true;
        image->filtered = from->quiet || from->filtered;
        image->start_ns = link.at_ns;
        image->utc_offset_ns = from->utc_offset_ns;
        image->boot_offset_ns = from->boot_offset_ns;
        image->exe = link.path;
        image->argv = link.argv;
        if (own)
            images->list[link.from].next = added;
        images->links[i].image = added;
        take_unborn_of_pid(scan->segments, image);
    }
}

/* --- ends ------------------------------------------------------------------------------------- */

static void end_image(struct image *image, const struct waited *wait) {
    image->ended = image->have_exit = true;
    image->signal = WIFSIGNALED(wait->status) ? WTERMSIG(wait->status) : 0;
    image->exit_code = WIFEXITED(wait->status) ? WEXITSTATUS(wait->status) : 0;
    image->end_ns = wait->at_ns;
}

void take_waits(struct scan *scan) {
    struct images *images = scan->images;
    for (uint32_t i = 0; i < scan->wait_count; i++) {
        const struct waited *wait = &scan->waits[i];
        if (!WIFEXITED(wait->status) && !WIFSIGNALED(wait->status))
            continue;
        uint32_t found = image_at(images, wait->pid_namespace, wait->pid, wait->at_ns);
        uint64_t since = found != NONE ? images->list[found].start_ns : 0;
        uint32_t end = behind_link(images, wait->pid_namespace, wait->pid, wait->at_ns);
        for (uint32_t j = end; j > 0 && end - j < SAME_PID_MAX &&
                               link_is_of(images, j - 1, wait->pid_namespace, wait->pid) &&
                               images->links[j - 1].at_ns >= since;
             j--) {
            if (images->links[j - 1].image != NONE) {
                found = images->links[j - 1].image;
                break;
            }
        }
        while (found != NONE && images->list[found].next != NONE)
            found = images->list[found].next;
        if (found != NONE)
            end_image(&images->list[found], wait);
    }
}

void mark_executed(struct images *images) {
    for (uint32_t i = 0; i < images->count; i++) {
        struct image *image = &images->list[i];
        if (image->next != NONE) {
            image->executed = true;
            image->end_ns = images->list[image->next].start_ns;
            image->have_exit = false;
        }
    }
}
