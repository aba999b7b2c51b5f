/*
 * One record to one line, with the field names of the `syscall` family.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "writing.h"

void flush(struct writer *writer) {
    write_output(STDOUT_FILENO, writer->out.bytes, writer->out.used, "cannot write events");
    writer->out.used = 0;
}

void write_source(struct writer *writer, bool kernel) {
    json_raw(&writer->out, writer->suffix.bytes, writer->suffix.used);
    if (kernel)
        json_literal(&writer->out, ",\"source\":\"kernel\"}\n");
    else
        json_literal(&writer->out, ",\"source\":\"self_reported\"}\n");
}

/* --- parts of a line -------------------------------------------------------------------------- */

struct flag_name {
    int flag;
    const char *name;
};

#define O_TMPFILE_BIT (O_TMPFILE & ~O_DIRECTORY)
static const struct flag_name open_flags[] = {
    {O_CREAT, "O_CREAT"},       {O_EXCL, "O_EXCL"},           {O_NOCTTY, "O_NOCTTY"},
    {O_TRUNC, "O_TRUNC"},       {O_APPEND, "O_APPEND"},       {O_NONBLOCK, "O_NONBLOCK"},
    {O_DSYNC, "O_DSYNC"},       {O_DIRECT, "O_DIRECT"},       {O_DIRECTORY, "O_DIRECTORY"},
    {O_NOFOLLOW, "O_NOFOLLOW"}, {O_NOATIME, "O_NOATIME"},     {O_CLOEXEC, "O_CLOEXEC"},
    {O_PATH, "O_PATH"},         {O_TMPFILE_BIT, "O_TMPFILE"},
};

void write_open_flags(struct buffer *out, int flags) {
    static const char *const modes[] = {"\"O_RDONLY", "\"O_WRONLY", "\"O_RDWR", "\"O_ACCMODE"};
    json_text(out, modes[flags & ACCESS_BITS]);
    for (size_t i = 0; i < sizeof(open_flags) / sizeof(open_flags[0]); i++) {
        if ((flags & open_flags[i].flag) != 0) {
            json_literal(out, "|");
            json_text(out, open_flags[i].name);
        }
    }
    json_literal(out, "\"");
}

void write_argv(struct buffer *out, struct slice argv) {
    const char *at = argv.bytes, *end = argv.length != 0 ? argv.bytes + argv.length : at;
    json_literal(out, "[");
    for (bool first = true; at < end; first = false) {
        const char *zero = memchr(at, 0, (size_t)(end - at));
        size_t length = (size_t)((zero != NULL ? zero : end) - at);
        if (!first)
            json_literal(out, ",");
        json_bytes(out, at, length);
        at += length + 1;
    }
    json_literal(out, "]");
}

static int64_t utc_offset(const struct writer *writer, const struct image *image) {
    return writer->options->have_utc ? writer->options->utc_offset_ns : image->utc_offset_ns;
}

void write_time(const struct writer *writer, struct buffer *out, const struct image *image,
                uint64_t at_ns) {
    json_literal(out, "{\"ts\":");
    json_timestamp(out, (int64_t)(at_ns + (uint64_t)utc_offset(writer, image)));
}

static void write_span(struct buffer *out, const char *name, uint64_t span,
                       const struct options *options) {
    json_literal(out, ",\"");
    json_text(out, name);
    json_literal(out, "\":");
    if (span == 0) {
        json_bytes(out, options->span, strlen(options->span));
        return;
    }
    json_literal(out, "\"");
    json_hex(out, span, 16);
    json_literal(out, "\"");
}

void write_ids(struct writer *writer, const struct image *image, const char *type,
               const char *component) {
    struct buffer *out = &writer->out;
    const struct options *options = writer->options;
    json_literal(out, ",\"event_type\":");
    json_name(out, type);
    json_literal(out, ",\"session_id\":");
    json_bytes(out, options->session, strlen(options->session));
    json_literal(out, ",\"trace_id\":");
    json_bytes(out, options->trace, strlen(options->trace));
    write_span(out, "span_id", 0, options); /* the step's */
    write_span(out, "process_span", image->span, options);
    write_span(out, "parent_span", parent_span(writer->images, image), options);
    json_literal(out, ",\"component\":");
    json_name(out, component);
    json_literal(out, ",\"pid\":");
    json_signed(out, image->self.pid);
}

static void prepare_prefix(struct writer *writer, const struct image *image) {
    const struct options *options = writer->options;
    struct buffer *prefix = &writer->prefix;
    uint64_t parent = parent_span(writer->images, image);
    if (prefix->used != 0 && writer->prefix_span == image->span && writer->prefix_parent == parent)
        return;
    writer->prefix_span = image->span;
    writer->prefix_parent = parent;
    prefix->used = 0;
    json_literal(prefix, ",\"event_type\":\"syscall\",\"session_id\":");
    json_bytes(prefix, options->session, strlen(options->session));
    json_literal(prefix, ",\"trace_id\":");
    json_bytes(prefix, options->trace, strlen(options->trace));
    write_span(prefix, "span_id", 0, options); /* the step's */
    write_span(prefix, "process_span", image->span, options);
    write_span(prefix, "parent_span", parent, options);
    json_literal(prefix, ",\"component\":\"preload\",\"syscall\":\"");
}

/* --- arguments and details -------------------------------------------------------------------- */

static void write_octal(struct buffer *out, int mode) {
    char text[16];
    int length = snprintf(text, sizeof(text), "\"0%o\"", (unsigned)mode & 07777u);
    json_raw(out, text, (size_t)length);
}

