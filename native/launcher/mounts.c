/*
 * The mount operations of a box, with the mount API of Linux 5.2+ (fsopen, open_tree, move_mount)
 * and mount_setattr (5.12). Everything is resolved inside the box's root by openat2: what an
 * earlier world left in an upper layer (symbolic links in odd places) never leads to the host.
 */
#include "launcher.h"

#include <linux/mount.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#define TMPFS_MAGIC 0x01021994
#define RESOLVE_FLAGS (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
#define MOUNT_SAFE (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)

static int sys_open_tree(int dir, const char *path, unsigned flags) {
    return (int)syscall(SYS_open_tree, dir, path, flags | OPEN_TREE_CLOEXEC);
}

static int sys_move_mount(int from, const char *from_path, int to, const char *to_path,
                          unsigned flags) {
    return (int)syscall(SYS_move_mount, from, from_path, to, to_path, flags);
}

static int sys_mount_setattr(int fd, unsigned flags, uint64_t set, int userns_fd) {
    struct mount_attr attributes = {
        .attr_set = set | (userns_fd >= 0 ? MOUNT_ATTR_IDMAP : 0),
        .userns_fd = userns_fd >= 0 ? (uint64_t)userns_fd : 0,
    };
    return (int)syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | flags, &attributes,
                        sizeof attributes);
}

static int open_in(int root, const char *path, uint64_t flags, uint64_t mode) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = RESOLVE_FLAGS};
    long fd;
    do /* EAGAIN: a rename raced with "..": nothing renames here, but the kernel may say so */
        fd = syscall(SYS_openat2, root, path, &how, sizeof how);
    while (fd < 0 && (errno == EAGAIN || errno == EINTR));
    return (int)fd;
}

int tree_resolve(struct tree *tree, const char *path) {
    return open_in(tree->root_fd, path, O_PATH, 0);
}

/* The kernel's own words on why a mount failed, where it has any (fsopen(2), "message log"). */
static void add_mount_log(int fs, char *out, size_t room) {
    out[0] = 0;
    ssize_t got = read(fs, out, room - 1);
    if (got <= 0)
        return;
    out[got] = 0;
    for (char *c = out; *c; c++)
        if (*c == '\n')
            *c = ' ';
}

/* `options`: name, value (NULL: a flag), ..., NULL. */
static int configure(int fs, const char *const *options, struct fail *fail, const char *type) {
    for (; *options; options += 2) {
        unsigned command = options[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
        if (syscall(SYS_fsconfig, fs, command, options[0], options[1], 0)) {
            int error = errno;
            char log[256];
            add_mount_log(fs, log, sizeof log);
            return fail_set(fail, error, "%s option %s=%s %s", type, options[0],
                            options[1] ? options[1] : "", log);
        }
    }
    return 0;
}

static int create_and_mount(int fs, uint64_t attributes, struct fail *fail, const char *type) {
    if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0)) {
        int error = errno;
        char log[256];
        add_mount_log(fs, log, sizeof log);
        return fail_set(fail, error, "mounting %s %s", type, log);
    }
    int mount_fd = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes);
    if (mount_fd < 0)
        return fail_set(fail, errno, "fsmount %s", type);
    return mount_fd;
}

int mount_fs(const char *type, const char *const *options, uint64_t attributes, struct fail *fail) {
    SUB_AUTO_FD fs = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (fs < 0)
        return fail_set(fail, errno, "fsopen %s", type);
    if (configure(fs, options, fail, type))
        return -1;
    return create_and_mount(fs, attributes, fail, type);
}

