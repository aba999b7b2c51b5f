/*
 * libFuzzer's way into the decoder: one input becomes some files and options, all of the decoder runs
 * over them, and everything that it writes must be JSON.
 *
 * An input is two bytes of options (see set_options), then parts: a byte that says what kind, two
 * for its length, and that many bytes. Segments and the ledger come as they would lie in a file, so
 * that nothing is out of reach, and in a compact form whose headers and lengths are always right, so
 * that most inputs get beyond them.
 *
 * This file stands in for main.c, files.c and sandbox.c. To die is a finding: no bytes may make the
 * decoder give up.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../decode/decode.h"
#include "json_check.h"
#include "ledger.h"

#define FILES_MAX 12
#define FILE_BYTES (1u << 16)
#define LEDGER_FILE FILES_MAX
#define DIRECTORY 1000
#define SUMMARY 1001

enum part { PART_SEGMENT, PART_MISNAMED, PART_LEDGER, PART_RECORDS, PART_KERNEL, PART_COUNT };

struct file {
    char name[SEGMENT_NAME_MAX];
    char *bytes; /* exactly as long as the file: reading beyond it is seen */
    uint32_t length;
};

static struct file files[FILES_MAX + 1];
static uint32_t file_count;
static struct buffer events, summary;

/* --- what the decoder asks of the system -------------------------------------------------------- */

_Noreturn void die(const char *message) {
    fprintf(stderr, "the decoder gave up: %s\n", message);
    abort();
}

_Noreturn void die_errno(const char *what) {
    die(what);
}

int file_open(int directory, const char *name, struct file_status *status) {
    if (directory != DIRECTORY)
        abort();
    for (uint32_t i = 0; i < file_count; i++) {
        if (strcmp(files[i].name, name) == 0) {
            status->bytes = files[i].length;
            status->owner = 0;
            return (int)i;
        }
    }
    return -ENOENT;
}

ssize_t file_read(int fd, void *to, size_t bytes, uint64_t at) {
    if (fd < 0 || (fd != LEDGER_FILE && (uint32_t)fd >= file_count))
        return -1;
    const struct file *file = &files[fd];
    if (at >= file->length)
        return 0;
    size_t there = file->length - (size_t)at;
    if (bytes > there)
        bytes = there;
    memcpy(to, file->bytes + at, bytes);
    return (ssize_t)bytes;
}

void file_close(int fd) {
    (void)fd;
}

void list_files(int directory, void (*take)(void *context, const char *name), void *context) {
    (void)directory;
    for (uint32_t i = 0; i < file_count; i++)
        take(context, files[i].name);
}

void write_output(int fd, const char *bytes, size_t length, const char *what) {
    (void)what;
    if (length != 0)
        json_raw(fd == SUMMARY ? &summary : &events, bytes, length);
}

/* --- from an input to files --------------------------------------------------------------------- */

struct input {
    const uint8_t *at, *end;
};

static uint64_t take(struct input *input, unsigned bytes) {
    uint64_t number = 0;
    for (unsigned i = 0; i < bytes && input->at < input->end; i++)
        number |= (uint64_t)*input->at++ << 8 * i;
    return number;
}

static void keep_file(uint32_t number, const void *bytes, size_t length) {
    struct file *file = &files[number];
    free(file->bytes);
    file->bytes = malloc(length != 0 ? length : 1);
    if (file->bytes == NULL)
        abort();
    memcpy(file->bytes, bytes, length);
    file->length = (uint32_t)length;
}

static void keep_segment(const void *bytes, size_t length, bool misnamed) {
    struct sub_segment header;
    if (file_count == FILES_MAX)
        return;
    struct file *file = &files[file_count];
    keep_file(file_count++, bytes, length);
    snprintf(file->name, sizeof(file->name), "part-%u", file_count);
    if (length < sizeof(header) || misnamed)
        return;
    memcpy(&header, bytes, sizeof(header));
    segment_name(file->name, &header.self, header.chain, header.index);
}

