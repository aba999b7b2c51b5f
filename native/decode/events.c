/*
 * All records of the step, image by image, in the order in which the calls ended.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>

#include "writing.h"

#define CHAINS_AT_ONCE 128u

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
    case SUB_BIND:
        return CLASS_BIND;
    case SUB_LISTEN:
        return CLASS_LISTEN;
    case SUB_ACCEPT:
        return CLASS_ACCEPT;
    case SUB_THREAD:
        return CLASS_THREAD;
    case SUB_LOAD:
        return CLASS_LOAD;
    case SUB_DUP:
        return CLASS_DUP;
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

/* The file of a shared memory or a semaphore: slashes in front of its name do not count. */
static bool shared_memory_path(char *to, const struct sub_record *record, struct slice name,
                               struct slice *path) {
    static const struct slice directory = {"/dev/shm", 8};
    bool semaphore = record->op == SUB_OP_sem_open || record->op == SUB_OP_sem_unlink;
    if (!(semaphore || record->op == SUB_OP_shm_open || record->op == SUB_OP_shm_unlink) ||
        name.length == 0 || is_below(name, directory))
        return false;
    while (name.length != 0 && name.bytes[0] == '/')
        name = (struct slice){name.bytes + 1, name.length - 1};
    char file[4 + SUB_STRING_MAX] = "sem.";
    if (semaphore && name.length != 0 && name.length <= SUB_STRING_MAX) {
        memcpy(file + 4, name.bytes, name.length);
        name = (struct slice){file, 4 + name.length};
    }
    *path = absolute(to, directory, name);
    return true;
}