static void write_number_argument(struct buffer *out, int number) {
    json_literal(out, "\"");
    json_signed(out, number);
    json_literal(out, "\",");
}

bool is_write_open(int flags) {
    return (flags & ACCESS_BITS) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0 ||
           (flags & O_TMPFILE_BIT) != 0;
}

/* "args":[...]: what was passed, as text, in the order of the call as far as it was recorded. */
static void write_arguments(struct buffer *out, const struct sub_record *record,
                            const struct fields *fields) {
    size_t start;
    json_literal(out, "\",\"args\":[");
    start = out->used;
    switch (record->type) {
    case SUB_OPEN:
    case SUB_MUTATE:
    case SUB_EXEC:
    case SUB_CHDIR:
        if (record->arg[0] != AT_FDCWD)
            write_number_argument(out, record->arg[0]);
        break;
    case SUB_CONNECT:
    case SUB_BIND:
    case SUB_ACCEPT:
    case SUB_DUP:
    case SUB_EXIT:
        write_number_argument(out, record->arg[0]);
        break;
    case SUB_LISTEN:
        write_number_argument(out, record->arg[0]);
        write_number_argument(out, record->arg[1]);
        break;
    case SUB_WAIT:
        write_number_argument(out, (int)record->result);
        break;
    default:
        break;
    }
    const struct slice *texts[] = {&fields->path, &fields->path2, &fields->name, &fields->service,
                                   &fields->mode};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (texts[i]->bytes != NULL) {
            json_bytes(out, texts[i]->bytes, texts[i]->length);
            json_literal(out, ",");
        }
    }
    if (record->type == SUB_OPEN) {
        write_open_flags(out, record->arg[1]);
        json_literal(out, ",");
        if ((record->arg[1] & O_CREAT) != 0) {
            write_octal(out, record->arg[2]);
            json_literal(out, ",");
        }
    } else if (record->type == SUB_MUTATE && record->arg[2] != 0) {
        write_octal(out, record->arg[2]);
        json_literal(out, ",");
    }
    if (out->used != start)
        out->used--; /* the last comma */
    json_literal(out, "]");
}

static void write_details(struct writer *writer, const struct sub_record *record,
                          const struct fields *fields, const struct event *event) {
    struct buffer *out = &writer->out;
    if (event->path.bytes != NULL) {
        json_literal(out, ",\"path\":");
        json_bytes(out, event->path.bytes, event->path.length);
    }
    if (event->path2.bytes != NULL) {
        json_literal(out, ",\"path2\":");
        json_bytes(out, event->path2.bytes, event->path2.length);
    }
    if (record->type == SUB_OPEN) {
        json_literal(out, ",\"flags\":");
        write_open_flags(out, record->arg[1]);
    }
    if (fields->argv.bytes != NULL) {
        json_literal(out, ",\"argv\":");
        write_argv(out, fields->argv);
    }
    if (fields->env_digest != NULL) {
        json_literal(out, ",\"env_digest\":\"");
        json_hex(out, *fields->env_digest, 16);
        json_literal(out, "\"");
    }
    if (record->type == SUB_SPAWN && writer->actions_json.used != 0) {
        json_literal(out, ",\"file_actions\":[");
        json_raw(out, writer->actions_json.bytes, writer->actions_json.used);
        json_literal(out, "]");
    }
    if (record->type != SUB_RESOLVE && fields->address_count > 0)
        write_address(out, fields->addresses[0]);
    if (fields->libraries.bytes != NULL) {
        json_literal(out, ",\"libraries\":");
        write_argv(out, fields->libraries);
    }
    if (record->type == SUB_RESOLVE) {
        json_literal(out, ",\"answers\":[");
        bool first = true;
        for (uint32_t i = 0; i < fields->address_count; i++) {
            uint16_t family, port;
            size_t start = out->used;
            if (!first)
                json_literal(out, ",");
            if (format_address(out, fields->addresses[i], &family, &port))
                first = false;
            else
                out->used = start;
        }
        json_literal(out, "]");
    }
    if ((record->flags & SUB_FLAG_TRUNCATED) != 0)
        json_literal(out, ",\"truncated\":true");
    if ((record->flags & SUB_FLAG_FAULT) != 0)
        json_literal(out, ",\"fault\":true");
}

void write_call(struct writer *writer, const struct image *image, const struct sub_record *record,
                const struct fields *fields, const struct event *event) {
    struct buffer *out = &writer->out;
    size_t start = out->used;
    prepare_prefix(writer, image);
    write_time(writer, out, image, record->start_ns);
    json_raw(out, writer->prefix.bytes, writer->prefix.used);
    json_text(out, operation_name(record->op));
    write_arguments(out, record, fields);
    json_literal(out, ",\"result\":");
    json_signed(out, record->result);
    json_literal(out, ",\"elapsed_us\":");
    json_decimal(out, (int64_t)(record->elapsed_ns & INT64_MAX), 3);
    if (record->error != 0) {
        const char *name = errno_name(record->error);
        json_literal(out, ",\"error\":\"");
        if (name != NULL)
            json_text(out, name);
        else
            json_signed(out, record->error);
        json_literal(out, "\"");
    }
    json_literal(out, ",\"pid\":");
    json_signed(out, image->self.pid);
    if (record->tid != (uint32_t)image->self.pid) {
        json_literal(out, ",\"tid\":");
        json_unsigned(out, record->tid);
    }
    write_details(writer, record, fields, event);
    write_source(writer, false);
    summary_event(writer->summary, event, out->bytes + start, out->used - start);
    if (out->used > FLUSH_BYTES)
        flush(writer);
}
