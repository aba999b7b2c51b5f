/*
 * The file actions of posix_spawn: asked for one by one, done in the child when it is started.
 *
 * Their paths are looked up then, so they are kept as they were passed until the spawn comes: below
 * the directory that it was called in, or that an action before led to.
 */
#define _GNU_SOURCE 1

#include <string.h>

#include "writing.h"

#define ACTION_BYTES 8192u     /* of a line */
#define LIST_BYTES (16u << 10) /* of an object's actions */

/* One action in actions.list, in front of its path. */
struct action {
    int32_t kind, fd, other;
    uint32_t length;
    bool named;
};

static struct actions *find_actions(struct writer *writer, uint64_t key, bool make) {
    for (uint32_t i = 0; i < ACTION_KEYS; i++) {
        if (writer->actions[i].key == key && writer->actions[i].list.bytes != NULL)
            return &writer->actions[i];
    }
    if (!make)
        return NULL;
    struct actions *actions = &writer->actions[writer->action_next++ % ACTION_KEYS];
    actions->key = key;
    actions->list.used = 0;
    actions->moved = false;
    buffer_reserve(&actions->list, 256);
    if (actions->cwd == NULL)
        actions->cwd = allocate(PATH_BYTES);
    return actions;
}

static size_t read_action(const struct actions *actions, size_t at, struct action *action,
                          struct slice *path) {
    memcpy(action, actions->list.bytes + at, sizeof(*action));
    at += sizeof(*action);
    *path = (struct slice){action->named ? actions->list.bytes + at : NULL, action->length};
    return at + action->length;
}

static void move_to(struct actions *actions, struct slice directory) {
    actions->moved = true;
    actions->cwd_length =
        is_absolute(directory) && directory.length <= PATH_BYTES ? directory.length : 0;
    if (actions->cwd_length != 0)
        memmove(actions->cwd, directory.bytes, directory.length);
}

/* What a descriptor of the parent leads to; nothing where an action in front changed it. */
static struct slice directory_behind(const struct writer *writer, const struct actions *actions,
                                     size_t end, int32_t fd) {
    struct action action;
    struct slice path;
    for (size_t at = 0; at < end;) {
        at = read_action(actions, at, &action, &path);
        if ((action.kind == SUB_ACTION_DUP2 ? action.other : action.fd) == fd &&
            action.kind != SUB_ACTION_FCHDIR)
            return (struct slice){NULL, 0};
    }
    struct descriptor descriptor = descriptors_find(writer->descriptors, fd);
    return descriptor.kind == DESCRIPTOR_FILE ? (struct slice){descriptor.bytes, descriptor.length}
                                              : (struct slice){NULL, 0};
}

/* Does one action, with `end` bytes of actions in front; its path, absolute where that is known. */
static struct slice follow_action(struct writer *writer, struct actions *actions, size_t end,
                                  const struct action *action, struct slice path,
                                  struct slice cwd) {
    if (actions->moved)
        cwd = (struct slice){actions->cwd, actions->cwd_length};
    if (action->named)
        path = absolute(writer->path, cwd, path);
    if (action->kind == SUB_ACTION_OPEN && is_write_open(action->other))
        summary_wrote(writer->summary, path);
    if (action->kind == SUB_ACTION_CHDIR)
        move_to(actions, path);
    if (action->kind == SUB_ACTION_FCHDIR)
        move_to(actions, directory_behind(writer, actions, end, action->fd));
    return path;
}

void take_action(struct writer *writer, const struct sub_record *record,
                 const struct fields *fields, struct slice cwd) {
    struct action action = {record->arg[0], record->arg[1], record->arg[2], fields->path.length,
                            fields->path.bytes != NULL};
    if (fields->key == NULL)
        return;
    struct actions *actions = find_actions(writer, *fields->key, true);
    struct buffer *list = &actions->list;
    if (action.kind <= SUB_ACTION_INIT || action.kind >= SUB_ACTION_DESTROY) {
        list->used = 0;
        actions->moved = false;
        return;
    }
    /* A writer may die before it has told of the spawn: what would be written counts already. */
    follow_action(writer, actions, list->used, &action, fields->path, cwd);
    if (list->used + sizeof(action) + action.length > LIST_BYTES)
        return;
    json_raw(list, (const char *)&action, sizeof(action));
    if (action.named)
        json_raw(list, fields->path.bytes, action.length);
}

static void write_action(struct buffer *out, const struct action *action, struct slice path) {
    static const char *const names[] = {"",      "open",   "close",    "dup2",
                                        "chdir", "fchdir", "closefrom"};
    if (out->used != 0)
        json_literal(out, ",");
    json_literal(out, "{\"action\":");
    json_name(out, names[action->kind]);
    if (action->fd >= 0) {
        json_literal(out, ",\"fd\":");
        json_signed(out, action->fd);
    }
    if (action->kind == SUB_ACTION_DUP2) {
        json_literal(out, ",\"to\":");
        json_signed(out, action->other);
    }
    if (path.bytes != NULL) {
        json_literal(out, ",\"path\":");
        json_bytes(out, path.bytes, path.length);
    }
    if (action->kind == SUB_ACTION_OPEN) {
        json_literal(out, ",\"flags\":");
        write_open_flags(out, action->other);
    }
    json_literal(out, "}");
}

struct slice do_actions(struct writer *writer, const struct fields *fields, struct slice cwd) {
    writer->actions_json.used = 0;
    struct actions *actions =
        fields->key != NULL ? find_actions(writer, *fields->key, false) : NULL;
    if (actions == NULL)
        return cwd;
    actions->moved = false;
    for (size_t at = 0; at < actions->list.used;) {
        struct action action;
        struct slice path;
        size_t next = read_action(actions, at, &action, &path);
        path = follow_action(writer, actions, at, &action, path, cwd);
        if (writer->actions_json.used <= ACTION_BYTES)
            write_action(&writer->actions_json, &action, path);
        at = next;
    }
    return actions->moved ? (struct slice){actions->cwd, actions->cwd_length} : cwd;
}