int overlay_mount(const char *lowers, const char *upper, const char *work,
                  const char *const *options, struct fail *fail) {
    SUB_AUTO_FD fs = (int)syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC);
    if (fs < 0)
        return fail_set(fail, errno, "fsopen overlay");
    const char *layers[] = {"lowerdir", lowers, "upperdir", upper, "workdir", work, NULL, NULL};
    if (configure(fs, layers, fail, "overlay") || configure(fs, options, fail, "overlay"))
        return -1;
    SUB_AUTO_FD mount_fd = create_and_mount(fs, MOUNT_SAFE, fail, "overlay");
    if (mount_fd < 0)
        return -1;
    /* Where overlayfs cannot write its work directory it mounts read-only and says nothing. */
    struct statfs status;
    if (fstatfs(mount_fd, &status))
        return fail_set(fail, errno, "statfs of overlay");
    if (status.f_flags & ST_RDONLY)
        return fail_set(fail, EROFS, "overlay was mounted read-only (its work directory refused)");
    int kept = mount_fd;
    mount_fd = -1;
    return kept;
}

/* A private clone of a host path with `attributes`, id-mapped where the tree maps and `map`. */
static int clone_path(struct tree *tree, const char *path, uint64_t attributes, bool map,
                      bool map_or_not) {
    SUB_AUTO_FD fd = sys_open_tree(AT_FDCWD, path, OPEN_TREE_CLONE);
    if (fd < 0 && errno == EINVAL && tree->rootless)
        /* Locked mounts below cannot be left behind in a user namespace; they come along. */
        fd = sys_open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | AT_RECURSIVE);
    if (fd < 0)
        return fail_set(tree->fail, errno, "open_tree %s", path);
    int userns = map ? tree->userns_fd : -1;
    if (sys_mount_setattr(fd, 0, attributes, userns)) {
        int error = errno;
        if (!(userns >= 0 && map_or_not && error == EINVAL &&
              sys_mount_setattr(fd, 0, attributes, -1) == 0))
            return fail_set(tree->fail, error, "%s %s",
                            userns >= 0 ? "id-mapping" : "mount_setattr", path);
    }
    int kept = fd;
    fd = -1;
    return kept;
}

/* ---- places in the box ---------------------------------------------------------------------- */

/* Makes the missing parts of `path`, but only on tmpfs: layers stay as they are. */
static int make_place(struct tree *tree, const char *path, bool is_dir) {
    char so_far[4096];
    size_t length = strlen(path);
    if (path[0] != '/' || length >= sizeof so_far)
        return fail_set(tree->fail, EINVAL, "target %s", path);
    for (size_t at = 1; at <= length; at++) {
        if (path[at] != '/' && path[at] != 0)
            continue;
        if (path[at - 1] == '/')
            continue;
        memcpy(so_far, path, at);
        so_far[at] = 0;
        SUB_AUTO_FD there = tree_resolve(tree, so_far);
        if (there >= 0)
            continue;
        if (errno != ENOENT)
            return fail_set(tree->fail, errno, "target %s", so_far);
        char *slash = strrchr(so_far, '/');
        *slash = 0;
        SUB_AUTO_FD parent = tree_resolve(tree, so_far[0] ? so_far : "/");
        struct statfs status;
        if (parent < 0 || fstatfs(parent, &status))
            return fail_set(tree->fail, errno, "target %s", path);
        if (status.f_type != TMPFS_MAGIC)
            return fail_set(tree->fail, ENOENT, "target %s", path);
        bool last = at == length;
        if (last && !is_dir) {
            SUB_AUTO_FD made = openat(parent, slash + 1, O_CREAT | O_EXCL | O_CLOEXEC, 0644);
            if (made < 0)
                return fail_set(tree->fail, errno, "making target %s", path);
        } else if (mkdirat(parent, slash + 1, 0755)) {
            return fail_set(tree->fail, errno, "making target %s", path);
        }
    }
    return 0;
}

