/*
 * The summary, as one JSON object.
 */
#define _GNU_SOURCE 1

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "ledger.h"
#include "summary.h"

static void key(struct buffer *out, const char *name) {
    json_literal(out, ",\"");
    json_text(out, name);
    json_literal(out, "\":");
}

static void number(struct buffer *out, const char *name, uint64_t value) {
    key(out, name);
    json_unsigned(out, value);
}

static void write_counts(struct buffer *out, const struct summary *summary) {
    static const char *const names[CLASS_COUNT] = {
        "exec",        "spawn",  "fork",    "exit",    "wait",  "open_read", "open_write",
        "open_failed", "mutate", "connect", "resolve", "chdir", "bind",      "listen",
        "accept",      "thread", "load",    "dup",     "other",
    };
    static const char *const totals[TOTAL_COUNT] = {
        "stat",
        "stat_failed",
        "transfer_read_calls",
        "transfer_read_bytes",
        "transfer_write_calls",
        "transfer_write_bytes",
        "sent_bytes",
        "received_bytes",
        "source_clock",
        "source_monotonic",
        "source_random",
        "source_pid",
        "source_directory_order",
    };
    json_literal(out, "{\"events\":");
    json_unsigned(out, summary->events);
    number(out, "failed", summary->failed);
    for (int i = 0; i < CLASS_COUNT; i++) {
        if (summary->counts[i] != 0)
            number(out, names[i], summary->counts[i]);
    }
    for (int i = 0; i < TOTAL_COUNT; i++) {
        if (summary->totals[i] != 0)
            number(out, totals[i], summary->totals[i]);
    }
    json_literal(out, "}");
}

static int compare_lines(const void *left, const void *right) {
    const struct line *a = left, *b = right;
    return a->at_ns < b->at_ns ? -1 : a->at_ns > b->at_ns;
}

static void write_lines(struct buffer *out, struct summary *summary) {
    uint32_t most = summary->options->max_events, count = 0;
    struct line *chosen = allocate((most + 1) * sizeof(*chosen));
    for (int rank = 0; rank < RANK_COUNT; rank++) {
        const struct lines *lines = &summary->ranks[rank];
        for (uint32_t i = 0; i < lines->count; i++) {
            if (count < most)
                chosen[count++] = lines->list[i];
            else
                summary->not_kept++;
        }
    }
    if (count != 0)
        qsort(chosen, count, sizeof(*chosen), compare_lines);
    json_literal(out, "[");
    for (uint32_t i = 0; i < count; i++) {
        if (i != 0)
            json_literal(out, ",");
        json_raw(out, chosen[i].line.bytes, chosen[i].line.length - 1); /* without its newline */
    }
    json_literal(out, "]");
    free(chosen);
}

static int compare_texts(const void *left, const void *right) {
    const struct slice *a = left, *b = right;
    size_t length = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->bytes, b->bytes, length);
    return order != 0 ? order : a->length < b->length ? -1 : a->length > b->length;
}

static void write_paths(struct buffer *out, const struct text_set *set) {
    struct slice *sorted = allocate((set->count + 1) * sizeof(*sorted));
    if (set->count != 0) {
        memcpy(sorted, set->texts, set->count * sizeof(*sorted));
        qsort(sorted, set->count, sizeof(*sorted), compare_texts);
    }
    json_literal(out, "[");
    for (uint32_t i = 0; i < set->count; i++) {
        if (i != 0)
            json_literal(out, ",");
        json_bytes(out, sorted[i].bytes, sorted[i].length);
    }
    json_literal(out, "]");
    free(sorted);
}

static void write_hosts(struct buffer *out, const struct summary *summary) {
    json_literal(out, "[");
    for (uint32_t i = 0; i < summary->host_count; i++) {
        const struct host *host = &summary->hosts[i];
        if (i != 0)
            json_literal(out, ",");
        json_literal(out, "{\"family\":");
        json_name(out, host->family == AF_INET    ? "AF_INET"
                       : host->family == AF_INET6 ? "AF_INET6"
                                                  : "AF_UNIX");
        key(out, "address");
        json_text(out, host->address);
        number(out, "port", host->port);
        key(out, "name");
        if (host->name.length != 0)
            json_bytes(out, host->name.bytes, host->name.length);
        else
            json_literal(out, "null");
        number(out, "count", host->count);
        number(out, "failed", host->failed);
        key(out, "error");
        const char *error = errno_name(host->last_error);
        if (error != NULL)
            json_name(out, error);
        else
            json_literal(out, "null");
        json_literal(out, "}");
    }
    json_literal(out, "]");
}

static void write_span_id(struct buffer *out, uint64_t span, const struct options *options) {
    if (span == 0) {
        json_bytes(out, options->span, strlen(options->span));
        return;
    }
    json_literal(out, "\"");
    json_hex(out, span, 16);
    json_literal(out, "\"");
}

/* Sums of times wrap: they may be anything. */
static int64_t boot_time(const struct options *options, const struct image *image, uint64_t at_ns) {
    int64_t offset = options->have_boot ? options->boot_offset_ns : image->boot_offset_ns;
    return (int64_t)(at_ns + (uint64_t)offset);
}

