/*
 * The ledger's BPF programs: what happens on fork, exec and exit of a process in a world.
 *
 * They are put together here, for the offsets of the running kernel, because neither a compiler nor
 * libbpf is at hand where Substrate runs. Each is straight-line code with forward jumps: cheap to
 * verify, and bounded. Registers: r6 the context, later the task; r7 the world's counters; r8 the
 * record, from its reservation to its submission; r9 what a program needs for itself.
 *
 * They call helpers that are for GPL-compatible programs: these instruction sequences may be used
 * under the Apache License 2.0 or the GNU General Public License, version 2.
 */
#include "ledger_programs.h"

#include <stdlib.h>

/* Of the ring, for one world: a fork bomb loses its own records, not its neighbours'. */
#define WORLD_SHARE 16000
/* Bytes in the ring from which on we are woken; below, a reader asks when it needs to know. */
#define WAKE_BYTES (512 << 10)

/* Stack slots. */
#define AT_CGROUP (-8)
#define AT_SLOT (-12)
#define AT_KEY (-16)
#define AT_POINTER (-24)
#define AT_WORD (-28)
#define AT_TGID (-32)

#define SIGNAL_GROUP_EXIT 4 /* include/linux/sched/signal.h */
#define PIDTYPE_TGID 1      /* include/linux/pid_types.h */

static void emit(struct program *p, uint8_t code, int dst, int src, int offset, int32_t imm) {
    if (p->count == INSTRUCTIONS_MAX)
        abort(); /* the programs do not depend on anything but this file */
    p->code[p->count++] = (struct bpf_insn){.code = code,
                                            .dst_reg = (uint8_t)(dst & 15),
                                            .src_reg = (uint8_t)(src & 15),
                                            .off = (int16_t)offset,
                                            .imm = imm};
}

#define MOVE(dst, src) emit(p, BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0)
#define SET(dst, imm) emit(p, BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, (int32_t)(imm))
#define ADD(dst, imm) emit(p, BPF_ALU64 | BPF_ADD | BPF_K, dst, 0, 0, (int32_t)(imm))
#define AND(dst, imm) emit(p, BPF_ALU64 | BPF_AND | BPF_K, dst, 0, 0, (int32_t)(imm))
#define ADD_REGISTER(dst, src) emit(p, BPF_ALU64 | BPF_ADD | BPF_X, dst, src, 0, 0)
#define SUBTRACT(dst, src) emit(p, BPF_ALU64 | BPF_SUB | BPF_X, dst, src, 0, 0)
#define LOAD(size, dst, src, offset) emit(p, BPF_LDX | BPF_MEM | (size), dst, src, offset, 0)
#define STORE(size, dst, offset, src) emit(p, BPF_STX | BPF_MEM | (size), dst, src, offset, 0)
#define STORE_CONSTANT(size, dst, offset, imm)                                                     \
    emit(p, BPF_ST | BPF_MEM | (size), dst, 0, offset, (int32_t)(imm))
#define CALL(helper) emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, helper)
#define END() emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
#define FIELD(member)                                                                              \
    ((int)(offsetof(struct ring_event, record) + offsetof(struct sub_ledger_record, member)))

/* A forward jump, whose target is set by `land`. */
static uint32_t jump(struct program *p, uint8_t condition, int dst, int32_t imm) {
    emit(p, BPF_JMP | condition | BPF_K, dst, 0, 0, imm);
    return p->count - 1;
}

static uint32_t jump_registers(struct program *p, uint8_t condition, int dst, int src) {
    emit(p, BPF_JMP | condition | BPF_X, dst, src, 0, 0);
    return p->count - 1;
}

static void land(struct program *p, uint32_t from) {
    p->code[from].off = (int16_t)(p->count - from - 1);
}

static void load_map(struct program *p, int dst, int map) {
    emit(p, BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_FD, 0, map);
    emit(p, 0, 0, 0, 0, 0);
}

/* r1: where to, a register and offset; size; r3 holds the address. */
static void read_kernel(struct program *p, int base, int offset, uint32_t size) {
    MOVE(1, base);
    ADD(1, offset);
    SET(2, size);
    CALL(BPF_FUNC_probe_read_kernel);
}

/* AT_POINTER = *(task + offset), for further reads. */
static void follow_task(struct program *p, int task, uint32_t offset) {
    MOVE(3, task);
    ADD(3, offset);
    read_kernel(p, 10, AT_POINTER, 8);
}