/* A short record, of the numbers of a long one. */
static void build_look(struct buffer *out, struct input *input, const struct sub_record *record) {
    static const char zeros[8];
    struct sub_look look = {.type = SUB_LOOK,
                            .bytes = (uint16_t)take(input, 1),
                            .calls = record->tid,
                            .failed = record->flags,
                            .dirfd = record->arg[0],
                            .last = (uint32_t)record->elapsed_ns};
    if (look.bytes > (size_t)(input->end - input->at))
        look.bytes = (uint16_t)(input->end - input->at);
    look.length = (uint32_t)sizeof(look) + ((look.bytes + 7u) & ~7u);
    json_raw(out, (const char *)&look, sizeof(look));
    if (look.bytes != 0)
        json_raw(out, (const char *)input->at, look.bytes);
    json_raw(out, zeros, -look.bytes & 7u);
    input->at += look.bytes;
}

/* A record with any content in room of the right size. */
static void build_record(struct buffer *out, struct input *input) {
    struct sub_record record = {.type = (uint16_t)take(input, 1), .op = (uint16_t)take(input, 2)};
    uint32_t fields = (uint32_t)take(input, 1) % 6;
    record.flags = (uint32_t)take(input, 1);
    record.tid = (uint32_t)take(input, 1);
    record.start_ns = take(input, 2);
    record.elapsed_ns = take(input, 1);
    record.result = (int8_t)take(input, 1);
    record.error = (int32_t)take(input, 1);
    record.sequence = (uint32_t)take(input, 1);
    for (int i = 0; i < 4; i++)
        record.arg[i] = (int8_t)take(input, 1);
    if (record.arg[0] == -1)
        record.arg[0] = -100; /* AT_FDCWD */
    if (record.type == SUB_LOOK) {
        build_look(out, input, &record);
        return;
    }
    size_t start = out->used;
    json_raw(out, (const char *)&record, sizeof(record));
    for (uint32_t i = 0; i < fields; i++) {
        static const char zeros[8];
        struct sub_field field = {.tag = (uint16_t)take(input, 1),
                                  .bytes = (uint32_t)take(input, 1)};
        if (field.bytes > (size_t)(input->end - input->at))
            field.bytes = (uint32_t)(input->end - input->at);
        json_raw(out, (const char *)&field, sizeof(field));
        if (field.bytes != 0)
            json_raw(out, (const char *)input->at, field.bytes);
        json_raw(out, zeros, -field.bytes & 7u);
        input->at += field.bytes;
    }
    uint32_t length = (uint32_t)(out->used - start);
    memcpy(out->bytes + start, &length, sizeof(length));
}

static void build_segment(struct input *input) {
    struct buffer out = {0};
    struct sub_segment header = {
        .magic = SUB_SEGMENT_MAGIC,
        .version = SUB_SEGMENT_VERSION,
        .header_bytes = sizeof(header),
        .size = FILE_BYTES,
        .self = {.pid_namespace = 7,
                 .pid = (int32_t)take(input, 1),
                 .exec_number = (uint32_t)take(input, 1),
                 .start_ticks = take(input, 1)},
        .chain = (uint32_t)take(input, 1),
        .index = (uint32_t)take(input, 1),
        .created_ns = take(input, 2),
        .state = (uint32_t)take(input, 1),
        .flags = (uint32_t)take(input, 1),
        .first_sequence = (uint32_t)take(input, 1),
        .classes_off = (uint32_t)take(input, 1),
        .lost = take(input, 1),
    };
    if ((header.state & 0x80u) != 0)
        header.version = SUB_SEGMENT_VERSION_BEFORE;
    json_raw(&out, (const char *)&header, sizeof(header));
    while (input->at < input->end && out.used < FILE_BYTES)
        build_record(&out, input);
    keep_segment(out.bytes, out.used, false);
    free(out.bytes);
}