/* Adds one reason, for people; the first of them makes the process partial. */
static void add_reason(struct buffer *out, bool *first, uint64_t count, const char *reason) {
    if (!*first)
        json_literal(out, "; ");
    *first = false;
    if (count != 0) {
        json_unsigned(out, count);
        json_literal(out, " ");
    }
    json_text(out, reason);
}

/* How completely an image was seen, with the fork it was (`before`, or NULL). */
static void write_coverage(struct buffer *out, const struct image *image,
                           const struct image *before) {
    const struct image none = {.hello = true};
    const struct image *fork = before != NULL ? before : &none;
    uint64_t removed = (uint64_t)image->removed_segments + fork->removed_segments;
    uint64_t gone_segments = (uint64_t)image->gone_segments + fork->gone_segments;
    uint64_t gone_records = image->gone_records + fork->gone_records;
    uint64_t lost = image->lost + fork->lost - gone_records;
    struct buffer reasons = {0};
    bool full = true;
    if (image->uncovered && image->self.exec_number == 0 && removed == 0)
        add_reason(&reasons, &full, 0, "forked by a program that is not covered");
    else if (image->no_room && removed == 0)
        add_reason(&reasons, &full, 0, "no room for its segment: their file system is full");
    else if (image->uncovered && image->unfinished && removed == 0)
        add_reason(&reasons, &full, 0, "it ended before it had said hello");
    else if (image->uncovered && image->filtered && removed == 0)
        add_reason(&reasons, &full, 0,
                   "it ran below a program's seccomp filter that kills for what recording needs");
    else if (image->uncovered && removed == 0)
        add_reason(&reasons, &full, 0, "no hello: a static, musl, 32-bit or set-id program");
    if (removed != 0)
        add_reason(&reasons, &full, removed, "of its segments were removed");
    if (lost != 0)
        add_reason(&reasons, &full, lost, "events lost: no room for segments");
    if (image->muted || fork->muted)
        add_reason(&reasons, &full, 0, "recording was switched off inside the world");
    if (image->quiet || fork->quiet)
        add_reason(&reasons, &full, 0,
                   "it installed a seccomp filter: from then on nothing may be recorded that needs "
                   "a system call");
    if (image->passed || fork->passed)
        add_reason(&reasons, &full, 0,
                   "it loaded a library that calls libc where nothing is recorded (dlmopen, "
                   "RTLD_DEEPBIND)");
    if (!image->uncovered && !image->silent && !image->hello)
        add_reason(&reasons, &full, 0, "its first segment is gone");
    else if (gone_segments != 0 && removed == 0)
        add_reason(&reasons, &full, gone_segments, "of its segments are gone");
    if (gone_records != 0)
        add_reason(&reasons, &full, gone_records, "records are gone, or more");
    key(out, "coverage");
    json_name(out, image->uncovered ? "none" : full ? "full" : "partial");
    key(out, "coverage_reason");
    json_literal(out, "\"");
    if (reasons.used != 0)
        json_raw(out, reasons.bytes, reasons.used);
    json_literal(out, "\"");
    free(reasons.bytes);
}

static void write_process(struct buffer *out, const struct options *options,
                          const struct images *images, uint32_t index) {
    const struct image *image = &images->list[index];
    const struct image *program = program_of(images, image);
    const struct image *before = index > 0 && image->self.exec_number > 0 &&
                                         images->list[image->process].next == index &&
                                         images->list[image->process].self.exec_number == 0
                                     ? &images->list[image->process]
                                     : NULL;
    json_literal(out, "{\"span_id\":");
    write_span_id(out, image->span, options);
    key(out, "parent_span");
    write_span_id(out, parent_span(images, image), options);
    key(out, "pid");
    json_signed(out, image->self.pid);
    key(out, "ppid");
    json_signed(out, image->ppid);
    number(out, "exec_no", image->exec_no);
    key(out, "start_ns");
    json_signed(out, boot_time(options, image, image->began_ns));
    key(out, "end_ns");
    if (image->ended || image->executed)
        json_signed(out, boot_time(options, image, image->end_ns));
    else
        json_literal(out, "null");
    key(out, "argv");
    write_argv(out, program->argv);
    key(out, "exe");
    json_bytes(out, program->exe.bytes, program->exe.length);
    key(out, "cwd");
    json_bytes(out, image->cwd.bytes, image->cwd.length);
    key(out, "exit_code");
    if (image->have_exit && image->signal == 0)
        json_signed(out, image->exit_code);
    else
        json_literal(out, "null");
    key(out, "signal");
    if (image->have_exit && image->signal != 0)
        json_signed(out, image->signal);
    else
        json_literal(out, "null");
    write_coverage(out, image, before);
    uint64_t lost = image->lost + (before != NULL ? before->lost : 0);
    number(out, "events", image->events + (before != NULL ? before->events : 0));
    number(out, "lost", lost);
    number(out, "umask", image->umask);
    number(out, "uid", image->uid);
    key(out, "source");
    json_name(out, image->kernel_start ? "kernel" : "self_reported");
    json_literal(out, "}");
}