/* *(base + to) = *(AT_POINTER + offset). */
static void read_pointed(struct program *p, uint32_t offset, int base, int to, uint32_t size) {
    LOAD(BPF_DW, 3, 10, AT_POINTER);
    ADD(3, offset);
    read_kernel(p, base, to, size);
}

/* Jumps that leave a program before it has a record. */
struct exits {
    uint32_t at[8];
    int count;
};

static void leave_if(struct exits *exits, uint32_t jump_at) {
    exits->at[exits->count++] = jump_at;
}

/*
 * r8 = a zeroed record with world, type and time; leaves for processes outside worlds. The current
 * cgroup may lie below the world's: each exec has one of its own.
 */
static void begin_record(struct program *p, const struct program_maps *maps, struct depths depths,
                         uint16_t type, struct exits *exits) {
    SET(1, depths.cgroup);
    CALL(BPF_FUNC_get_current_ancestor_cgroup_id);
    STORE(BPF_DW, 10, AT_CGROUP, 0);
    load_map(p, 1, maps->worlds);
    MOVE(2, 10);
    ADD(2, AT_CGROUP);
    CALL(BPF_FUNC_map_lookup_elem);
    leave_if(exits, jump(p, BPF_JEQ, 0, 0));
    LOAD(BPF_W, 1, 0, 0);
    STORE(BPF_W, 10, AT_SLOT, 1);
    load_map(p, 1, maps->counters);
    MOVE(2, 10);
    ADD(2, AT_SLOT);
    CALL(BPF_FUNC_map_lookup_elem);
    leave_if(exits, jump(p, BPF_JEQ, 0, 0));
    MOVE(7, 0);
    LOAD(BPF_DW, 1, 7, offsetof(struct ring_counters, produced));
    LOAD(BPF_DW, 2, 7, offsetof(struct ring_counters, consumed));
    SUBTRACT(1, 2);
    uint32_t over = jump(p, BPF_JGT, 1, WORLD_SHARE);
    load_map(p, 1, maps->ring);
    SET(2, sizeof(struct ring_event));
    SET(3, 0);
    CALL(BPF_FUNC_ringbuf_reserve);
    uint32_t reserved = jump(p, BPF_JNE, 0, 0);
    land(p, over);
    SET(1, 1);
    emit(p, BPF_STX | BPF_ATOMIC | BPF_DW, 7, 1, offsetof(struct ring_counters, lost), BPF_ADD);
    SET(0, 0);
    END();
    land(p, reserved);
    MOVE(8, 0);
    SET(1, 1);
    emit(p, BPF_STX | BPF_ATOMIC | BPF_DW, 7, 1, offsetof(struct ring_counters, produced), BPF_ADD);
    for (uint32_t at = 0; at < sizeof(struct ring_event); at += 8)
        STORE_CONSTANT(BPF_DW, 8, (int)at, 0);
    LOAD(BPF_DW, 1, 10, AT_CGROUP);
    STORE(BPF_DW, 8, offsetof(struct ring_event, cgroup_id), 1);
    LOAD(BPF_W, 1, 10, AT_SLOT);
    STORE(BPF_W, 8, offsetof(struct ring_event, slot), 1);
    STORE_CONSTANT(BPF_H, 8, FIELD(type), type);
    CALL(BPF_FUNC_ktime_get_ns);
    STORE(BPF_DW, 8, FIELD(time_ns), 0);
}

static void submit_record(struct program *p, const struct program_maps *maps) {
    load_map(p, 1, maps->ring);
    SET(2, BPF_RB_AVAIL_DATA);
    CALL(BPF_FUNC_ringbuf_query);
    SET(2, BPF_RB_NO_WAKEUP);
    uint32_t quiet = jump(p, BPF_JLT, 0, WAKE_BYTES);
    SET(2, BPF_RB_FORCE_WAKEUP);
    land(p, quiet);
    MOVE(1, 8);
    CALL(BPF_FUNC_ringbuf_submit);
}

static void finish(struct program *p, const struct exits *exits) {
    for (int i = 0; i < exits->count; i++)
        land(p, exits->at[i]);
    SET(0, 0);
    END();
}

