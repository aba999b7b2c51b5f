/*
 * The launcher: makes boxes (worlds without execs), keeps their inits, takes them down.
 *
 * One per host home. Single-threaded: a box is put together by a staging process of its own
 * (stage.c), so that neither a slow mount nor a namespace change touches the launcher itself.
 */
#ifndef SUBSTRATE_LAUNCHER_H
#define SUBSTRATE_LAUNCHER_H

#define _GNU_SOURCE

#include "wire.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define ID_RANGE_FIRST 0x70000000u
#define ID_RANGE_SIZE 65536u
#define ID_SLOTS 4096u
/* Init runs as an id no exec has: prlimit(2) and setpriority(2) on pid 1 ask for equal ids. */
#define INIT_ID 65535u
/* Processes and threads of one box together, where nothing else is asked for. */
#define BOX_PROCESSES 4096u

/* ---- fail.c: an error with its place, for people -------------------------------------------- */

struct fail {
    int32_t error;
    int32_t op;
    char text[512];
};

/* Fills `fail` (where it is not filled yet) with "<what>: <errno text>". Returns -1. */
int fail_set(struct fail *fail, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* What a person can do about it; "" where nothing is known. */
const char *fail_hint(const struct fail *fail);

/* ---- config and what the probe found -------------------------------------------------------- */

#define OVERLAY_OPTIONS_MAX 10

struct config {
    const char *socket_path;
    const char *state_dir;
    const char *init_path;
    int linger_s;
    bool is_root;
    uint32_t uid, gid;
    int init_fd;           /* sealed memfd of substrate-init */
    char stage_dir[4096];  /* empty directory; each staging process mounts a tmpfs on it */
    char cgroup_dir[4096]; /* "" where no cgroup v2 directory can be made */
    int cgroup_fd;
    int cgroup_up; /* how far above our own cgroup it was made */
    const char *overlay_options[OVERLAY_OPTIONS_MAX + 1];
    char overlay_read_back[512];
    char problems[4096];      /* lines */
    const char *ledger;       /* the only source to use, by name; NULL: the best */
    char ledger_problem[640]; /* why better sources of the ledger are not there; "" with the best */
    char segments_problem[512];
    bool range_works; /* id-mapped overlay layers */
    pid_t router;     /* keeps the network namespace where the boxes' links meet */
    int userns_fd;    /* owner of the boxes' network namespaces; only where we are not root */
};
extern struct config config;

void probe_host(void);
/* Text of SUB_L_WELCOME. */
size_t probe_report(char *out, size_t room);

/* ---- router.c -------------------------------------------------------------------------------- */

int router_start(struct fail *fail);

/* ---- spec.c ---------------------------------------------------------------------------------- */

#define OP_STRINGS_MAX 80

struct op {
    uint8_t kind;
    bool read_only;
    uint32_t mode;
    uint64_t value;
    uint16_t string_count;
    char **strings;
};

struct spec {
    char *world_id;
    char *hostname;
    bool range;
    uint64_t segment_limit;
    struct sub_limits limits;
    uint32_t op_count;
    struct op *ops;
};

struct spec *spec_parse(const uint8_t *payload, size_t length, struct fail *fail);
void spec_free(struct spec *spec);

/* ---- stage.c --------------------------------------------------------------------------------- */

/* Descriptors of a box's cgroups; -1 where there is none. */
struct box_cgroups {
    int world;     /* version 2 */
    int execs;     /* version 2: where the init makes one for each exec; the world's, or below it */
    int memory;    /* version 1: the same */
    int pids;      /* where pids.events is */
    int attach[3]; /* version 1, by controller: cgroup.procs, for the init */
};

struct stage_request {
    const struct spec *spec;
    uint32_t id_base; /* 0: identity mapping */
    int channel_box;  /* the init's end */
    int report;       /* SOCK_SEQPACKET: struct stage_report packets */
    const struct box_cgroups *cgroups;
};

enum stage_report_kind {
    STAGE_INIT_PID = 1, /* the init exists */
    STAGE_BOX = 2,      /* the tree stands; descriptors: pidfd, segments */
    STAGE_FAILED = 3,
};

struct stage_report {
    uint32_t kind;
    int32_t init_pid;
    struct fail fail;
};

/* Starts the staging process; its pid, or -1 with errno. End of `report` = init was executed. */
pid_t stage_start(const struct stage_request *request);

int raise_all_capabilities(void);
int write_id_maps(int proc_fd, const char *pid, uint32_t inside, uint32_t outside_uid,
                  uint32_t outside_gid, uint32_t count, struct fail *fail);
int64_t clone_process(uint64_t flags, int *pidfd, int cgroup_fd);

/* ---- mounts.c, system_mounts.c --------------------------------------------------------------- */

#define GRABS_MAX 256

struct tree {
    const char *stage_dir;
    int stage_fd;  /* the tmpfs on it */
    int root_fd;   /* root of the box; -1 until the first operation */
    int userns_fd; /* of the init, for id-mapped mounts; -1: no mapping */
    uint32_t id_base;
    bool rootless;
    int layers; /* counter for names in the stage */
    struct {
        const char *name;
        int fd;
    } grabs[GRABS_MAX];
    int grab_count;
    struct fail *fail;
};

int tree_begin(struct tree *tree);
int tree_apply(struct tree *tree, const struct op *op);
int tree_attach(struct tree *tree, int mount_fd, const char *target, bool is_dir);
int tree_resolve(struct tree *tree, const char *path); /* O_PATH; -1 with errno */
int tree_tmpfs(struct tree *tree, const char *target, uint32_t mode, uint64_t size, bool read_only);
int tree_mask_file(struct tree *tree, const char *target);
int tree_mask_dir(struct tree *tree, const char *target);
int tree_bind(struct tree *tree, const char *source, const char *target, bool read_only, bool dev);
int tree_make_read_only(struct tree *tree, const char *target);
int mount_fs(const char *type, const char *const *options, uint64_t attributes, struct fail *fail);
int overlay_mount(const char *lowers, const char *upper, const char *work,
                  const char *const *options, struct fail *fail);

/* /proc, /sys, /dev, /run and the segments; *segments_fd and *last_pid_fd are the caller's. */
int tree_system_mounts(struct tree *tree, int init_pidfd, uint64_t segment_limit, int *segments_fd,
                       int *last_pid_fd);

/* ---- cgroup.c, cgroup_v1.c (cgroup.h) -------------------------------------------------------- */

void cgroup_find(void);
/* Fills `made`, also where it fails; -1 where a limit that is asked for cannot be had. */
int cgroup_make(const char *world_id, uint32_t owner, const struct sub_limits *limits,
                struct box_cgroups *made, struct fail *fail);
void cgroup_release(struct box_cgroups *made);
/* By the stage: begun at once (a descriptor to ask of it), waited for, and when the init has its
 * namespaces. */
int cgroup_enter(const struct box_cgroups *cgroups, pid_t init, struct fail *fail);
int cgroup_entered(int entered, struct fail *fail);
int cgroup_settle(const struct box_cgroups *cgroups, pid_t init, const struct sub_limits *limits,
                  struct fail *fail);
int cgroup_limit(const char *world_id, const struct sub_limits *limits, struct fail *fail);
const char *cgroup_mechanism(int controller); /* "v2", "v1", "none" */
void cgroup_remove(const char *world_id);
void cgroup_remove_all(void);

/* ---- ledger.c: what the kernel tells of a world's processes (kernel.h) ----------------------- */

struct ledger;

int ledger_start(void);
const char *ledger_source(void);
bool ledger_attests(void);
/* Before anything runs in the cgroup. NULL where there is no ledger; all below take NULL. */
struct ledger *ledger_open(int cgroup_fd);
void ledger_init_started(struct ledger *ledger, pid_t init);
void ledger_segments(struct ledger *ledger, int segments_fd);
int ledger_reader(const struct ledger *ledger); /* a descriptor to read it with, or -1 */
/* All that has happened is in it; records before from_ns are given up. */
void ledger_sync(struct ledger *ledger, uint64_t from_ns);
void ledger_close(struct ledger *ledger);
void ledger_read(void); /* a source has something to say */
void ledger_read_all(void);

/* ---- worlds.c -------------------------------------------------------------------------------- */

struct connection;

void worlds_create(struct connection *from, const struct sub_packet *packet);
void worlds_attach(struct connection *from, const struct sub_header *header, const char *world_id);
void worlds_sync_ledger(struct connection *from, uint32_t request, const uint8_t *payload,
                        size_t size);
void worlds_limit(struct connection *from, uint32_t request, const uint8_t *payload, size_t size);
void worlds_list(struct connection *to, uint32_t request);
void worlds_remove(struct connection *from, uint32_t request, const char *world_id);
void worlds_shutdown(struct connection *from, uint32_t request);
void worlds_read_report(int fd);
void worlds_reap(void);
bool worlds_is_shutting_down(void);
size_t worlds_count(void);
void worlds_connection_lost(struct connection *connection);

/* ---- server.c -------------------------------------------------------------------------------- */

enum watch_kind {
    WATCH_LISTENER = 1,
    WATCH_SIGNALS = 2,
    WATCH_CONNECTION = 3,
    WATCH_REPORT = 4,
    WATCH_LEDGER = 5,
};

int server_watch(int fd, enum watch_kind kind);
/* Whether this process, in our pid namespace, is a host that talks to us. */
bool server_is_host(pid_t pid);
void server_run(int listener, int signals);
void server_reply(struct connection *to, uint16_t type, uint32_t request, const void *payload,
                  size_t length, const int *fds, size_t fd_count);
void server_reply_fail(struct connection *to, uint32_t request, const struct fail *fail);
void server_broadcast(uint16_t type, const void *payload, size_t length);

#endif
