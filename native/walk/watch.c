/*
 * Which inodes a world's processes have changed, from the kernel: raw tracepoints where ext4 and
 * the virtual file system change an inode.
 *
 * A walk compares what statx(2) tells. All of that is in the inode, and whatever changes it there
 * goes through __mark_inode_dirty, for file systems at large, or __ext4_mark_inode_dirty, for what
 * ext4 does within its own transactions; or, as with extended attributes, is a transaction that was
 * begun for that inode (__ext4_journal_start). All are passed whoever asks for the change: libc, a
 * system call of a program's own, io_uring, a page that is written through a mapping. One hash map
 * keeps each inode once until we take it: a storm costs its maker a look-up for each change, and us
 * nothing.
 *
 * The programs run for every such inode of the machine, and leave at once where the process is not
 * below the world's cgroup. What the kernel does for a world's process in a thread of its own
 * (writing back, finishing what was asked for asynchronously) belongs to what the process began,
 * and that was told (look, main.c).
 *
 * The program calls a helper that is for GPL-compatible programs: this instruction sequence may be
 * used under the Apache License 2.0 or the GNU General Public License, version 2.
 */
#define _GNU_SOURCE 1

#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../include/btf.h"

/* A step that changes more has everything looked at. */
#define INODES_MAX 16384u
#define DEPTH_MAX 64

/* All have the inode as their first argument. */
static const char *const tracepoints[] = {"writeback_mark_inode_dirty", "ext4_mark_inode_dirty",
                                          "ext4_journal_start_inode"};

static int inodes_map = -1, lost_map = -1, children_fd = -1;
static uint64_t keys[INODES_MAX];
static uint8_t values[INODES_MAX];

static int bpf(int command, union bpf_attr *attributes) {
    return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static int make_map(uint32_t type, uint32_t key, uint32_t value, uint32_t entries) {
    union bpf_attr attributes = {
        .map_type = type, .key_size = key, .value_size = value, .max_entries = entries};
    memcpy(attributes.map_name, "substrate", 10);
    return bpf(BPF_MAP_CREATE, &attributes);
}

static int load_program(const struct bpf_insn *code, size_t count) {
    union bpf_attr attributes = {.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT,
                                 .insn_cnt = (uint32_t)count,
                                 .insns = (uint64_t)(uintptr_t)code,
                                 .license = (uint64_t)(uintptr_t)"GPL"};
    memcpy(attributes.prog_name, "substrate", 10);
    return bpf(BPF_PROG_LOAD, &attributes);
}

static int attach(int program, const char *tracepoint) {
    union bpf_attr attributes = {
        .raw_tracepoint = {.name = (uint64_t)(uintptr_t)tracepoint, .prog_fd = (uint32_t)program}};
    return bpf(BPF_RAW_TRACEPOINT_OPEN, &attributes); /* ours for life */
}

#define INSTRUCTION(c, d, s, o, i)                                                                 \
    {.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)}
#define MOVE(d, s) INSTRUCTION(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define SET(d, i) INSTRUCTION(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD(d, i) INSTRUCTION(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define LOAD(d, s, o) INSTRUCTION(BPF_LDX | BPF_MEM | BPF_DW, d, s, o, 0)
#define STORE(size, d, o, i) INSTRUCTION(BPF_ST | BPF_MEM | (size), d, 0, o, i)
#define CALL(helper) INSTRUCTION(BPF_JMP | BPF_CALL, 0, 0, 0, helper)
#define END() INSTRUCTION(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
#define LOAD_WIDE(d, s, low, high)                                                                 \
    INSTRUCTION(BPF_LD | BPF_DW | BPF_IMM, d, s, 0, low), INSTRUCTION(0, 0, 0, 0, high)
#define LOAD_MAP(d, fd) LOAD_WIDE(d, BPF_PSEUDO_MAP_FD, fd, 0)
#define SKIP_IF(condition, register, to, instructions)                                             \
    INSTRUCTION(BPF_JMP | (condition), register, to, instructions, 0)