/* The pids of a task's group, in the world's namespace and in ours; 0 for what lies outside. */
static void record_pids(struct program *p, const struct kernel_offsets *o, struct depths depths,
                        int task, int pid_field, int host_field) {
    follow_task(p, task, o->task_signal);
    read_pointed(p, o->signal_pids + 8 * PIDTYPE_TGID, 10, AT_POINTER, 8);
    read_pointed(p, o->pid_level, 10, AT_WORD, 4);
    LOAD(BPF_W, 1, 10, AT_WORD);
    uint32_t outside = jump(p, BPF_JLT, 1, (int32_t)depths.pid);
    read_pointed(p, o->pid_numbers + depths.pid * o->upid_size + o->upid_nr, 8, pid_field, 4);
    land(p, outside);
    LOAD(BPF_W, 1, 10, AT_WORD);
    uint32_t unseen = jump(p, BPF_JLT, 1, (int32_t)depths.pid - 1);
    read_pointed(p, o->pid_numbers + (depths.pid - 1) * o->upid_size + o->upid_nr, 8, host_field,
                 4);
    land(p, unseen);
}

static void record_comm(struct program *p, const struct kernel_offsets *o, int task) {
    SET(2, sizeof((struct sub_ledger_record *)0)->comm);
    MOVE(3, task);
    ADD(3, o->task_comm);
    MOVE(1, 8);
    ADD(1, FIELD(comm));
    CALL(BPF_FUNC_probe_read_kernel_str);
}

/* Whether the child's memory is its parent's, as after vfork; the cgroup is not needed any more. */
static void record_memory(struct program *p, const struct kernel_offsets *o, int child,
                          int parent) {
    MOVE(3, child);
    ADD(3, o->task_mm);
    read_kernel(p, 10, AT_CGROUP, 8);
    follow_task(p, parent, o->task_mm);
    LOAD(BPF_DW, 1, 10, AT_CGROUP);
    LOAD(BPF_DW, 2, 10, AT_POINTER);
    STORE_CONSTANT(BPF_H, 8, FIELD(flags), SUB_LEDGER_SHARED);
    uint32_t shared = jump_registers(p, BPF_JEQ, 1, 2);
    STORE_CONSTANT(BPF_H, 8, FIELD(flags), SUB_LEDGER_SEPARATE);
    land(p, shared);
}

/* sched_process_fork(parent, child) */
void program_fork(struct program *p, const struct program_maps *maps,
                  const struct kernel_offsets *o, struct depths depths) {
    struct exits exits = {0};
    LOAD(BPF_DW, 6, 1, 8);
    LOAD(BPF_DW, 9, 1, 0);
    /* Threads are left out: their id is not their group's. */
    MOVE(3, 6);
    ADD(3, o->task_pid);
    read_kernel(p, 10, AT_WORD, 4);
    MOVE(3, 6);
    ADD(3, o->task_tgid);
    read_kernel(p, 10, AT_TGID, 4);
    LOAD(BPF_W, 1, 10, AT_WORD);
    LOAD(BPF_W, 2, 10, AT_TGID);
    leave_if(&exits, jump_registers(p, BPF_JNE, 1, 2));
    begin_record(p, maps, depths, SUB_LEDGER_FORK, &exits);
    record_pids(p, o, depths, 6, FIELD(pid), FIELD(host_pid));
    record_comm(p, o, 6);
    record_memory(p, o, 6, 9);
    record_pids(p, o, depths, 9, FIELD(status), FIELD(value));
    /* Not whoever called: with CLONE_PARENT the child's parent is the caller's. */
    follow_task(p, 6, o->task_parent);
    LOAD(BPF_DW, 9, 10, AT_POINTER);
    record_pids(p, o, depths, 9, FIELD(parent), FIELD(host_parent));
    submit_record(p, maps);
    finish(p, &exits);
}

/* The path as passed to execve, its last bytes where it is longer than a record. */
static void record_name(struct program *p, const struct program_maps *maps) {
    STORE_CONSTANT(BPF_W, 10, AT_KEY, 0);
    load_map(p, 1, maps->scratch);
    MOVE(2, 10);
    ADD(2, AT_KEY);
    CALL(BPF_FUNC_map_lookup_elem);
    uint32_t no_scratch = jump(p, BPF_JEQ, 0, 0);
    MOVE(9, 0);
    MOVE(1, 9);
    SET(2, SCRATCH_BYTES);
    LOAD(BPF_DW, 3, 10, AT_POINTER);
    CALL(BPF_FUNC_probe_read_kernel_str);
    uint32_t unreadable = jump(p, BPF_JSLE, 0, 0);
    const uint32_t room = sizeof((struct sub_ledger_record *)0)->name;
    uint32_t fits = jump(p, BPF_JLE, 0, (int32_t)room);
    STORE_CONSTANT(BPF_H, 8, FIELD(flags), SUB_LEDGER_CUT);
    ADD(0, -(int32_t)room);
    AND(0, SCRATCH_BYTES - 1); /* for the verifier: it is less already */
    ADD_REGISTER(9, 0);
    land(p, fits);
    MOVE(1, 8);
    ADD(1, FIELD(name));
    SET(2, room);
    MOVE(3, 9);
    CALL(BPF_FUNC_probe_read_kernel_str);
    land(p, unreadable);
    land(p, no_scratch);
}

