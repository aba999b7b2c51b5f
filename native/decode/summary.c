/*
 * What is kept of all events: counts, the lines that matter most, the files read, the hosts spoken
 * to, the processes, and what was not covered. Bounded, whatever a program writes.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "decode.h"

/* Ranks of event lines, best first. */
enum rank { RANK_ALARM, RANK_MUTATION, RANK_NETWORK, RANK_PROCESS, RANK_OPEN, RANK_COUNT };

struct line {
    uint64_t at_ns;
    char *bytes;
    size_t length;
};

struct lines {
    struct line *list;
    uint32_t count;
};

struct text_set {
    uint64_t *hashes;
    struct slice *texts;
    uint32_t used, size;
};

struct host {
    char address[SUB_STRING_MAX / 8]; /* as JSON */
    struct slice name;
    uint16_t family, port;
    uint64_t count, failed;
    int32_t last_error;
};

struct answer {
    char address[64]; /* as JSON */
    struct slice name;
};

struct summary {
    const struct options *options;
    uint64_t counts[CLASS_COUNT];
    uint64_t failed, events, bytes;
    struct lines ranks[RANK_COUNT];
    uint64_t not_kept;
    struct text_set reads;
    uint64_t reads_beyond;
    struct host *hosts;
    uint32_t host_count;
    uint64_t hosts_beyond;
#define ANSWERS_MAX 1024u
    struct answer *answers;
    uint32_t answer_count;
};

static struct slice keep(struct slice from) {
    struct slice to = {NULL, from.length};
    if (from.length == 0)
        return to;
    char *bytes = malloc(from.length);
    if (bytes == NULL)
        die("out of memory: raise --memory-limit");
    memcpy(bytes, from.bytes, from.length);
    to.bytes = bytes;
    return to;
}

struct summary *summary_new(const struct options *options) {
    struct summary *summary = allocate(sizeof(*summary));
    summary->options = options;
    for (int i = 0; i < RANK_COUNT; i++)
        summary->ranks[i].list = allocate((options->max_events + 1) * sizeof(struct line));
    summary->hosts = allocate((options->max_hosts + 1) * sizeof(struct host));
    summary->answers = allocate(ANSWERS_MAX * sizeof(struct answer));
    return summary;
}

/* --- lines ------------------------------------------------------------------------------------ */

static bool is_below(struct slice path, struct slice prefix) {
    while (prefix.length > 1 && prefix.bytes[prefix.length - 1] == '/')
        prefix.length--;
    if (path.length < prefix.length || prefix.length == 0 ||
        memcmp(path.bytes, prefix.bytes, prefix.length) != 0)
        return false;
    return path.length == prefix.length || prefix.length == 1 || path.bytes[prefix.length] == '/';
}

static bool is_watched(const struct options *options, const struct event *event) {
    for (uint32_t i = 0; i < options->watch_count; i++) {
        if (is_below(event->path, options->watch[i]) || is_below(event->path2, options->watch[i]))
            return true;
    }
    return false;
}

static enum rank rank_of(const struct options *options, const struct event *event) {
    if (event->error == EACCES || event->error == EPERM || is_watched(options, event))
        return RANK_ALARM;
    switch (event->class) {
    case CLASS_MUTATE:
    case CLASS_OPEN_WRITE:
        return RANK_MUTATION;
    case CLASS_CONNECT:
    case CLASS_RESOLVE:
        return RANK_NETWORK;
    case CLASS_EXEC:
    case CLASS_SPAWN:
    case CLASS_FORK:
    case CLASS_EXIT:
    case CLASS_WAIT:
        return RANK_PROCESS;
    default:
        return RANK_OPEN;
    }
}

void summary_event(struct summary *summary, const struct event *event, const char *line,
                   size_t length) {
    summary->counts[event->class]++;
    summary->events++;
    summary->bytes += length;
    summary->failed += event->error != 0;
    struct lines *lines = &summary->ranks[rank_of(summary->options, event)];
    if (lines->count == summary->options->max_events || length > SUB_RECORD_MAX) {
        summary->not_kept++;
        return;
    }
    struct slice copy = keep((struct slice){line, (uint32_t)length});
    struct line *kept = &lines->list[lines->count++];
    kept->at_ns = event->at_ns;
    kept->bytes = (char *)(uintptr_t)copy.bytes;
    kept->length = length;
}

