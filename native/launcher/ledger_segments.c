/*
 * Who makes and removes segments, as the kernel tells it (fanotify(7)).
 *
 * One group for all worlds, a mark on each world's segment tmpfs: about 1 us for whoever makes a
 * file there. Nobody is woken for it: events wait until processes are looked at, which an event can
 * only be told with. A world that makes files faster than that overflows the queue, and all are
 * told of the loss. Names are the worlds' own, and are bounded here; events have no time, so they
 * get one from their process's life.
 */
#include "kernel.h"

#include <stdlib.h>
#include <sys/fanotify.h>
#include <sys/statfs.h>

#define MADE (FAN_CREATE | FAN_MOVED_TO)
#define GONE (FAN_DELETE | FAN_MOVED_FROM)

static int group = -1;

int segments_start(struct fail *fail) {
    group = fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME | FAN_CLOEXEC | FAN_NONBLOCK |
                              FAN_UNLIMITED_MARKS,
                          O_RDONLY);
    return group < 0 ? fail_set(fail, errno, "fanotify_init") : 0;
}

static uint64_t join_fsid(const void *fsid) {
    uint64_t joined;
    memcpy(&joined, fsid, sizeof joined);
    return joined;
}

int segments_watch(struct ledger *ledger, int segments_fd) {
    struct statfs status;
    union {
        struct file_handle handle;
        char space[sizeof(struct file_handle) + HANDLE_BYTES];
    } root = {.handle.handle_bytes = HANDLE_BYTES};
    int mount_id;
    if (group < 0 || fstatfs(segments_fd, &status) ||
        name_to_handle_at(segments_fd, "", &root.handle, &mount_id, AT_EMPTY_PATH))
        return -1;
    ledger->fsid = join_fsid(&status.f_fsid);
    ledger->directory_bytes = root.handle.handle_bytes;
    memcpy(ledger->directory, root.handle.f_handle, root.handle.handle_bytes);
    return fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, MADE | GONE, segments_fd, ".");
}

static struct ledger *find(uint64_t fsid) {
    static uint32_t last;
    for (uint32_t i = 0; i < LEDGERS_MAX; i++) {
        uint32_t slot = (last + i) % LEDGERS_MAX;
        struct ledger *ledger = ledger_at(slot);
        if (ledger && ledger->header.segments_attested && ledger->fsid == fsid) {
            last = slot;
            return ledger;
        }
    }
    return NULL;
}

static void overflow(void) {
    for (uint32_t slot = 0; slot < LEDGERS_MAX; slot++) {
        struct ledger *ledger = ledger_at(slot);
        if (ledger && ledger->header.segments_attested)
            ledger->lost++;
    }
}

static void tell(struct ledger *ledger, const struct fanotify_event_metadata *event,
                 const char *name, size_t length) {
    if (server_is_host(event->pid))
        return;
    const struct known_process *process = ledger_process(ledger, event->pid);
    struct sub_ledger_record record = {
        .host_pid = event->pid,
        .pid = process ? process->pid : 0,
        .time_ns = process && process->ended_ns ? process->ended_ns : monotonic_ns(),
    };
    if (length >= sizeof record.name) {
        record.flags = SUB_LEDGER_CUT;
        name += length - (sizeof record.name - 1);
        length = sizeof record.name - 1;
    }
    memcpy(record.name, name, length);
    /* Both in one event: made and removed by the same process, merged by the kernel. */
    if (event->mask & MADE) {
        record.type = SUB_LEDGER_SEGMENT;
        ledger_append(ledger, &record);
    }
    if (event->mask & GONE) {
        record.type = SUB_LEDGER_REMOVED;
        ledger_append(ledger, &record);
    }
}

static void read_event(const struct fanotify_event_metadata *event) {
    const struct fanotify_event_info_fid *info =
        (const void *)((const char *)event + event->metadata_len);
    const char *end = (const char *)event + event->event_len;
    if (event->mask & FAN_Q_OVERFLOW) {
        overflow();
        return;
    }
    const struct file_handle *handle = (const void *)info->handle;
    if ((const char *)handle + sizeof *handle > end ||
        info->hdr.info_type != FAN_EVENT_INFO_TYPE_DFID_NAME)
        return;
    const char *name = (const char *)handle->f_handle + handle->handle_bytes;
    struct ledger *ledger = find(join_fsid(&info->fsid));
    /* Directories that programs make below are nobody's segments. */
    if (name < end && ledger && handle->handle_bytes == ledger->directory_bytes &&
        memcmp(handle->f_handle, ledger->directory, ledger->directory_bytes) == 0)
        tell(ledger, event, name, strnlen(name, (size_t)(end - name)));
}

#define ROUNDS 64 /* of about a thousand events: no world holds us for long */

void segments_drain(void) {
    static _Alignas(struct fanotify_event_metadata) char space[128 << 10];
    for (int round = 0; group >= 0 && round < ROUNDS; round++) {
        ssize_t got = read(group, space, sizeof space);
        if (got <= 0)
            return;
        /*
         * Only now is whoever made these files known: a pid that was looked up before its fork was
         * read is that of an earlier process, of this world or of one that had its place before.
         */
        ledger_read_processes();
        const struct fanotify_event_metadata *event = (const void *)space;
        for (; FAN_EVENT_OK(event, got); event = FAN_EVENT_NEXT(event, got))
            if (event->vers == FANOTIFY_METADATA_VERSION)
                read_event(event);
    }
}
