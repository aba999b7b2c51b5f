#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "decode.h"
#include "serve.h"

_Noreturn void die(const char *message) {
    fprintf(stderr, "substrate-decode: %s\n", message);
    exit(1);
}

_Noreturn void die_errno(const char *what) {
    fprintf(stderr, "substrate-decode: %s: %s\n", what, strerror(errno));
    exit(1);
}

static const char usage[] =
    "usage: substrate-decode --dirfd N [--session ID] [--trace ID] [--span ID] [--world ID]\n"
    "         [--root-pid PID] [--root-after NS] [--utc-offset NS] [--boot-offset NS]\n"
    "         [--watch PREFIX]... [--max-events N] [--max-reads N] [--max-writes N]\n"
    "         [--max-hosts N] [--max-processes N] [--ledger-fd N] [--classes MASK]\n"
    "         [--memory-limit BYTES] [--cpu-limit SECONDS] [--summary-fd N]\n"
    "Reads the segments in the directory open as N; events go to standard output, a summary to\n"
    "--summary-fd (3). Times are nanoseconds; offsets are added to CLOCK_MONOTONIC.\n"
    "With --serve N alone, the options of many such runs come through the socket N (serve.c).\n";

enum option_number {
    OPTION_DIRFD = 256,
    OPTION_SESSION,
    OPTION_TRACE,
    OPTION_SPAN,
    OPTION_WORLD,
    OPTION_ROOT_PID,
    OPTION_ROOT_AFTER,
    OPTION_SINCE,
    OPTION_UTC,
    OPTION_BOOT,
    OPTION_WATCH,
    OPTION_EVENTS,
    OPTION_READS,
    OPTION_WRITES,
    OPTION_HOSTS,
    OPTION_PROCESSES,
    OPTION_MEMORY,
    OPTION_CPU,
    OPTION_SUMMARY,
    OPTION_LEDGER,
    OPTION_CLASSES,
    OPTION_HELP,
};

static const struct option long_options[] = {
    {"dirfd", required_argument, NULL, OPTION_DIRFD},
    {"session", required_argument, NULL, OPTION_SESSION},
    {"trace", required_argument, NULL, OPTION_TRACE},
    {"span", required_argument, NULL, OPTION_SPAN},
    {"world", required_argument, NULL, OPTION_WORLD},
    {"root-pid", required_argument, NULL, OPTION_ROOT_PID},
    {"root-after", required_argument, NULL, OPTION_ROOT_AFTER},
    {"since", required_argument, NULL, OPTION_SINCE},
    {"utc-offset", required_argument, NULL, OPTION_UTC},
    {"boot-offset", required_argument, NULL, OPTION_BOOT},
    {"watch", required_argument, NULL, OPTION_WATCH},
    {"max-events", required_argument, NULL, OPTION_EVENTS},
    {"max-reads", required_argument, NULL, OPTION_READS},
    {"max-writes", required_argument, NULL, OPTION_WRITES},
    {"max-hosts", required_argument, NULL, OPTION_HOSTS},
    {"max-processes", required_argument, NULL, OPTION_PROCESSES},
    {"memory-limit", required_argument, NULL, OPTION_MEMORY},
    {"cpu-limit", required_argument, NULL, OPTION_CPU},
    {"summary-fd", required_argument, NULL, OPTION_SUMMARY},
    {"ledger-fd", required_argument, NULL, OPTION_LEDGER},
    {"classes", required_argument, NULL, OPTION_CLASSES},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static int64_t number_between(const char *name, const char *text, int64_t least, int64_t most) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 0);
    if (errno != 0 || end == text || *end != '\0' || value < least || value > most) {
        fprintf(stderr, "substrate-decode: --%s %s: give a whole number from %lld to %lld\n", name,
                text, (long long)least, (long long)most);
        exit(2);
    }
    return value;
}

