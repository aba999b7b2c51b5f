/*
 * The kernel's ledger of a world: which processes ran, as the kernel tells it.
 *
 * The launcher appends fixed-size records to a file for each world (ledger.c); substrate-decode
 * reads it with pread (--ledger-fd) and reconciles it with what programs say of themselves. Little
 * endian, naturally aligned. Records are in the order of their times, but for what different
 * processors saw within a millisecond.
 *
 * Growth: new record types go to the end, readers skip those they do not know; anything else raises
 * SUB_LEDGER_VERSION.
 */
#ifndef SUBSTRATE_LEDGER_H
#define SUBSTRATE_LEDGER_H

#include <stdint.h>

#define SUB_LEDGER_MAGIC 0x314745444c425553ULL /* "SUBLDEG1" */
#define SUB_LEDGER_VERSION 1u

enum sub_ledger_source {
    SUB_LEDGER_BPF = 1,            /* raw tracepoints, filtered by cgroup */
    SUB_LEDGER_PROC_CONNECTOR = 2, /* netlink; pids of short-lived processes may be missing */
};

struct sub_ledger_header {
    uint64_t magic;
    uint16_t version;
    uint16_t header_bytes;      /* where the first record starts */
    uint16_t record_bytes;      /* sizeof(struct sub_ledger_record) */
    uint16_t source;            /* SUB_LEDGER_* */
    uint32_t segments_attested; /* SUB_LEDGER_SEGMENT records are complete for this world */
    uint32_t reserved32;
    uint64_t pid_namespace; /* inode; of the world's init */
    /*
     * Where the first record that still matters starts; 0: at header_bytes. What lies before it was
     * read by all steps and may be gone: a hole, which reads as records of type 0. The launcher moves
     * it forward, by one aligned store, when the host says from when on it reads.
     */
    uint64_t first;
    uint64_t reserved[3];
};
_Static_assert(sizeof(struct sub_ledger_header) == 64, "the ledger header is part of the format");

enum sub_ledger_type {
    /*
     * pid is a child of parent; threads are left out. value: the host's pid of who called, status:
     * its pid, or 0; another than the parent's where the call was clone with CLONE_PARENT.
     */
    SUB_LEDGER_FORK = 1,
    SUB_LEDGER_EXEC = 2,    /* name: the path as passed to the kernel, its last bytes if too long */
    SUB_LEDGER_EXIT = 3,    /* the whole process; status as of wait(2) */
    SUB_LEDGER_LOST = 4,    /* value: so many records found no room */
    SUB_LEDGER_SEGMENT = 5, /* name: a file that pid made in the segment directory */
    SUB_LEDGER_REMOVED = 6, /* name: a file that pid removed or renamed there */
};

#define SUB_LEDGER_NAME 72

/* Bit of sub_ledger_record.flags: `name` holds the last bytes of a longer one. */
#define SUB_LEDGER_CUT 1u
/* Bits of that of FORK, neither where the source cannot tell: the child's memory is its parent's. */
#define SUB_LEDGER_SHARED 2u
#define SUB_LEDGER_SEPARATE 4u

struct sub_ledger_record {
    uint16_t type;
    uint16_t flags;
    uint32_t value;
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    int32_t pid;      /* thread group, in the world's pid namespace; 0 when not known */
    int32_t parent;   /* of FORK, same; 0 when not known or outside */
    int32_t host_pid; /* the same two in the launcher's pid namespace */
    int32_t host_parent;
    int32_t status;
    char comm[12];                  /* cut, padded with zeros */
    char name[SUB_LEDGER_NAME + 4]; /* ends with a zero */
};
_Static_assert(sizeof(struct sub_ledger_record) == 128, "the ledger record is part of the format");

#endif