static int compare_lines(const void *left, const void *right) {
    const struct line *a = left, *b = right;
    return a->at_ns < b->at_ns ? -1 : a->at_ns > b->at_ns;
}

/* --- reads ------------------------------------------------------------------------------------ */

static uint64_t hash_of(struct slice text) {
    uint64_t hash = 0xcbf29ce484222325ULL;
    const char *at = text.bytes;
    uint32_t left = text.length;
    for (; left >= 8; at += 8, left -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
        hash ^= hash >> 32;
    }
    for (; left > 0; at++, left--)
        hash = (hash ^ (unsigned char)*at) * 0x100000001b3ULL;
    hash ^= hash >> 29;
    return hash | 1; /* 0 is an empty place */
}

static void grow_set(struct text_set *set) {
    struct text_set bigger = {.size = set->size != 0 ? set->size * 2 : 1024};
    bigger.hashes = allocate(bigger.size * sizeof(*bigger.hashes));
    bigger.texts = allocate(bigger.size * sizeof(*bigger.texts));
    for (uint32_t i = 0; i < set->size; i++) {
        if (set->hashes[i] == 0)
            continue;
        uint32_t at = (uint32_t)set->hashes[i] & (bigger.size - 1);
        while (bigger.hashes[at] != 0)
            at = (at + 1) & (bigger.size - 1);
        bigger.hashes[at] = set->hashes[i];
        bigger.texts[at] = set->texts[i];
    }
    bigger.used = set->used;
    free(set->hashes);
    free(set->texts);
    *set = bigger;
}

void summary_read(struct summary *summary, struct slice path) {
    struct text_set *set = &summary->reads;
    if (set->used * 2 >= set->size)
        grow_set(set);
    uint64_t hash = hash_of(path);
    uint32_t at = (uint32_t)hash & (set->size - 1);
    while (set->hashes[at] != 0) {
        if (set->hashes[at] == hash && set->texts[at].length == path.length &&
            memcmp(set->texts[at].bytes, path.bytes, path.length) == 0)
            return;
        at = (at + 1) & (set->size - 1);
    }
    if (set->used == summary->options->max_reads) {
        summary->reads_beyond++;
        return;
    }
    set->hashes[at] = hash;
    set->texts[at] = keep(path);
    set->used++;
}

/* --- hosts ------------------------------------------------------------------------------------ */

void summary_answer(struct summary *summary, struct slice name, struct slice address) {
    struct buffer text = {0};
    uint16_t family, port;
    if (name.length != 0 && format_address(&text, address, &family, &port) && text.used < 64) {
        uint32_t i = 0;
        while (i < summary->answer_count &&
               (strlen(summary->answers[i].address) != text.used ||
                memcmp(summary->answers[i].address, text.bytes, text.used) != 0))
            i++;
        if (i == summary->answer_count && i < ANSWERS_MAX) {
            memcpy(summary->answers[i].address, text.bytes, text.used);
            summary->answers[i].name = keep(name);
            summary->answer_count++;
        }
    }
    free(text.bytes);
}

static struct slice name_of(const struct summary *summary, const char *address) {
    for (uint32_t i = 0; i < summary->answer_count; i++) {
        if (strcmp(summary->answers[i].address, address) == 0)
            return summary->answers[i].name;
    }
    return (struct slice){NULL, 0};
}

void summary_host(struct summary *summary, struct slice address, int32_t error) {
    struct buffer text = {0};
    uint16_t family, port;
    bool refused = error != 0 && error != EINPROGRESS;
    if (!format_address(&text, address, &family, &port) && family == AF_UNIX) {
        const char *name = address.bytes + sizeof(family);
        size_t length = address.length - sizeof(family);
        size_t shown = length > 0 && name[0] == '\0' ? length : strnlen(name, length);
        json_bytes(&text, name, shown);
    }
    if (text.used == 0 || text.used >= sizeof(summary->hosts[0].address)) {
        free(text.bytes);
        return;
    }
    json_raw(&text, "", 1);
    uint32_t i = 0;
    while (i < summary->host_count &&
           (summary->hosts[i].port != port || summary->hosts[i].family != family ||
            strcmp(summary->hosts[i].address, text.bytes) != 0))
        i++;
    if (i == summary->options->max_hosts) {
        summary->hosts_beyond++;
    } else {
        struct host *host = &summary->hosts[i];
        if (i == summary->host_count) {
            summary->host_count++;
            memcpy(host->address, text.bytes, text.used);
            host->family = family;
            host->port = port;
            host->name = name_of(summary, host->address);
        }
        host->count++;
        host->failed += refused;
        if (refused)
            host->last_error = error;
    }
    free(text.bytes);
}

