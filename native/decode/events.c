/*
 * From records to event lines: one JSON object a line, with the field names of the `syscall`,
 * `world_process_start` and `world_process_exit` families.
 */
#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "decode.h"

#define PATH_BYTES (3u * SUB_STRING_MAX)
#define FLUSH_BYTES (1u << 20)
#define CHAINS_AT_ONCE 128u
#define ACTION_KEYS 64u
#define ACTION_BYTES 8192u

/* File actions that were asked for and wait for their posix_spawn. */
struct actions {
    uint64_t key;
    struct buffer json;
};

struct writer {
    struct images *images;
    struct segments *segments;
    const struct options *options;
    struct summary *summary;
    struct places *places;   /* of the image */
    struct sub_record *exec; /* the last exec, kept until it is known whether it came back */
    bool have_exec;
    uint32_t exec_image;
    struct buffer out;
    struct buffer prefix; /* between "ts" and the operation's name, for the current span */
    struct buffer suffix; /* what ends every line */
    uint64_t prefix_span, prefix_parent;
    char cwd[SUB_STRING_MAX];
    uint32_t cwd_length;
    char child_cwd[SUB_STRING_MAX]; /* of the vfork child that ran last */
    uint32_t child_cwd_length;
    uint32_t child_tid;
    char path[PATH_BYTES], path2[PATH_BYTES];
    struct actions actions[ACTION_KEYS];
    uint32_t action_next;
};