static int load_marker(uint32_t depth, uint64_t cgroup, uint32_t inode_number) {
    const struct bpf_insn code[] = {
        LOAD(6, 1, 0),
        SET(1, (int32_t)depth),
        CALL(BPF_FUNC_get_current_ancestor_cgroup_id),
        LOAD_WIDE(1, 0, (int32_t)cgroup, (int32_t)(cgroup >> 32)),
        SKIP_IF(BPF_JEQ | BPF_X, 0, 1, 2),
        SET(0, 0),
        END(),
        MOVE(1, 10),
        ADD(1, -8),
        SET(2, 8),
        MOVE(3, 6),
        ADD(3, (int32_t)inode_number),
        CALL(BPF_FUNC_probe_read_kernel),
        /* In the map already: until it is taken out, that will do. */
        LOAD_MAP(1, inodes_map),
        MOVE(2, 10),
        ADD(2, -8),
        CALL(BPF_FUNC_map_lookup_elem),
        SKIP_IF(BPF_JEQ | BPF_K, 0, 0, 2),
        SET(0, 0),
        END(),
        STORE(BPF_DW, 10, -16, 0),
        LOAD_MAP(1, inodes_map),
        MOVE(2, 10),
        ADD(2, -8),
        MOVE(3, 10),
        ADD(3, -16),
        SET(4, BPF_ANY),
        CALL(BPF_FUNC_map_update_elem),
        SKIP_IF(BPF_JNE | BPF_K, 0, 0, 2),
        SET(0, 0),
        END(),
        /* No room. */
        STORE(BPF_W, 10, -16, 0),
        LOAD_MAP(1, lost_map),
        MOVE(2, 10),
        ADD(2, -16),
        CALL(BPF_FUNC_map_lookup_elem),
        SKIP_IF(BPF_JEQ | BPF_K, 0, 0, 1),
        STORE(BPF_W, 0, 0, 1),
        SET(0, 0),
        END(),
    };
    return load_program(code, sizeof code / sizeof code[0]);
}

/* How deep our own cgroup lies, as the kernel counts: in a container /proc does not show it. */
static int own_depth(void) {
    struct bpf_insn code[2 + 4 * DEPTH_MAX + 2] = {CALL(BPF_FUNC_get_current_cgroup_id),
                                                   MOVE(7, 0)};
    size_t count = 2;
    for (int depth = 0; depth < DEPTH_MAX; depth++) {
        code[count++] = (struct bpf_insn)SET(9, depth);
        code[count++] = (struct bpf_insn)SET(1, depth);
        code[count++] = (struct bpf_insn)CALL(BPF_FUNC_get_current_ancestor_cgroup_id);
        code[count] =
            (struct bpf_insn)SKIP_IF(BPF_JEQ | BPF_X, 0, 7, (int16_t)(4 * (DEPTH_MAX - depth) - 4));
        count++;
    }
    code[count++] = (struct bpf_insn)MOVE(0, 9);
    code[count++] = (struct bpf_insn)END();
    SUB_AUTO_FD loaded = load_program(code, count);
    union bpf_attr attributes = {.test = {.prog_fd = (uint32_t)loaded}};
    if (loaded < 0 || bpf(BPF_PROG_TEST_RUN, &attributes))
        return -1;
    return (int)attributes.test.retval;
}

/* The path of a process in the hierarchy of version 2, as we see it; /proc/PID/cgroup. */
static bool cgroup_path(const char *process, char *path, size_t room) {
    char name[64], line[4200];
    snprintf(name, sizeof name, "/proc/%s/cgroup", process);
    FILE *file = fopen(name, "re");
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        found =
            strncmp(line, "0::/", 4) == 0 && (size_t)snprintf(path, room, "%s", line + 3) < room;
    }
    if (file)
        fclose(file);
    return found;
}

static int depth_of(const char *path) {
    int depth = 0;
    while (*path) {
        size_t length = strcspn(path, "/");
        if (length)
            depth += length == 2 && strncmp(path, "..", 2) == 0 ? -1 : 1;
        path += length + (path[length] == '/');
    }
    return depth;
}

static bool cgroup_mount(char *mount, size_t room) {
    char line[4200], root[2048], point[2048], type[64];
    FILE *file = fopen("/proc/self/mountinfo", "re");
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        const char *after = strstr(line, " - ");
        found = after && sscanf(after, " - %63s", type) == 1 && strcmp(type, "cgroup2") == 0 &&
                sscanf(line, "%*s %*s %*s %2047s %2047s", root, point) == 2 &&
                strcmp(root, "/") == 0 && (size_t)snprintf(mount, room, "%s", point) < room;
    }
    if (file)
        fclose(file);
    return found;
}