/* --- writing ---------------------------------------------------------------------------------- */

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
        "open_failed", "mutate", "connect", "resolve", "chdir", "other",
    };
    json_literal(out, "{\"events\":");
    json_unsigned(out, summary->events);
    number(out, "failed", summary->failed);
    for (int i = 0; i < CLASS_COUNT; i++) {
        if (summary->counts[i] != 0)
            number(out, names[i], summary->counts[i]);
    }
    json_literal(out, "}");
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
        json_raw(out, chosen[i].bytes, chosen[i].length - 1); /* without its newline */
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

static void write_reads(struct buffer *out, const struct summary *summary) {
    const struct text_set *set = &summary->reads;
    struct slice *sorted = allocate((set->used + 1) * sizeof(*sorted));
    uint32_t count = 0;
    for (uint32_t i = 0; i < set->size; i++) {
        if (set->hashes[i] != 0)
            sorted[count++] = set->texts[i];
    }
    if (count != 0)
        qsort(sorted, count, sizeof(*sorted), compare_texts);
    json_literal(out, "[");
    for (uint32_t i = 0; i < count; i++) {
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
    number(out, "exec_no", image->self.exec_number);
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
    key(out, "coverage");
    uint64_t lost = image->lost + (before != NULL ? before->lost : 0);
    if (image->uncovered) {
        json_literal(out, "\"none\",\"coverage_reason\":\"no hello: a static, musl, 32-bit or "
                          "set-id program\"");
    } else if (lost != 0) {
        json_literal(out, "\"partial\",\"coverage_reason\":\"");
        json_unsigned(out, lost);
        json_literal(out, " events lost: no room for segments\"");
    } else if (image->quiet) {
        json_literal(out, "\"partial\",\"coverage_reason\":\"it installed a seccomp filter: from "
                          "then on nothing may be recorded that needs a system call\"");
    } else if (!image->hello) {
        json_literal(out, "\"partial\",\"coverage_reason\":\"its first segment is gone\"");
    } else {
        json_literal(out, "\"full\",\"coverage_reason\":\"\"");
    }
    number(out, "events", image->events + (before != NULL ? before->events : 0));
    number(out, "lost", lost);
    number(out, "umask", image->umask);
    number(out, "uid", image->uid);
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
    json_literal(out, "[");
    bool first = true;
    for (uint32_t i = 0; i < segments->count; i++) {
        const struct segment *segment = &segments->list[i];
        if (segment->image == NONE || !images->list[segment->image].selected)
            continue;
        uint32_t last = segment->image;
        while (images->list[last].next != NONE)
            last = images->list[last].next;
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
        if (images->list[last].ended || images->list[last].reported_exit)
            json_literal(out, "false}");
        else
            json_literal(out, "true}");
    }
    json_literal(out, "]");
}

static uint64_t lost_events(const struct images *images) {
    uint64_t lost = 0;
    for (uint32_t i = 0; i < images->count; i++)
        lost += images->list[i].selected ? images->list[i].lost : 0;
    return lost;
}

void summary_write(struct summary *summary, const struct options *options,
                   const struct images *images, const struct segments *segments) {
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
    key(&out, "events");
    write_lines(&out, summary);
    number(&out, "events_not_kept", summary->not_kept);
    key(&out, "reads");
    write_reads(&out, summary);
    number(&out, "reads_beyond", summary->reads_beyond);
    key(&out, "hosts");
    write_hosts(&out, summary);
    number(&out, "hosts_beyond", summary->hosts_beyond);
    key(&out, "segments");
    write_files(&out, images, segments);
    json_literal(&out, "}\n");
    size_t done = 0;
    while (done < out.used) {
        ssize_t written = write(options->summary_fd, out.bytes + done, out.used - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            die_errno("cannot write the summary");
        done += (size_t)written;
    }
    free(out.bytes);
}
