/* A small assembler for the ledger's BPF programs, and the programs (ledger_programs.c). */
#ifndef SUBSTRATE_LAUNCHER_LEDGER_PROGRAMS_H
#define SUBSTRATE_LAUNCHER_LEDGER_PROGRAMS_H

#include "kernel.h"

#include <linux/bpf.h>

#define INSTRUCTIONS_MAX 768u

struct program {
    struct bpf_insn code[INSTRUCTIONS_MAX];
    uint32_t count;
};

/* One record in the ring. */
struct ring_event {
    uint64_t cgroup_id; /* of the world: a slot may be another world's by the time it is read */
    uint32_t slot;
    uint32_t reserved;
    struct sub_ledger_record record;
};

/* Element of the map of counters, by slot; shared with the programs. */
struct ring_counters {
    uint64_t produced; /* records put into the ring */
    uint64_t consumed; /* of those, taken by us */
    uint64_t lost;     /* found no room */
};

struct program_maps {
    int worlds, counters, ring, scratch;
};

/* Absolute depths: of the worlds' cgroups, and of their pid namespaces. */
struct depths {
    uint32_t cgroup, pid;
};

#define SCRATCH_BYTES 4096

void program_fork(struct program *program, const struct program_maps *maps,
                  const struct kernel_offsets *offsets, struct depths depths);
void program_exec(struct program *program, const struct program_maps *maps,
                  const struct kernel_offsets *offsets, struct depths depths);
/* `told`: the tracepoint says itself whether the whole group has ended (Linux 6.16). */
void program_exit(struct program *program, const struct program_maps *maps,
                  const struct kernel_offsets *offsets, struct depths depths, bool told);
/* Returns the caller's cgroup depth << 16 | its pid namespace's depth. */
void program_depths(struct program *program, const struct kernel_offsets *offsets);

#endif
