/*
 * What the kernel tells of the worlds' processes: between the sources (ledger_bpf.c,
 * ledger_connector.c, ledger_segments.c) and the files that it is kept in (ledger.c).
 */
#ifndef SUBSTRATE_LAUNCHER_KERNEL_H
#define SUBSTRATE_LAUNCHER_KERNEL_H

#include "../include/ledger.h"
#include "launcher.h"

#define LEDGERS_MAX ID_SLOTS
#define HANDLE_BYTES 64u

/* One world's ledger. */
struct ledger {
    uint32_t slot;
    uint64_t cgroup_id;
    pid_t init; /* in our pid namespace; 0: not known yet */
    int fd;     /* the file */
    struct sub_ledger_header header;
    uint64_t end;   /* of the records that are written */
    uint64_t holes; /* what lies before has been given back to the file system */
    uint64_t lost;  /* records that found no room, in the file or on the way to it */
    uint64_t told;  /* of those, in SUB_LEDGER_LOST records */
    uint64_t fsid;  /* of the segment tmpfs, while header.segments_attested */
    uint8_t directory[HANDLE_BYTES]; /* its root, as the kernel names it in events */
    uint32_t directory_bytes;
};

uint64_t monotonic_ns(void);
/* The ledger of a slot, or NULL. */
struct ledger *ledger_at(uint32_t slot);
/* Keeps a record; what does not fit is counted. Records are written at the latest by flush. */
void ledger_append(struct ledger *ledger, const struct sub_ledger_record *record);
void ledger_flush(void);
/* Takes what the source of processes has, all of it. */
void ledger_read_processes(void);
/* Where a process of a world runs or has just run, by its pid in our namespace. */
struct known_process {
    int32_t host_pid, pid;
    uint32_t slot;
    uint64_t ended_ns; /* 0: it lives */
};
/* NULL: of no world, or too long ago. The second: of this world. */
const struct known_process *ledger_known(int32_t host_pid);
const struct known_process *ledger_process(const struct ledger *ledger, int32_t host_pid);

/* ---- ledger_btf.c ---------------------------------------------------------------------------- */

/* Byte offsets in this kernel's structures. */
struct kernel_offsets {
    uint32_t task_tgid, task_pid, task_signal, task_leader, task_parent, task_exit_code, task_comm;
    uint32_t task_mm;
    uint32_t signal_flags, signal_exit_code, signal_pids, signal_live;
    uint32_t pid_level, pid_numbers, upid_nr, upid_size;
    uint32_t bprm_filename;
};
int btf_offsets(struct kernel_offsets *offsets, struct fail *fail);

/* ---- ledger_bpf.c ---------------------------------------------------------------------------- */

/* Loads and attaches; the descriptor to watch, or -1 with `fail` filled. */
int bpf_start(struct fail *fail);
int bpf_add(struct ledger *ledger);
void bpf_remove(struct ledger *ledger);
/* Takes what is in the ring; `all`: everything that was there at the call, else a bounded part. */
void bpf_drain(bool all);
/* Records of this ledger that found no room in the ring. */
uint64_t bpf_lost(const struct ledger *ledger);

/* ---- ledger_segments.c ----------------------------------------------------------------------- */

int segments_start(struct fail *fail); /* 0, or -1 */
/* From now on it is told who makes and removes files in the segment directory. */
int segments_watch(struct ledger *ledger, int segments_fd);
void segments_drain(void);

/* ---- ledger_connector.c ---------------------------------------------------------------------- */

/* The descriptor to watch, or -1 with `fail` filled. */
int connector_start(struct fail *fail);
void connector_drain(bool all);

#endif
