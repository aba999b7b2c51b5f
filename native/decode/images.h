/*
 * What the parts that find out about images share: images.c groups and reads segments, links.c keeps
 * whom programs say they started, reconcile.c compares with the kernel's ledger, selection.c tells
 * what belongs to the step.
 */
#ifndef SUBSTRATE_DECODE_IMAGES_H
#define SUBSTRATE_DECODE_IMAGES_H

#include "decode.h"

#define DEPTH_MAX 65536u
/* Links of one pid that are looked at, from the one that is nearest in time. */
#define SAME_PID_MAX 1024u
/* Text that is kept for images; beyond it they have none. */
#define IMAGE_TEXT_TOTAL (256u << 20)

struct waited {
    uint64_t pid_namespace;
    int32_t pid;
    int32_t status;
    uint64_t at_ns;
};

/* A process that a covered one says it started. */
struct link {
    uint64_t pid_namespace;
    int32_t pid;
    uint32_t from; /* image */
    uint64_t at_ns;
    enum sub_record_type type;
    bool executes; /* a program of its own runs in it: no hello means not covered */
    struct slice path, argv;
    uint32_t image; /* found, or made for it; NONE */
};

struct scan {
    struct images *images;
    struct segments *segments;
    struct ledger *ledger;
    const struct options *options;
    struct waited *waits;
    uint32_t wait_count, wait_size;
    /* The directory of the image that is read, to make the paths of its links absolute. */
    struct slice cwd;
    char cwd_bytes[PATH_BYTES], path_bytes[PATH_BYTES];
};

uint32_t add_image(struct images *images);
struct slice keep_text(struct images *images, struct slice from, uint32_t most);
int order_pid(uint64_t namespace_a, int32_t pid_a, uint64_t namespace_b, int32_t pid_b);
/* The image that ran as `pid` at that time. */
uint32_t image_at(const struct images *images, uint64_t pid_namespace, int32_t pid, uint64_t at_ns);

void add_link(struct scan *scan, uint32_t from, int32_t pid, const struct sub_record *record,
              bool executes);
void add_wait(struct scan *scan, uint32_t from, const struct sub_record *record);
void sort_links(struct images *images);
/* The link by which the process of `head` was started: the latest before it showed itself. */
struct link *link_to(const struct images *images, const struct image *head);
/* The link by which a program was started in that process between two times. */
struct link *link_between(const struct images *images, uint64_t pid_namespace, int32_t pid,
                          uint64_t after_ns, uint64_t until_ns);
/* Images for the programs that were started and never said hello. */
void add_uncovered(struct scan *scan);
void take_waits(struct scan *scan);
void mark_executed(struct images *images);

void judge_segments(struct scan *scan);
/* An image that only the kernel speaks of, not covered. */
uint32_t add_kernel_image(struct scan *scan, uint32_t kernel, uint64_t at_ns);
/* Puts an image behind another of the same process; `last` NONE: it is the first. */
void chain_image(struct scan *scan, uint32_t kernel, uint32_t last, uint32_t image);
void add_silent_child(struct scan *scan, uint32_t kernel);
/* Adds the child that a fork without a program tells of, unless it is there. */
void add_silent_fork(struct scan *scan, uint32_t link);
/* Tells silent images, and others, what became of their segments. */
void take_absent(struct scan *scan);
/* The same for an image that the kernel's ledger does not know of. */
void take_unborn_of_pid(const struct segments *segments, struct image *image);
void reconcile(struct scan *scan);
void take_kernel_exits(struct scan *scan);

void select_images(struct scan *scan);
void make_spans(struct images *images, const struct options *options);

#endif