static void flush(struct writer *writer) {
    size_t done = 0;
    while (done < writer->out.used) {
        ssize_t written = write(STDOUT_FILENO, writer->out.bytes + done, writer->out.used - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            die_errno("cannot write events");
        done += (size_t)written;
    }
    writer->out.used = 0;
}

/* --- paths ------------------------------------------------------------------------------------ */

/* Appends the components of `path` to `to`, without ".", "..", and doubled slashes. */
static uint32_t append_components(char *to, uint32_t used, struct slice path) {
    const char *at = path.bytes, *end = path.bytes + path.length;
    while (at < end) {
        const char *slash = memchr(at, '/', (size_t)(end - at));
        size_t length = (size_t)((slash != NULL ? slash : end) - at);
        if (length == 2 && at[0] == '.' && at[1] == '.') {
            while (used > 0 && to[--used] != '/') {
            }
        } else if (length != 0 && !(length == 1 && at[0] == '.') &&
                   used + length + 2 < PATH_BYTES) {
            to[used++] = '/';
            memcpy(to + used, at, length);
            used += (uint32_t)length;
        }
        at += length + 1;
    }
    return used;
}

/*
 * An absolute path from what the program passed: symbolic links are not followed, ".." takes the
 * name before it away. Without a known base a relative path stays as it is.
 */
static struct slice absolute(char *to, struct slice base, struct slice path) {
    struct slice result = {to, 0};
    if (path.length == 0 || path.bytes[0] != '/') {
        if (base.length == 0 || base.bytes[0] != '/')
            return path;
        result.length = append_components(to, 0, base);
    }
    result.length = append_components(to, result.length, path);
    if (result.length == 0)
        to[result.length++] = '/';
    return result;
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

/* musl's O_ACCMODE has O_PATH in it. */
#define ACCESS_BITS 3

static void write_open_flags(struct buffer *out, int flags) {
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
    const char *at = argv.bytes, *end = argv.bytes + argv.length;
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

bool format_address(struct buffer *out, struct slice address, uint16_t *family, uint16_t *port) {
    char text[INET6_ADDRSTRLEN];
    *family = 0;
    *port = 0;
    if (address.length < sizeof(*family))
        return false;
    memcpy(family, address.bytes, sizeof(*family));
    if (*family == AF_INET && address.length >= sizeof(struct sockaddr_in)) {
        struct sockaddr_in in;
        memcpy(&in, address.bytes, sizeof(in));
        inet_ntop(AF_INET, &in.sin_addr, text, sizeof(text));
        *port = ntohs(in.sin_port);
    } else if (*family == AF_INET6 &&
               address.length >= offsetof(struct sockaddr_in6, sin6_scope_id)) {
        struct sockaddr_in6 in = {0};
        memcpy(&in, address.bytes, address.length < sizeof(in) ? address.length : sizeof(in));
        inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof(text));
        *port = ntohs(in.sin6_port);
    } else {
        return false;
    }
    json_name(out, text);
    return true;
}

static void write_address(struct buffer *out, struct slice address) {
    uint16_t family, port;
    size_t start = out->used;
    json_literal(out, ",\"address\":");
    if (format_address(out, address, &family, &port)) {
        json_literal(out, ",\"port\":");
        json_unsigned(out, port);
        if (family == AF_INET)
            json_literal(out, ",\"family\":\"AF_INET\"");
        else
            json_literal(out, ",\"family\":\"AF_INET6\"");
        return;
    }
    out->used = start;
    if (family == AF_UNIX) {
        const char *name = address.bytes + sizeof(family);
        size_t length = address.length - sizeof(family);
        json_literal(out, ",\"family\":\"AF_UNIX\",\"address\":");
        if (length > 0 && name[0] == '\0') {
            json_bytes(out, name, length); /* abstract: the zero shows */
        } else {
            const char *zero = memchr(name, 0, length);
            json_bytes(out, name, zero != NULL ? (size_t)(zero - name) : length);
        }
        return;
    }
    json_literal(out, ",\"family\":\"");
    json_unsigned(out, family);
    json_literal(out, "\"");
}

static int64_t utc_offset(const struct writer *writer, const struct image *image) {
    return writer->options->have_utc ? writer->options->utc_offset_ns : image->utc_offset_ns;
}

static void write_time(const struct writer *writer, struct buffer *out, const struct image *image,
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

static bool is_write_open(int flags) {
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
    case SUB_EXIT:
        write_number_argument(out, record->arg[0]);
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

static struct actions *find_actions(struct writer *writer, uint64_t key, bool make) {
    for (uint32_t i = 0; i < ACTION_KEYS; i++) {
        if (writer->actions[i].key == key && writer->actions[i].json.bytes != NULL)
            return &writer->actions[i];
    }
    if (!make)
        return NULL;
    struct actions *actions = &writer->actions[writer->action_next++ % ACTION_KEYS];
    actions->key = key;
    actions->json.used = 0;
    buffer_reserve(&actions->json, 256);
    return actions;
}

static void take_action(struct writer *writer, const struct sub_record *record,
                        const struct fields *fields) {
    static const char *const names[] = {"",      "open",   "close",    "dup2",
                                        "chdir", "fchdir", "closefrom"};
    int32_t kind = record->arg[0];
    if (fields->key == NULL)
        return;
    struct actions *actions = find_actions(writer, *fields->key, true);
    struct buffer *out = &actions->json;
    if (kind <= SUB_ACTION_INIT || kind >= SUB_ACTION_DESTROY) {
        out->used = 0;
        return;
    }
    if (out->used > ACTION_BYTES)
        return;
    if (out->used != 0)
        json_literal(out, ",");
    json_literal(out, "{\"action\":");
    json_name(out, names[kind]);
    if (record->arg[1] >= 0) {
        json_literal(out, ",\"fd\":");
        json_signed(out, record->arg[1]);
    }
    if (kind == SUB_ACTION_DUP2) {
        json_literal(out, ",\"to\":");
        json_signed(out, record->arg[2]);
    }
    if (fields->path.bytes != NULL) {
        json_literal(out, ",\"path\":");
        json_bytes(out, fields->path.bytes, fields->path.length);
    }
    if (kind == SUB_ACTION_OPEN) {
        json_literal(out, ",\"flags\":");
        write_open_flags(out, record->arg[2]);
    }
    json_literal(out, "}");
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
    if (record->type == SUB_SPAWN && fields->key != NULL) {
        const struct actions *actions = find_actions(writer, *fields->key, false);
        if (actions != NULL && actions->json.used != 0) {
            json_literal(out, ",\"file_actions\":[");
            json_raw(out, actions->json.bytes, actions->json.used);
            json_literal(out, "]");
        }
    }
    if (record->type == SUB_CONNECT && fields->address_count > 0)
        write_address(out, fields->addresses[0]);
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

static void write_line(struct writer *writer, const struct image *image,
                       const struct sub_record *record, const struct fields *fields,
                       const struct event *event) {
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
    json_raw(out, writer->suffix.bytes, writer->suffix.used);
    summary_event(writer->summary, event, out->bytes + start, out->used - start);
    if (out->used > FLUSH_BYTES)
        flush(writer);
}

/* --- one record ------------------------------------------------------------------------------- */

static enum event_class class_of(const struct sub_record *record) {
    switch (record->type) {
    case SUB_EXEC:
    case SUB_FAILED:
        return CLASS_EXEC;
    case SUB_SPAWN:
        return CLASS_SPAWN;
    case SUB_FORK:
    case SUB_VFORK:
        return CLASS_FORK;
    case SUB_EXIT:
        return CLASS_EXIT;
    case SUB_WAIT:
        return CLASS_WAIT;
    case SUB_OPEN:
        return record->error != 0              ? CLASS_OPEN_FAILED
               : is_write_open(record->arg[1]) ? CLASS_OPEN_WRITE
                                               : CLASS_OPEN_READ;
    case SUB_MUTATE:
        return CLASS_MUTATE;
    case SUB_CONNECT:
        return CLASS_CONNECT;
    case SUB_RESOLVE:
        return CLASS_RESOLVE;
    case SUB_CHDIR:
        return CLASS_CHDIR;
    default:
        return CLASS_OTHER;
    }
}

static void take_directory(struct writer *writer, const struct sub_record *record,
                           const struct fields *fields, struct slice path, bool child) {
    struct slice cwd = fields->cwd.bytes != NULL ? fields->cwd : path;
    if (record->error != 0 || cwd.length == 0 || cwd.length >= SUB_STRING_MAX ||
        cwd.bytes[0] != '/')
        return;
    if (child) {
        memcpy(writer->child_cwd, cwd.bytes, cwd.length);
        writer->child_cwd_length = cwd.length;
    } else {
        memcpy(writer->cwd, cwd.bytes, cwd.length);
        writer->cwd_length = cwd.length;
    }
}

static void resolve_paths(struct writer *writer, const struct sub_record *record,
                          const struct fields *fields, struct slice cwd, struct event *event) {
    if (fields->path.bytes != NULL && record->op == SUB_OP_memfd_create)
        return;
    if (fields->path.bytes != NULL) {
        bool below =
            record->arg[0] != AT_FDCWD && record->type != SUB_CHDIR && record->type != SUB_SPAWN;
        /* execvp and its like look a bare name up in PATH: only a slash makes it a path. */
        bool searched = (record->type == SUB_EXEC || record->type == SUB_SPAWN) &&
                        memchr(fields->path.bytes, '/', fields->path.length) == NULL && !below;
        if (!searched)
            event->path = absolute(writer->path, below ? fields->directory : cwd, fields->path);
    } else if (fields->directory.bytes != NULL) {
        event->path = fields->directory; /* a call on a descriptor alone */
    } else if (record->type == SUB_CHDIR && fields->cwd.bytes != NULL) {
        event->path = fields->cwd;
    }
    if (fields->path2.bytes != NULL) {
        bool link = record->op == SUB_OP_symlink || record->op == SUB_OP_symlinkat;
        bool below = record->arg[3] != AT_FDCWD;
        event->path2 =
            link ? fields->path2
                 : absolute(writer->path2, below ? fields->directory2 : cwd, fields->path2);
    }
}

static void write_whole_record(struct writer *writer, uint32_t index,
                               const struct sub_record *record) {
    struct fields fields;
    const struct image *image = &writer->images->list[index];
    parse_fields(record, &fields);
    fields.directory = places_resolve(writer->places, fields.directory_id, fields.directory);
    fields.directory2 = places_resolve(writer->places, fields.directory2_id, fields.directory2);
    if (record->type == SUB_SPAWN_ACTION) {
        take_action(writer, record, &fields);
        return;
    }
    if (record->type == SUB_HELLO)
        return;
    struct slice cwd = {writer->cwd, writer->cwd_length};
    bool child = (record->flags & SUB_FLAG_VFORK_CHILD) != 0;
    if (child) {
        /* What the child does before it runs its program belongs to that program's span. */
        uint32_t target =
            image_of_child(writer->images, image, (int32_t)record->tid, record->start_ns);
        if (target != NONE)
            image = &writer->images->list[target];
        if (writer->child_tid != record->tid) {
            writer->child_tid = record->tid;
            memcpy(writer->child_cwd, writer->cwd, writer->cwd_length);
            writer->child_cwd_length = writer->cwd_length;
        }
        cwd = (struct slice){writer->child_cwd, writer->child_cwd_length};
    }
    struct event event = {
        .class = class_of(record), .at_ns = record->start_ns, .error = record->error};
    resolve_paths(writer, record, &fields, cwd, &event);
    if (record->type == SUB_CHDIR)
        take_directory(writer, record, &fields, event.path, child);
    if (event.class == CLASS_OPEN_READ && event.path.length != 0 && event.path.bytes[0] == '/' &&
        (record->flags & SUB_FLAG_DIRECTORY) == 0 && (record->arg[1] & (O_DIRECTORY | O_PATH)) == 0)
        summary_read(writer->summary, event.path);
    if (record->type == SUB_OPEN && record->error == 0 &&
        (record->arg[1] & ACCESS_BITS) == O_RDWR && event.path.length != 0 &&
        event.path.bytes[0] == '/' && (record->arg[1] & (O_TRUNC | O_EXCL)) == 0)
        summary_read(writer->summary, event.path);
    if (record->type == SUB_CONNECT && fields.address_count > 0)
        summary_host(writer->summary, fields.addresses[0], record->error);
    if (record->type == SUB_RESOLVE) {
        for (uint32_t i = 0; i < fields.address_count; i++)
            summary_answer(writer->summary, fields.name, fields.addresses[i]);
    }
    ((struct image *)(uintptr_t)image)->events++;
    write_line(writer, image, record, &fields, &event);
}

static void settle_exec(struct writer *writer) {
    if (!writer->have_exec)
        return;
    writer->have_exec = false;
    write_whole_record(writer, writer->exec_image, writer->exec);
}

/*
 * An exec is recorded before it happens. It is one event with one outcome: failed when the record
 * that says so follows, else done, as far as the program could tell.
 */
static void write_record(struct writer *writer, uint32_t index, const struct sub_record *record) {
    bool same = writer->have_exec && writer->exec_image == index;
    if (record->type == SUB_FAILED && same && writer->exec->tid == record->tid &&
        writer->exec->sequence == (uint32_t)record->arg[0]) {
        writer->exec->result = record->result;
        writer->exec->error = record->error;
        writer->exec->elapsed_ns = record->elapsed_ns;
        settle_exec(writer);
        return;
    }
    if (!same || record->type == SUB_EXEC || writer->exec->tid == record->tid)
        settle_exec(writer);
    if (record->type == SUB_EXEC) {
        memcpy(writer->exec, record, record->length);
        writer->exec_image = index;
        writer->have_exec = true;
        return;
    }
    write_whole_record(writer, index, record);
}

/* --- processes -------------------------------------------------------------------------------- */

static void write_process_ids(struct writer *writer, const struct image *image, const char *type) {
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
    json_literal(out, ",\"component\":\"preload\",\"pid\":");
    json_signed(out, image->self.pid);
    json_literal(out, ",\"ppid\":");
    json_signed(out, image->ppid);
}

static void write_start(struct writer *writer, const struct image *image) {
    struct buffer *out = &writer->out;
    const struct image *program = program_of(writer->images, image);
    write_time(writer, out, image, image->began_ns);
    write_process_ids(writer, image, "world_process_start");
    json_literal(out, ",\"cwd\":");
    json_bytes(out, image->cwd.bytes, image->cwd.length);
    json_literal(out, ",\"argv\":");
    write_argv(out, program->argv);
    json_literal(out, ",\"exe\":");
    json_bytes(out, program->exe.bytes, program->exe.length);
    json_literal(out, ",\"exec_no\":");
    json_unsigned(out, image->self.exec_number);
    if (image->uncovered)
        json_literal(out, ",\"coverage\":\"none\"");
    json_raw(out, writer->suffix.bytes, writer->suffix.used);
}

static void write_end(struct writer *writer, const struct image *image) {
    struct buffer *out = &writer->out;
    write_time(writer, out, image, image->end_ns);
    write_process_ids(writer, image, "world_process_exit");
    json_literal(out, ",\"exit_code\":");
    if (image->signal == 0)
        json_signed(out, image->exit_code);
    else
        json_literal(out, "null");
    json_literal(out, ",\"signal\":");
    if (image->signal != 0)
        json_signed(out, image->signal);
    else
        json_literal(out, "null");
    json_literal(out, ",\"duration_ms\":");
    json_decimal(
        out,
        image->end_ns > image->start_ns ? (int64_t)((image->end_ns - image->start_ns) / 1000) : 0,
        3);
    json_raw(out, writer->suffix.bytes, writer->suffix.used);
}

/* --- merging the chains of an image ----------------------------------------------------------- */

struct head {
    struct reader reader;
    const struct sub_record *record;
    uint64_t end_ns;
};

static bool advance(struct head *head) {
    head->record = reader_next(&head->reader);
    if (head->record == NULL)
        return false;
    head->end_ns = head->record->start_ns + head->record->elapsed_ns;
    return true;
}

/*
 * Writes the records of some chains of an image in the order in which the calls ended, which is the
 * order in which a change of the working directory became true for all threads.
 */
static void write_chains(struct writer *writer, uint32_t image, const uint32_t *starts,
                         uint32_t chains) {
    struct head *heads = allocate(chains * sizeof(*heads));
    uint32_t live = 0;
    for (uint32_t i = 0; i < chains; i++) {
        reader_open(&heads[live].reader, writer->segments, writer->options->directory, starts[i],
                    starts[i + 1]);
        if (advance(&heads[live]))
            live++;
        else
            reader_close(&heads[live].reader);
    }
    while (live > 0) {
        uint32_t first = 0;
        for (uint32_t i = 1; i < live; i++) {
            if (heads[i].end_ns < heads[first].end_ns)
                first = i;
        }
        write_record(writer, image, heads[first].record);
        if (!advance(&heads[first])) {
            reader_close(&heads[first].reader);
            heads[first] = heads[--live];
        }
    }
    free(heads);
}

static void write_image(struct writer *writer, uint32_t index) {
    const struct image *image = &writer->images->list[index];
    const struct segment *list = writer->segments->list;
    uint32_t starts[CHAINS_AT_ONCE + 1];
    uint32_t chains = 0;
    struct slice cwd = image->cwd;
    if (cwd.length == 0 && image->parent != NONE)
        cwd = writer->images->list[image->parent].cwd;
    writer->cwd_length = cwd.length < SUB_STRING_MAX ? cwd.length : 0;
    if (writer->cwd_length != 0)
        memcpy(writer->cwd, cwd.bytes, writer->cwd_length);
    writer->child_tid = 0;
    places_clear(writer->places);
    for (uint32_t i = image->first_segment; i < image->end_segment; i++) {
        if (i == image->first_segment || list[i].chain != list[i - 1].chain) {
            if (chains == CHAINS_AT_ONCE) {
                starts[chains] = i;
                write_chains(writer, index, starts, chains);
                chains = 0;
            }
            starts[chains++] = i;
        }
    }
    if (chains > 0) {
        starts[chains] = image->end_segment;
        write_chains(writer, index, starts, chains);
    }
    settle_exec(writer);
}

void write_events(struct images *images, struct segments *segments, const struct options *options,
                  struct summary *summary) {
    struct writer *writer = allocate(sizeof(*writer));
    writer->images = images;
    writer->segments = segments;
    writer->options = options;
    writer->summary = summary;
    writer->places = places_new();
    writer->exec = allocate(SUB_RECORD_MAX + sizeof(*writer->exec));
    json_literal(&writer->suffix, ",\"world_id\":");
    json_bytes(&writer->suffix, options->world, strlen(options->world));
    json_literal(&writer->suffix, ",\"source\":\"self_reported\"}\n");
    buffer_reserve(&writer->out, FLUSH_BYTES + (1u << 19));

    uint32_t count;
    uint32_t *order = images_in_order(images, &count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = order[i];
        const struct image *image = &images->list[index];
        uint32_t merged = merged_image(images, index);
        /* A forked child's start is its program's; they are told once, at the first of them. */
        if (merged != index || image->began_ns == image->start_ns)
            write_start(writer, &images->list[merged]);
        if (!image->uncovered)
            write_image(writer, index);
        if (image->have_exit && !image->executed)
            write_end(writer, image);
        if (writer->out.used > FLUSH_BYTES)
            flush(writer);
    }
    flush(writer);
    free(order);
}