/* sched_process_exec(task, old pid, binprm) */
void program_exec(struct program *p, const struct program_maps *maps,
                  const struct kernel_offsets *o, struct depths depths) {
    struct exits exits = {0};
    MOVE(6, 1);
    begin_record(p, maps, depths, SUB_LEDGER_EXEC, &exits);
    LOAD(BPF_DW, 9, 6, 0);
    record_pids(p, o, depths, 9, FIELD(pid), FIELD(host_pid));
    record_comm(p, o, 9);
    LOAD(BPF_DW, 3, 6, 16);
    ADD(3, o->bprm_filename);
    read_kernel(p, 10, AT_POINTER, 8);
    record_name(p, maps);
    submit_record(p, maps);
    finish(p, &exits);
}

/* sched_process_exit(task[, group_dead]) */
void program_exit(struct program *p, const struct program_maps *maps,
                  const struct kernel_offsets *o, struct depths depths, bool told) {
    struct exits exits = {0};
    LOAD(BPF_DW, 6, 1, 0);
    if (told) {
        LOAD(BPF_DW, 2, 1, 8);
        AND(2, 1);
        leave_if(&exits, jump(p, BPF_JEQ, 2, 0));
    } else {
        /* Two last threads that end together may both see none alive: the end is told twice. */
        follow_task(p, 6, o->task_signal);
        read_pointed(p, o->signal_live, 10, AT_WORD, 4);
        LOAD(BPF_W, 1, 10, AT_WORD);
        leave_if(&exits, jump(p, BPF_JNE, 1, 0));
    }
    begin_record(p, maps, depths, SUB_LEDGER_EXIT, &exits);
    record_pids(p, o, depths, 6, FIELD(pid), FIELD(host_pid));
    record_comm(p, o, 6);
    /* As wait_task_zombie (kernel/exit.c) takes it: the group's, or the leader's own. */
    follow_task(p, 6, o->task_signal);
    read_pointed(p, o->signal_flags, 10, AT_WORD, 4);
    LOAD(BPF_W, 1, 10, AT_WORD);
    AND(1, SIGNAL_GROUP_EXIT);
    uint32_t single = jump(p, BPF_JEQ, 1, 0);
    read_pointed(p, o->signal_exit_code, 8, FIELD(status), 4);
    uint32_t done = jump(p, BPF_JA, 0, 0);
    land(p, single);
    follow_task(p, 6, o->task_leader);
    read_pointed(p, o->task_exit_code, 8, FIELD(status), 4);
    land(p, done);
    submit_record(p, maps);
    finish(p, &exits);
}

#define DEPTH_MAX 64

void program_depths(struct program *p, const struct kernel_offsets *o) {
    uint32_t found[DEPTH_MAX];
    CALL(BPF_FUNC_get_current_cgroup_id);
    MOVE(7, 0);
    for (int depth = 0; depth < DEPTH_MAX; depth++) {
        SET(9, depth);
        SET(1, depth);
        CALL(BPF_FUNC_get_current_ancestor_cgroup_id);
        found[depth] = jump_registers(p, BPF_JEQ, 0, 7);
    }
    for (int depth = 0; depth < DEPTH_MAX; depth++)
        land(p, found[depth]);
    CALL(BPF_FUNC_get_current_task);
    MOVE(6, 0);
    follow_task(p, 6, o->task_signal);
    read_pointed(p, o->signal_pids + 8 * PIDTYPE_TGID, 10, AT_POINTER, 8);
    read_pointed(p, o->pid_level, 10, AT_WORD, 4);
    LOAD(BPF_W, 0, 10, AT_WORD);
    emit(p, BPF_ALU64 | BPF_LSH | BPF_K, 9, 0, 0, 16);
    emit(p, BPF_ALU64 | BPF_OR | BPF_X, 0, 9, 0, 0);
    END();
}