static void resolve_paths(struct writer *writer, const struct sub_record *record,
                          const struct fields *fields, struct slice cwd, struct event *event) {
    /* Names of their own, not paths. */
    if (fields->path.bytes != NULL &&
        (record->op == SUB_OP_memfd_create || record->op == SUB_OP_mq_open ||
         record->op == SUB_OP___mq_open_2 || record->op == SUB_OP_mq_unlink))
        return;
    if (shared_memory_path(writer->path, record, fields->path, &event->path))
        return;
    if (fields->path.bytes != NULL) {
        bool below = record->arg[0] != AT_FDCWD && record->type != SUB_CHDIR &&
                     record->type != SUB_SPAWN && record->type != SUB_LOAD;
        /* execvp, dlopen and their like look a bare name up: only a slash makes it a path. */
        bool searched =
            (record->type == SUB_EXEC || record->type == SUB_SPAWN || record->type == SUB_LOAD) &&
            memchr(fields->path.bytes, '/', fields->path.length) == NULL && !below;
        if (!searched)
            event->path = absolute(writer->path, below ? fields->directory : cwd, fields->path);
    } else if (fields->directory.bytes != NULL) {
        /* A call on a descriptor alone. The copy is there when the place has another path. */
        event->path = absolute(writer->path, fields->directory, fields->directory);
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

static bool is_rename(uint16_t op) {
    return op == SUB_OP_rename || op == SUB_OP_renameat || op == SUB_OP_renameat2;
}

/* What is below a directory has another path once the directory has another name. */
static void follow_rename(struct writer *writer, const struct sub_record *record,
                          const struct event *event) {
    struct renaming renaming = {event->path, event->path2,
                                record->op == SUB_OP_renameat2 &&
                                    (record->arg[1] & RENAME_EXCHANGE) != 0};
    static char to[PATH_BYTES];
    if (!is_absolute(event->path) || !is_absolute(event->path2))
        return;
    places_rename(writer->places, &renaming);
    struct slice cwd = renamed(to, (struct slice){writer->cwd, writer->cwd_length}, &renaming);
    if (cwd.length != 0 && cwd.length < SUB_STRING_MAX) {
        memcpy(writer->cwd, cwd.bytes, cwd.length);
        writer->cwd_length = cwd.length;
    }
}

/* The path of what a call on a descriptor alone is about. */
static struct slice path_behind(const struct writer *writer, int32_t number) {
    struct descriptor descriptor = descriptors_find(writer->descriptors, number);
    return descriptor.kind == DESCRIPTOR_FILE ? (struct slice){descriptor.bytes, descriptor.length}
                                              : (struct slice){NULL, 0};
}

/* Which files were read, and which may have changed. */
static void note_files(struct writer *writer, const struct sub_record *record,
                       const struct fields *fields, const struct event *event, struct slice cwd) {
    struct summary *summary = writer->summary;
    bool opened = record->type == SUB_OPEN && record->error == 0;
    bool named = record->op != SUB_OP_memfd_create && record->op != SUB_OP_mq_open &&
                 record->op != SUB_OP___mq_open_2 && record->op != SUB_OP_mq_unlink;
    int flags = record->arg[1];
    if (opened && is_absolute(event->path) && (record->flags & SUB_FLAG_DIRECTORY) == 0 &&
        (event->class == CLASS_OPEN_READ
             ? (flags & (O_DIRECTORY | O_PATH)) == 0
             : (flags & ACCESS_BITS) == O_RDWR && (flags & (O_TRUNC | O_EXCL)) == 0))
        summary_read(summary, event->path);
    if (record->error != 0 || !named)
        return;
    bool unclear = (record->flags & (SUB_FLAG_TRUNCATED | SUB_FLAG_FAULT)) != 0;
    if (event->class == CLASS_OPEN_WRITE)
        summary_wrote(summary, unclear ? (struct slice){NULL, 0} : event->path);
    if (event->class == CLASS_MUTATE) {
        summary_wrote(summary, unclear                     ? (struct slice){NULL, 0}
                               : event->path.bytes == NULL ? path_behind(writer, record->arg[0])
                                                           : event->path);
        if (event->path2.bytes != NULL && record->op != SUB_OP_symlink &&
            record->op != SUB_OP_symlinkat)
            summary_wrote(summary, event->path2);
    }
    if (event->class == CLASS_BIND && fields->address_count > 0) {
        struct slice path = socket_path(fields->addresses[0]);
        if (path.length != 0)
            summary_wrote(summary, absolute(writer->path, cwd, path));
    }
}

/* What the loader opened is as much an input as what the program did. */
static void note_libraries(struct writer *writer, struct slice libraries) {
    static char to[PATH_BYTES];
    for (uint32_t at = 0, length; at < libraries.length; at += length + 1) {
        length = (uint32_t)strnlen(libraries.bytes + at, libraries.length - at);
        struct slice path = {libraries.bytes + at, length};
        if (is_absolute(path))
            summary_read(writer->summary, absolute(to, path, path));
    }
}

static void note_hosts(struct writer *writer, const struct sub_record *record,
                       const struct fields *fields) {
    if (record->type == SUB_CONNECT && fields->address_count > 0)
        summary_host(writer->summary, fields->addresses[0], record->error);
    if (record->type == SUB_RESOLVE) {
        for (uint32_t i = 0; i < fields->address_count; i++)
            summary_answer(writer->summary, fields->name, fields->addresses[i]);
    }
}

static bool is_sum(const struct sub_record *record) {
    return record->type == SUB_STAT || record->type == SUB_TRANSFER || record->type == SUB_SOURCES;
}

/* Where a call's relative paths start: a vfork child has a directory of its own. */
static struct slice directory_of(struct writer *writer, const struct sub_record *record) {
    if ((record->flags & SUB_FLAG_VFORK_CHILD) == 0)
        return (struct slice){writer->cwd, writer->cwd_length};
    if (writer->child_tid != record->tid) {
        writer->child_tid = record->tid;
        memcpy(writer->child_cwd, writer->cwd, writer->cwd_length);
        writer->child_cwd_length = writer->cwd_length;
    }
    return (struct slice){writer->child_cwd, writer->child_cwd_length};
}

static void write_whole_record(struct writer *writer, uint32_t index,
                               const struct sub_record *record, struct slice cwd) {
    struct fields fields;
    struct image *image = &writer->images->list[index];
    parse_fields(record, &fields);
    uint64_t below = place_of_descriptor(record->arg[0]);
    if (fields.directory_id == NULL && (record->flags & SUB_FLAG_BELOW) != 0)
        fields.directory_id = &below;
    places_explain(writer->places, fields.directory_id, fields.directory);
    places_explain(writer->places, fields.directory2_id, fields.directory2);
    fields.directory = places_resolve(writer->places, fields.directory_id, fields.directory);
    fields.directory2 = places_resolve(writer->places, fields.directory2_id, fields.directory2);
    if (record->type == SUB_SPAWN_ACTION) {
        take_action(writer, record, &fields, cwd);
        return;
    }
    if (record->type == SUB_HELLO)
        return;
    bool child = (record->flags & SUB_FLAG_VFORK_CHILD) != 0;
    struct event event = {
        .class = class_of(record), .at_ns = record->start_ns, .error = record->error};
    if (is_sum(record)) {
        resolve_paths(writer, record, &fields, cwd, &event);
        sums_take(writer, image, record, &fields, event.path);
        return;
    }
    if (child) {
        /* What the child does before it runs its program belongs to that program's span. */
        uint32_t target =
            image_of_child(writer->images, image, (int32_t)record->tid, record->start_ns);
        if (target != NONE)
            image = &writer->images->list[target];
    }
    if (record->type == SUB_SPAWN)
        cwd = do_actions(writer, &fields, cwd);
    resolve_paths(writer, record, &fields, cwd, &event);
    if (record->type == SUB_CHDIR)
        take_directory(writer, record, &fields, event.path, child);
    if (!child) /* whose descriptors are its own */
        descriptors_follow(writer->descriptors, record, &fields,
                           is_absolute(event.path) ? event.path : (struct slice){NULL, 0});
    /* What an earlier command of a shell did only says where this one begins. */
    if (record->start_ns + record->elapsed_ns >= writer->options->since_ns) {
        note_files(writer, record, &fields, &event, cwd);
        note_hosts(writer, record, &fields);
        if (record->type == SUB_LOAD)
            note_libraries(writer, fields.libraries);
        image->events++;
        write_call(writer, image, record, &fields, &event);
    }
    if (!child)
        places_follow(writer->places, record, event.path);
    if (is_rename(record->op) && record->error == 0)
        follow_rename(writer, record, &event);
}

static void settle_exec(struct writer *writer) {
    if (!writer->have_exec)
        return;
    writer->have_exec = false;
    write_whole_record(writer, writer->exec_image, writer->exec,
                       (struct slice){writer->exec_cwd, writer->exec_cwd_length});
}

/*
 * An exec is recorded before it happens. It is one event with one outcome: failed when the record
 * that says so follows, else done, as far as the program could tell. By then its thread's next child
 * may have gone elsewhere, so the directory that it starts from is kept with it.
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
    struct slice cwd = directory_of(writer, record);
    if (record->type == SUB_EXEC) {
        memcpy(writer->exec, record, record->length);
        memcpy(writer->exec_cwd, cwd.bytes, cwd.length);
        writer->exec_cwd_length = cwd.length;
        writer->exec_image = index;
        writer->have_exec = true;
        return;
    }
    write_whole_record(writer, index, record, cwd);
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
    descriptors_clear(writer->descriptors);
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
    sums_write(writer, image);
}

void write_events(struct images *images, struct segments *segments, const struct options *options,
                  struct summary *summary) {
    struct writer *writer = allocate(sizeof(*writer));
    writer->images = images;
    writer->segments = segments;
    writer->options = options;
    writer->summary = summary;
    writer->places = places_new();
    writer->descriptors = descriptors_new();
    writer->sums = sums_new();
    writer->exec = allocate(SUB_RECORD_MAX + sizeof(*writer->exec));
    json_literal(&writer->suffix, ",\"world_id\":");
    json_bytes(&writer->suffix, options->world, strlen(options->world));
    buffer_reserve(&writer->out, FLUSH_BYTES + FLUSH_BYTES / 2);

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
    places_free(writer->places);
    descriptors_free(writer->descriptors);
    sums_free(writer->sums);
    for (uint32_t i = 0; i < ACTION_KEYS; i++) {
        free(writer->actions[i].list.bytes);
        free(writer->actions[i].cwd);
    }
    free(writer->actions_json.bytes);
    free(writer->exec);
    free(writer->out.bytes);
    free(writer->prefix.bytes);
    free(writer->suffix.bytes);
    free(writer);
}