static void build_ledger(struct input *input) {
    struct buffer out = {0};
    uint8_t bits = (uint8_t)take(input, 1);
    struct sub_ledger_header header = {
        .magic = SUB_LEDGER_MAGIC,
        .version = SUB_LEDGER_VERSION,
        .header_bytes = sizeof(header),
        .record_bytes = sizeof(struct sub_ledger_record),
        .source = bits >> 4,
        .segments_attested = bits & 1,
        .pid_namespace = (bits & 2) != 0 ? 7 : 0,
        .first = (bits & 4) != 0 ? sizeof(header) + sizeof(struct sub_ledger_record) : 0,
    };
    json_raw(&out, (const char *)&header, sizeof(header));
    while (input->at < input->end && out.used < FILE_BYTES) {
        struct sub_ledger_record record = {.type = (uint16_t)take(input, 1)};
        record.flags = (uint16_t)take(input, 1);
        record.time_ns = take(input, 2);
        record.pid = (int32_t)take(input, 1);
        record.parent = (int32_t)take(input, 1);
        record.host_pid = (int32_t)take(input, 1);
        record.host_parent = (int32_t)take(input, 1);
        record.status = (int32_t)take(input, 2);
        record.value = (uint32_t)take(input, 1);
        if (record.type >= SUB_LEDGER_SEGMENT && file_count != 0) {
            const struct file *file = &files[record.value % file_count];
            memcpy(record.name, file->name, strnlen(file->name, SUB_LEDGER_NAME));
        } else {
            for (uint32_t i = 0; i < (record.value & 15); i++)
                record.name[i] = (char)take(input, 1);
        }
        json_raw(&out, (const char *)&record, sizeof(record));
    }
    keep_file(LEDGER_FILE, out.bytes, out.used);
    free(out.bytes);
}

static void take_part(struct input *input) {
    enum part kind = (enum part)(take(input, 1) % PART_COUNT);
    size_t length = (size_t)take(input, 2);
    if (length > (size_t)(input->end - input->at))
        length = (size_t)(input->end - input->at);
    struct input part = {input->at, input->at + length};
    input->at += length;
    switch (kind) {
    case PART_SEGMENT:
    case PART_MISNAMED:
        keep_segment(part.at, length, kind == PART_MISNAMED);
        break;
    case PART_LEDGER:
        keep_file(LEDGER_FILE, part.at, length);
        break;
    case PART_RECORDS:
        build_segment(&part);
        break;
    default:
        build_ledger(&part);
        break;
    }
}

static struct options set_options(struct input *input, struct slice *watch) {
    uint8_t bits = (uint8_t)take(input, 1), number = (uint8_t)take(input, 1);
    struct options options = {
        .directory = DIRECTORY,
        .summary_fd = SUMMARY,
        .ledger = (bits & 1) != 0 ? LEDGER_FILE : -1,
        .session = "session",
        .trace = "trace",
        .span = "span",
        .world = "world",
        .have_root = (bits & 2) != 0,
        .root_pid = number % 16 + 1,
        .root_after_ns = (bits & 4) != 0 ? number : 0,
        .have_classes = (bits & 8) != 0,
        .classes = number,
        .have_utc = (bits & 16) != 0,
        .utc_offset_ns = (bits & 16) != 0 ? INT64_MAX - number : 0,
        .have_boot = (bits & 16) != 0,
        .boot_offset_ns = (bits & 16) != 0 ? INT64_MIN + number : 0,
        .max_events = (bits & 32) != 0 ? 3 : 64,
        .max_reads = (bits & 32) != 0 ? 3 : 4096,
        .max_writes = (bits & 32) != 0 ? 3 : 4096,
        .max_hosts = (bits & 32) != 0 ? 1 : 8,
        .max_processes = (bits & 32) != 0 ? 2 : 4096,
        .watch = watch,
        .watch_count = (bits & 64) != 0,
    };
    return options;
}

/* --- the run ------------------------------------------------------------------------------------ */

static void check(const struct buffer *text, const char *what) {
    const char *at = text->bytes, *end = text->bytes + text->used;
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (newline == NULL || *at != '{' || !is_json(at, (size_t)(newline - at))) {
            fprintf(stderr, "%s: not a line of JSON: %.*s\n", what, (int)(end - at), at);
            abort();
        }
        at = newline + 1;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    struct input input = {data, data + length};
    struct slice watch = {"/w", 2};
    struct options options = set_options(&input, &watch);
    file_count = 0;
    keep_file(LEDGER_FILE, "", 0);
    while (input.at < input.end)
        take_part(&input);
    events.used = summary.used = 0;
    decode_all(&options);
    if (events.used != 0)
        check(&events, "events");
    if (summary.used == 0)
        abort();
    check(&summary, "summary");
    return 0;
}
