/* Installs a filter that kills for nearly everything, then opens files. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#define ALLOW(n)                                                                                   \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, n, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
int main(int argc, char **argv) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_openat),
        ALLOW(SYS_close),
        ALLOW(SYS_exit_group),
        ALLOW(SYS_write),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
    struct sock_fprog filter = {sizeof(code) / sizeof(code[0]), code};
    int directory = open("/", O_RDONLY | O_DIRECTORY);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (argc > 1 && argv[1][0] == 's')
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter);
    else
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
    for (int i = 0; i < 2000; i++) {
        open("/quiet", O_RDONLY);
        openat(directory, "below", O_RDONLY);
    }
    _exit(8);
}