int tree_attach(struct tree *tree, int mount_fd, const char *target, bool is_dir) {
    if (tree->root_fd < 0) {
        if (strcmp(target, "/") != 0)
            return fail_set(tree->fail, EINVAL, "the first operation must mount /, not %s", target);
        if (sys_move_mount(mount_fd, "", tree->stage_fd, "root", MOVE_MOUNT_F_EMPTY_PATH))
            return fail_set(tree->fail, errno, "attaching the root");
        tree->root_fd = openat(tree->stage_fd, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
        return tree->root_fd < 0 ? fail_set(tree->fail, errno, "opening the root") : 0;
    }
    SUB_AUTO_FD place = tree_resolve(tree, target);
    if (place < 0 && errno == ENOENT) {
        if (make_place(tree, target, is_dir))
            return -1;
        place = tree_resolve(tree, target);
    }
    if (place < 0)
        return fail_set(tree->fail, errno, "target %s", target);
    if (sys_move_mount(mount_fd, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
        return fail_set(tree->fail, errno, "attaching at %s", target);
    return 0;
}

static int is_directory(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
}

int tree_tmpfs(struct tree *tree, const char *target, uint32_t mode, uint64_t size,
               bool read_only) {
    char size_text[32], mode_text[16], inodes[32];
    uint64_t files = (size >> 12) + 1024; /* inodes are kernel memory: bound them with the size */
    snprintf(size_text, sizeof size_text, "%llu", (unsigned long long)size);
    snprintf(inodes, sizeof inodes, "%llu", (unsigned long long)files);
    snprintf(mode_text, sizeof mode_text, "0%o", mode);
    const char *options[] = {"mode", mode_text, "size", size_text, "nr_inodes", inodes, NULL};
    SUB_AUTO_FD fd =
        mount_fs("tmpfs", options, MOUNT_SAFE | (read_only ? MOUNT_ATTR_RDONLY : 0), tree->fail);
    return fd < 0 ? -1 : tree_attach(tree, fd, target, true);
}

int tree_bind(struct tree *tree, const char *source, const char *target, bool read_only, bool dev) {
    uint64_t attributes = MOUNT_ATTR_NOSUID | (read_only ? MOUNT_ATTR_RDONLY : 0) |
                          (dev ? MOUNT_ATTR_NOEXEC : MOUNT_ATTR_NODEV);
    SUB_AUTO_FD fd = clone_path(tree, source, attributes, true, true);
    return fd < 0 ? -1 : tree_attach(tree, fd, target, is_directory(fd));
}

int tree_make_read_only(struct tree *tree, const char *target) {
    SUB_AUTO_FD place = tree_resolve(tree, target);
    if (place < 0)
        return errno == ENOENT ? 0 : fail_set(tree->fail, errno, "%s", target);
    SUB_AUTO_FD fd = sys_open_tree(place, "", OPEN_TREE_CLONE | AT_EMPTY_PATH | AT_RECURSIVE);
    if (fd < 0 || sys_mount_setattr(fd, 0, MOUNT_ATTR_RDONLY, -1) ||
        sys_move_mount(fd, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
        return fail_set(tree->fail, errno, "making %s read-only", target);
    return 0;
}

/* Covers `target` with a read-only clone of an entry of the stage, where there is something. */
static int mask_with(struct tree *tree, const char *target, const char *cover, bool is_dir) {
    SUB_AUTO_FD place = tree_resolve(tree, target);
    if (place < 0)
        return errno == ENOENT || errno == ENOTDIR ? 0 : fail_set(tree->fail, errno, "%s", target);
    if (is_directory(place) != is_dir) {
        is_dir = !is_dir; /* it changed its kind since the profile was made; still hide it */
        cover = is_dir ? "mask-dir" : "mask-file";
    }
    SUB_AUTO_FD fd = sys_open_tree(tree->stage_fd, cover, OPEN_TREE_CLONE);
    if (fd < 0 ||
        sys_mount_setattr(fd, 0, MOUNT_ATTR_RDONLY | MOUNT_SAFE | MOUNT_ATTR_NOEXEC, -1) ||
        sys_move_mount(fd, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
        return fail_set(tree->fail, errno, "masking %s", target);
    return 0;
}

int tree_mask_file(struct tree *tree, const char *target) {
    return mask_with(tree, target, "mask-file", false);
}

int tree_mask_dir(struct tree *tree, const char *target) {
    return mask_with(tree, target, "mask-dir", true);
}

/* ---- operations ------------------------------------------------------------------------------ */

/* A name of the stage for a layer, short: fsconfig takes 255 bytes for all lowers together. */
static int stage_layer(struct tree *tree, int mount_fd, char *name, size_t room) {
    snprintf(name, room, "%d", tree->layers++);
    if (mkdirat(tree->stage_fd, name, 0700))
        return fail_set(tree->fail, errno, "staging layer %s", name);
    if (sys_move_mount(mount_fd, "", tree->stage_fd, name, MOVE_MOUNT_F_EMPTY_PATH))
        return fail_set(tree->fail, errno, "staging layer %s", name);
    return 0;
}

/* Length of the longest common directory of two absolute paths. */
static size_t common_directory(const char *a, const char *b) {
    size_t slash = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '/')
            slash = i;
    return slash;
}

static int apply_overlay(struct tree *tree, const struct op *op) {
    const char *target = op->strings[0], *upper = op->strings[1], *work = op->strings[2];
    char lowers[256] = "", name[16];
    for (uint16_t i = 3; i < op->string_count; i++) {
        bool map = !(op->value >> (i - 3) & 1);
        SUB_AUTO_FD fd = clone_path(tree, op->strings[i], MOUNT_SAFE, map, false);
        if (fd < 0 || stage_layer(tree, fd, name, sizeof name))
            return -1;
        size_t used = strlen(lowers);
        if (used + strlen(name) + 2 > sizeof lowers)
            return fail_set(tree->fail, E2BIG, "overlay of %s: too many layers", target);
        snprintf(lowers + used, sizeof lowers - used, "%s%s", used ? ":" : "", name);
    }
    /* upperdir and workdir must lie on one mount, so their common directory is what is cloned. */
    size_t shared = common_directory(upper, work);
    char parent[4096];
    if (upper[0] != '/' || work[0] != '/' || shared >= sizeof parent)
        return fail_set(tree->fail, EINVAL, "overlay of %s: upper %s, work %s", target, upper,
                        work);
    memcpy(parent, shared ? upper : "/", shared ? shared : 1);
    parent[shared ? shared : 1] = 0;
    SUB_AUTO_FD fd = clone_path(tree, parent, MOUNT_SAFE, true, false);
    if (fd < 0 || stage_layer(tree, fd, name, sizeof name))
        return -1;
    char upper_name[256], work_name[256];
    if ((size_t)snprintf(upper_name, sizeof upper_name, "%s%s", name, upper + shared) >=
            sizeof upper_name ||
        (size_t)snprintf(work_name, sizeof work_name, "%s%s", name, work + shared) >=
            sizeof work_name)
        return fail_set(tree->fail, ENAMETOOLONG, "overlay of %s: upper %s", target, upper);
    SUB_AUTO_FD overlay =
        overlay_mount(lowers, upper_name, work_name, config.overlay_options, tree->fail);
    if (overlay < 0) {
        size_t used = strlen(tree->fail->text);
        snprintf(tree->fail->text + used, sizeof tree->fail->text - used, " (overlay of %s)",
                 target);
        return -1;
    }
    return tree_attach(tree, overlay, target, true);
}

static int apply_grab(struct tree *tree, const struct op *op) {
    if (tree->grab_count == GRABS_MAX)
        return fail_set(tree->fail, E2BIG, "grab %s", op->strings[1]);
    SUB_AUTO_FD place = tree_resolve(tree, op->strings[1]);
    int fd =
        place < 0 ? -1 : sys_open_tree(place, "", OPEN_TREE_CLONE | AT_EMPTY_PATH | AT_RECURSIVE);
    if (fd < 0)
        return fail_set(tree->fail, errno, "grab %s", op->strings[1]);
    tree->grabs[tree->grab_count].name = op->strings[0];
    tree->grabs[tree->grab_count++].fd = fd;
    return 0;
}

static int apply_place(struct tree *tree, const struct op *op) {
    for (int i = 0; i < tree->grab_count; i++) {
        int *fd = &tree->grabs[i].fd;
        if (strcmp(tree->grabs[i].name, op->strings[0]) != 0 || *fd < 0)
            continue;
        if (op->read_only && sys_mount_setattr(*fd, AT_RECURSIVE, MOUNT_ATTR_RDONLY, -1))
            return fail_set(tree->fail, errno, "place %s", op->strings[1]);
        int result = tree_attach(tree, *fd, op->strings[1], is_directory(*fd));
        sub_close_fd(fd);
        return result;
    }
    return fail_set(tree->fail, 0, "place %s: nothing was grabbed as %s", op->strings[1],
                    op->strings[0]);
}

static int apply_symlink(struct tree *tree, const struct op *op) {
    char parent[4096];
    const char *target = op->strings[0], *slash = strrchr(target, '/');
    if (target[0] != '/' || !slash[1] || (size_t)(slash - target) >= sizeof parent)
        return fail_set(tree->fail, EINVAL, "symlink %s", target);
    memcpy(parent, target, (size_t)(slash - target));
    parent[slash - target] = 0;
    if (parent[0] && make_place(tree, parent, true))
        return -1;
    SUB_AUTO_FD dir = tree_resolve(tree, parent[0] ? parent : "/");
    struct statfs status;
    if (dir < 0 || fstatfs(dir, &status))
        return fail_set(tree->fail, errno, "symlink %s", target);
    if (status.f_type != TMPFS_MAGIC)
        return fail_set(tree->fail, EROFS, "symlink %s: only on a tmpfs", target);
    if (symlinkat(op->strings[1], dir, slash + 1))
        return fail_set(tree->fail, errno, "symlink %s", target);
    return 0;
}

int tree_apply(struct tree *tree, const struct op *op) {
    const char *first = op->strings[0];
    if (tree->root_fd < 0 && strcmp(first, "/") != 0)
        return fail_set(tree->fail, EINVAL, "the first operation must mount /, not %s", first);
    switch (op->kind) {
    case SUB_OP_OVERLAY:
        return apply_overlay(tree, op);
    case SUB_OP_BIND:
        return tree_bind(tree, op->strings[1], first, op->read_only, false);
    case SUB_OP_TMPFS:
        return tree_tmpfs(tree, first, op->mode, op->value, op->read_only);
    case SUB_OP_MASK_FILE:
        return tree_mask_file(tree, first);
    case SUB_OP_MASK_DIR:
        return tree_mask_dir(tree, first);
    case SUB_OP_GRAB:
        return apply_grab(tree, op);
    case SUB_OP_PLACE:
        return apply_place(tree, op);
    case SUB_OP_SYMLINK:
        return apply_symlink(tree, op);
    default:
        return fail_set(tree->fail, EINVAL, "unknown operation %u", op->kind);
    }
}

int tree_begin(struct tree *tree) {
    const char *options[] = {"mode", "0700", "size", "1m", NULL};
    SUB_AUTO_FD fd = mount_fs("tmpfs", options, MOUNT_SAFE, tree->fail);
    if (fd < 0)
        return -1;
    if (sys_move_mount(fd, "", AT_FDCWD, tree->stage_dir, MOVE_MOUNT_F_EMPTY_PATH))
        return fail_set(tree->fail, errno, "mounting on %s", tree->stage_dir);
    tree->stage_fd = open(tree->stage_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    /* overlayfs takes layers by path only (until 6.13): short ones, relative to the stage. */
    if (tree->stage_fd < 0 || fchdir(tree->stage_fd) || mkdir("root", 0755) ||
        mkdir("mask-dir", 0555) || mknod("mask-file", S_IFREG, 0))
        return fail_set(tree->fail, errno, "preparing %s", tree->stage_dir);
    /* Owned by an id the box does not have, no capability in the box opens the masks. */
    uid_t stranger = tree->id_base ? 0 : 0x7ffffffe;
    if (!tree->rootless &&
        (chown("mask-dir", stranger, stranger) || chown("mask-file", stranger, stranger)))
        return fail_set(tree->fail, errno, "preparing masks");
    return 0;
}
