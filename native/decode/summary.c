/*
 * What is kept of all events: counts, the lines that matter most, the files read and written, the
 * hosts spoken to. Bounded, whatever a program writes.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "summary.h"

struct summary *summary_new(const struct options *options) {
    struct summary *summary = allocate(sizeof(*summary));
    summary->options = options;
    for (int i = 0; i < RANK_COUNT; i++)
        summary->ranks[i].list = allocate((options->max_events + 1) * sizeof(struct line));
    summary->hosts = allocate((options->max_hosts + 1) * sizeof(struct host));
    summary->answers = allocate(ANSWERS_MAX * sizeof(struct answer));
    return summary;
}

void summary_free(struct summary *summary) {
    for (int i = 0; i < RANK_COUNT; i++)
        free(summary->ranks[i].list);
    free(summary->hosts);
    free(summary->answers);
    set_free(&summary->reads);
    set_free(&summary->writes);
    text_free(&summary->text);
    free(summary);
}

/* --- lines ------------------------------------------------------------------------------------ */

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
    case CLASS_BIND:
    case CLASS_LISTEN:
    case CLASS_ACCEPT:
        return RANK_NETWORK;
    case CLASS_EXEC:
    case CLASS_SPAWN:
    case CLASS_FORK:
    case CLASS_EXIT:
    case CLASS_WAIT:
        return RANK_PROCESS;
    case CLASS_DUP:
    case CLASS_THREAD:
    case CLASS_LOAD:
    case CLASS_OTHER:
        return RANK_REST;
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
    struct line *kept = &lines->list[lines->count++];
    kept->at_ns = event->at_ns;
    kept->line = text_keep(&summary->text, (struct slice){line, (uint32_t)length}, UINT32_MAX);
}

/* A program may have written any number: sums stop at the largest that all readers can hold. */
void summary_total(struct summary *summary, enum total total, uint64_t more) {
    uint64_t *to = &summary->totals[total];
    *to = more > INT64_MAX - *to ? INT64_MAX : *to + more;
}

/* --- files ------------------------------------------------------------------------------------ */

void summary_read(struct summary *summary, struct slice path) {
    if (set_add(&summary->reads, path, summary->options->max_reads) == NONE)
        summary->reads_beyond++;
}

void summary_wrote(struct summary *summary, struct slice path) {
    if (!is_absolute(path))
        summary->writes_unknown++;
    else if (set_add(&summary->writes, path, summary->options->max_writes) == NONE)
        summary->writes_beyond++;
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
            summary->answers[i].name = text_keep(&summary->text, name, SUB_STRING_MAX);
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