static void write_processes(struct buffer *out, const struct options *options,
                            const struct images *images) {
    uint64_t listed = 0, covered = 0, total = 0;
    json_literal(out, "\"processes\":[");
    uint32_t count;
    uint32_t *order = images_in_order(images, &count);
    for (uint32_t position = 0; position < count; position++) {
        uint32_t i = order[position];
        if (merged_image(images, i) != i)
            continue;
        total++;
        covered += !images->list[i].uncovered;
        if (listed == options->max_processes)
            continue;
        if (listed++ != 0)
            json_literal(out, ",");
        write_process(out, options, images, i);
    }
    free(order);
    json_literal(out, "]");
    number(out, "processes_total", total);
    number(out, "processes_covered", covered);
}

/* What a caller may remove: the segments of processes that are known to have ended. */
static void write_files(struct buffer *out, const struct images *images,
                        const struct segments *segments) {
    bool *ended = allocate(images->count * sizeof(*ended)); /* by the process's first image */
    for (uint32_t i = 0; i < images->count; i++) {
        const struct image *image = &images->list[i];
        if (image->next == NONE)
            ended[image->process] = image->ended || image->reported_exit;
    }
    json_literal(out, "[");
    bool first = true;
    for (uint32_t i = 0; i < segments->count; i++) {
        const struct segment *segment = &segments->list[i];
        if (segment->image == NONE || !images->list[segment->image].selected)
            continue;
        if (!first)
            json_literal(out, ",");
        first = false;
        json_literal(out, "{\"name\":");
        json_name(out, segment->name);
        number(out, "bytes", segment->bytes);
        key(out, "pid");
        json_signed(out, segment->self.pid);
        number(out, "start_ticks", segment->self.start_ticks);
        key(out, "open");
        if (ended[images->list[segment->image].process])
            json_literal(out, "false}");
        else
            json_literal(out, "true}");
    }
    json_literal(out, "]");
    free(ended);
}

static uint64_t lost_events(const struct images *images) {
    uint64_t lost = 0;
    for (uint32_t i = 0; i < images->count; i++)
        lost += images->list[i].selected ? images->list[i].lost : 0;
    return lost;
}

static void write_ledger(struct buffer *out, const struct ledger *ledger,
                         const struct segments *segments) {
    uint64_t processes = 0;
    for (uint32_t i = 0; i < ledger->process_count; i++)
        processes += ledger->processes[i].selected;
    key(out, "ledger");
    json_literal(out, "{\"given\":");
    json_text(out, ledger->given ? "true" : "false");
    key(out, "used");
    json_text(out, ledger->used ? "true" : "false");
    key(out, "why");
    json_name(out, ledger->why);
    key(out, "source");
    json_name(out, !ledger->used                                 ? ""
                   : ledger->source == SUB_LEDGER_BPF            ? "bpf"
                   : ledger->source == SUB_LEDGER_PROC_CONNECTOR ? "proc_connector"
                                                                 : "other");
    key(out, "attested");
    json_text(out, ledger->used && ledger->attested ? "true" : "false");
    number(out, "lost", ledger->lost);
    number(out, "nameless", ledger->nameless);
    number(out, "processes", ledger->used ? processes : 0);
    number(out, "uncovered", ledger->uncovered);
    number(out, "unknown_processes", ledger->unknown);
    number(out, "forged_segments", segments->forged);
    number(out, "forged_events", segments->forged_events);
    number(out, "late_segments", segments->late);
    json_literal(out, "}");
}

void summary_write(struct summary *summary, const struct options *options,
                   const struct images *images, const struct segments *segments,
                   const struct ledger *ledger) {
    struct buffer out = {0};
    json_literal(&out, "{\"version\":1,");
    write_processes(&out, options, images);
    key(&out, "root_seen");
    json_text(&out, images->root_seen ? "true" : "false");
    number(&out, "unattributed", images->unattributed);
    key(&out, "counts");
    write_counts(&out, summary);
    number(&out, "lost", lost_events(images));
    number(&out, "torn", segments->torn);
    number(&out, "corrupt_segments", segments->corrupt);
    number(&out, "foreign_files", segments->foreign);
    number(&out, "unreadable_files", segments->unreadable);
    number(&out, "links_dropped", images->links_dropped);
    write_ledger(&out, ledger, segments);
    key(&out, "events");
    write_lines(&out, summary);
    number(&out, "events_not_kept", summary->not_kept);
    key(&out, "reads");
    write_paths(&out, &summary->reads);
    number(&out, "reads_beyond", summary->reads_beyond);
    key(&out, "writes");
    write_paths(&out, &summary->writes);
    number(&out, "writes_beyond", summary->writes_beyond);
    number(&out, "writes_unknown", summary->writes_unknown);
    key(&out, "hosts");
    write_hosts(&out, summary);
    number(&out, "hosts_beyond", summary->hosts_beyond);
    key(&out, "segments");
    write_files(&out, images, segments);
    json_literal(&out, "}\n");
    write_output(options->summary_fd, out.bytes, out.used, "cannot write the summary");
    free(out.bytes);
}
