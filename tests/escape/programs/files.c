/* Files that are not shown, by every name and handle there is. */
#include "attempt.h"

#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

ATTEMPT(read_file) {
    return show_file(AT_FDCWD, words[0], O_RDONLY);
}

ATTEMPT(open_to_write) {
    return open(words[0], O_WRONLY | O_NONBLOCK | O_CLOEXEC);
}

ATTEMPT(read_by_symlink) {
    unlink("lnk");
    if (symlink(words[0], "lnk"))
        return REFUSED;
    return show_file(AT_FDCWD, "lnk", O_RDONLY);
}

ATTEMPT(read_by_hard_link) {
    unlink("hard");
    if (linkat(AT_FDCWD, words[0], AT_FDCWD, "hard", 0))
        return REFUSED;
    return show_file(AT_FDCWD, "hard", O_RDONLY);
}

ATTEMPT(read_by_path_descriptor) {
    char path[64];
    int fd = open(words[0], O_PATH | O_CLOEXEC);
    if (fd < 0)
        return REFUSED;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return show_file(AT_FDCWD, path, O_RDONLY);
}

ATTEMPT(read_by_mapping) {
    int fd = open(words[0], O_RDONLY | O_CLOEXEC);
    char *text = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    return text == MAP_FAILED ? REFUSED : show(text);
}

/* A child that may open it, perhaps, hands its descriptor over. */
ATTEMPT(read_by_passed_descriptor) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends))
        return REFUSED;
    char space[CMSG_SPACE(sizeof(int))] = {0}, byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    int fd = open(words[0], O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return REFUSED;
    struct cmsghdr *passed = CMSG_FIRSTHDR(&message);
    *passed = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(passed), &fd, sizeof fd);
    if (sendmsg(ends[0], &message, 0) < 0 || recvmsg(ends[1], &message, 0) < 0)
        return REFUSED;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return show_fd(fd);
}

ATTEMPT(read_after_chmod) {
    if (chmod(words[0], 0777))
        return REFUSED;
    return show_file(AT_FDCWD, words[0], O_RDONLY);
}

ATTEMPT(rename_away) {
    return rename(words[0], words[1]);
}

ATTEMPT(list_directory) {
    char entries[4096];
    int fd = open(words[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return REFUSED;
    long got = syscall(SYS_getdents64, fd, entries, sizeof entries);
    if (got > 64) /* more than . and .. */
        return show("entries");
    errno = ENODATA;
    return REFUSED;
}

/* Standard output is a directory of the host's that somebody forgot to close. */
ATTEMPT(read_by_leaked_directory) {
    report = stderr;
    return show_file(STDOUT_FILENO, words[0], O_RDONLY);
}

ATTEMPT(make_memory_device) {
    unlink("mem");
    if (mknod("mem", S_IFCHR | 0666, makedev(1, 1)))
        return REFUSED;
    return open("mem", O_RDONLY);
}

ATTEMPT(make_disk_device) {
    unlink("disk");
    return mknod("disk", S_IFBLK | 0666, makedev(254, 0));
}

/* Device 0:0 is overlayfs's mark of a removed file; the kernel lets anybody make it. */
ATTEMPT(make_whiteout_device) {
    char path[256];
    snprintf(path, sizeof path, "%s/whiteout", words[0]);
    unlink(path);
    return mknod(path, S_IFCHR | 0666, makedev(0, 0));
}

/* Tells whenever anybody opens the file; whoever runs us opens it between our two lines. */
ATTEMPT(watch_opens) {
    char event[512];
    int watch = inotify_init1(IN_CLOEXEC);
    if (watch < 0 || inotify_add_watch(watch, words[0], IN_OPEN | IN_MODIFY | IN_ATTRIB) < 0)
        return REFUSED;
    printf("WATCHING\n");
    fflush(stdout);
    char line[16];
    if (!fgets(line, sizeof line, stdin)) /* the host has done what we watch for */
        return REFUSED;
    fcntl(watch, F_SETFL, O_NONBLOCK);
    if (read(watch, event, sizeof event) > 0)
        return show("an event");
    errno = ENODATA;
    return REFUSED;
}

ATTEMPT(change_times_of_device) {
    return utimensat(AT_FDCWD, words[0], NULL, 0);
}

ATTEMPT(change_mode_of_device) {
    return chmod(words[0], 0600);
}

ATTEMPT(attach_shared_memory) {
    const char *text = shmat(atoi(words[0]), NULL, SHM_RDONLY);
    return text == (void *)-1 ? REFUSED : show(text);
}

ATTEMPT(set_overlay_mark) {
    return syscall(SYS_setxattr, words[0], "trusted.overlay.redirect", "/root", 5UL, 0);
}

/* Executed as a file whose set-id bit is set and that belongs to root of the host. */
ATTEMPT(be_root) {
    errno = EPERM;
    return geteuid() == 0 ? 0 : REFUSED;
}