static void take_option(struct options *options, int option, const char *name, const char *value) {
#define NUMBER(least, most) number_between(name, value, least, most)
    switch (option) {
    case OPTION_DIRFD:
        options->directory = (int)NUMBER(0, INT32_MAX);
        break;
    case OPTION_SESSION:
        options->session = value;
        break;
    case OPTION_TRACE:
        options->trace = value;
        break;
    case OPTION_SPAN:
        options->span = value;
        break;
    case OPTION_WORLD:
        options->world = value;
        break;
    case OPTION_ROOT_PID:
        options->have_root = true;
        options->root_pid = (int32_t)NUMBER(1, INT32_MAX);
        break;
    case OPTION_ROOT_AFTER:
        options->root_after_ns = (uint64_t)NUMBER(0, INT64_MAX);
        break;
    case OPTION_SINCE:
        options->since_ns = (uint64_t)NUMBER(0, INT64_MAX);
        break;
    case OPTION_UTC:
        options->have_utc = true;
        options->utc_offset_ns = NUMBER(INT64_MIN, INT64_MAX);
        break;
    case OPTION_BOOT:
        options->have_boot = true;
        options->boot_offset_ns = NUMBER(INT64_MIN, INT64_MAX);
        break;
    case OPTION_WATCH:
        options->watch[options->watch_count++] = (struct slice){value, (uint32_t)strlen(value)};
        break;
    case OPTION_EVENTS:
        options->max_events = (uint32_t)NUMBER(0, 1 << 16);
        break;
    case OPTION_READS:
        options->max_reads = (uint32_t)NUMBER(0, 1 << 22);
        break;
    case OPTION_WRITES:
        options->max_writes = (uint32_t)NUMBER(0, 1 << 22);
        break;
    case OPTION_HOSTS:
        options->max_hosts = (uint32_t)NUMBER(0, 1 << 16);
        break;
    case OPTION_PROCESSES:
        options->max_processes = (uint32_t)NUMBER(0, 1 << 20);
        break;
    case OPTION_MEMORY:
        options->memory_limit = (uint64_t)NUMBER(16 << 20, INT64_MAX);
        break;
    case OPTION_CPU:
        options->cpu_limit_s = (uint32_t)NUMBER(1, 1 << 20);
        break;
    case OPTION_SUMMARY:
        options->summary_fd = (int)NUMBER(0, INT32_MAX);
        break;
    case OPTION_LEDGER:
        options->ledger = (int)NUMBER(0, INT32_MAX);
        break;
    case OPTION_CLASSES:
        options->have_classes = true;
        options->classes = (uint32_t)NUMBER(0, UINT32_MAX);
        break;
    case OPTION_HELP:
        fputs(usage, stdout);
        exit(0);
    default:
        fputs(usage, stderr);
        exit(2);
    }
}

void options_parse(struct options *options, int argc, char **argv) {
    *options = (struct options){
        .directory = -1,
        .summary_fd = 3,
        .ledger = -1,
        .session = "",
        .trace = "",
        .span = "",
        .world = "",
        .max_events = 256,
        .max_reads = 65536,
        .max_writes = 65536,
        .max_hosts = 1024,
        .max_processes = 4096,
        .memory_limit = 1ULL << 30,
        .cpu_limit_s = 120,
    };
    int option, index = 0;
    options->watch = allocate(((size_t)argc + 1) * sizeof(*options->watch));
    while ((option = getopt_long(argc, argv, "", long_options, &index)) != -1)
        take_option(options, option, option >= OPTION_DIRFD ? long_options[index].name : "",
                    optarg);
    if (options->directory < 0 || optind != argc) {
        fputs(usage, stderr);
        exit(2);
    }
    if (fcntl(options->summary_fd, F_GETFL) < 0) {
        fprintf(stderr, "substrate-decode: descriptor %d for the summary is not open\n",
                options->summary_fd);
        exit(2);
    }
}

int main(int argc, char **argv) {
    struct options options;
    if (argc == 3 && strcmp(argv[1], "--serve") == 0)
        serve((int)number_between("serve", argv[2], 0, INT32_MAX));
    options_parse(&options, argc, argv);

    enter_sandbox(&options);

    decode_all(&options);
    return 0;
}
