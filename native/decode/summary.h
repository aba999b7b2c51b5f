/*
 * What summary.c collects and report.c writes.
 */
#ifndef SUBSTRATE_DECODE_SUMMARY_H
#define SUBSTRATE_DECODE_SUMMARY_H

#include "decode.h"

/* Ranks of event lines, best first. */
enum rank {
    RANK_ALARM,
    RANK_MUTATION,
    RANK_NETWORK,
    RANK_PROCESS,
    RANK_OPEN,
    RANK_REST,
    RANK_COUNT
};

struct line {
    uint64_t at_ns;
    struct slice line; /* with its newline */
};

struct lines {
    struct line *list;
    uint32_t count;
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
    uint64_t totals[TOTAL_COUNT];
    struct text_set reads, writes;
    uint64_t reads_beyond, writes_beyond, writes_unknown;
    struct host *hosts;
    uint32_t host_count;
    uint64_t hosts_beyond;
#define ANSWERS_MAX 1024u
    struct answer *answers;
    uint32_t answer_count;
    struct text text;
};

#endif