/* The id of the world's cgroup, and its depth as the kernel counts. */
static const char *find_cgroup(long init, const char *world_id, uint64_t *id, uint32_t *depth) {
    char own[4096], path[4096], process[32], mount[2048], whole[6200];
    snprintf(process, sizeof process, "%ld", init);
    if (!cgroup_path("self", own, sizeof own) || !cgroup_path(process, path, sizeof path) ||
        !cgroup_mount(mount, sizeof mount))
        return "no cgroup v2";
    char *at = strstr(path, world_id);
    if (!at || at == path || at[-1] != '/' || strstr(path, "/.."))
        return "the world has no cgroup v2 of its own";
    at[strlen(world_id)] = 0;
    snprintf(whole, sizeof whole, "%s%s", mount, path);
    struct stat status;
    if (stat(whole, &status))
        return "the world's cgroup is not to be seen";
    int ours = own_depth();
    int theirs = ours - depth_of(own) + depth_of(path);
    if (ours < 0 || theirs <= 0)
        return "no BPF for us";
    *id = status.st_ino; /* kernfs: the id is the inode's number */
    *depth = (uint32_t)theirs;
    return NULL;
}

static bool find_inode_number(uint32_t *offset) {
    struct btf btf = {0};
    const struct btf_type *type = btf_load(&btf) ? btf_find_struct(&btf, "inode") : NULL;
    bool found = type && btf_find_member(&btf, type, "i_ino", 0, offset);
    btf_free(&btf);
    return found;
}

const char *watch_begin(long init, const char *world_id, const int *roots, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        struct statfs on;
        if (fstatfs(roots[i], &on) || on.f_type != EXT4_SUPER_MAGIC)
            return "what the world writes is not on ext4";
    }
    uint64_t cgroup;
    uint32_t depth, inode_number;
    const char *problem = find_cgroup(init, world_id, &cgroup, &depth);
    if (problem)
        return problem;
    if (!find_inode_number(&inode_number))
        return "no kernel type information (CONFIG_DEBUG_INFO_BTF)";
    char children[64];
    snprintf(children, sizeof children, "/proc/%ld/task/%ld/children", init, init);
    children_fd = open(children, O_RDONLY | O_CLOEXEC);
    inodes_map = make_map(BPF_MAP_TYPE_HASH, 8, 1, INODES_MAX);
    lost_map = make_map(BPF_MAP_TYPE_ARRAY, 4, 4, 1);
    if (children_fd < 0 || inodes_map < 0 || lost_map < 0)
        return "no BPF maps for us";
    SUB_AUTO_FD marker = load_marker(depth, cgroup, inode_number);
    if (marker < 0)
        return "no BPF programs for us";
    for (size_t i = 0; i < sizeof tracepoints / sizeof tracepoints[0]; i++)
        if (attach(marker, tracepoints[i]) < 0)
            return "this kernel has not all the tracepoints";
    return NULL;
}

bool watch_take(struct inodes *inodes) {
    uint32_t position = 0, next = 0;
    for (bool first = true, done = false; !done; first = false) {
        union bpf_attr attributes = {
            .batch = {.in_batch = first ? 0 : (uint64_t)(uintptr_t)&position,
                      .out_batch = (uint64_t)(uintptr_t)&next,
                      .keys = (uint64_t)(uintptr_t)keys,
                      .values = (uint64_t)(uintptr_t)values,
                      .count = INODES_MAX,
                      .map_fd = (uint32_t)inodes_map}};
        int result = bpf(BPF_MAP_LOOKUP_AND_DELETE_BATCH, &attributes);
        if (result && errno != ENOENT)
            return false;
        done = result != 0;
        for (uint32_t i = 0; i < attributes.batch.count; i++)
            inodes_add(inodes, keys[i]);
        position = next;
    }
    uint32_t key = 0, lost = 0, none = 0;
    union bpf_attr attributes = {.map_fd = (uint32_t)lost_map,
                                 .key = (uint64_t)(uintptr_t)&key,
                                 .value = (uint64_t)(uintptr_t)&lost};
    if (bpf(BPF_MAP_LOOKUP_ELEM, &attributes))
        return false;
    if (lost) {
        attributes.value = (uint64_t)(uintptr_t)&none;
        bpf(BPF_MAP_UPDATE_ELEM, &attributes);
    }
    return !lost;
}

bool watch_is_quiet(void) {
    /* All that lives in a pid namespace descends from its init: proc_pid_children(5). */
    char text[8];
    return pread(children_fd, text, sizeof text, 0) == 0;
}
