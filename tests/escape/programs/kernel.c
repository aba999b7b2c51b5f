/* What belongs to the whole machine: its clock, its name, its memory, its kernel. */
#include "attempt.h"

#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/quota.h>
#include <linux/reboot.h>
#include <sys/quota.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>

/* Bad magic numbers: a kernel that lets us may say EINVAL, and stays up. */
ATTEMPT(reboot_machine) {
    return syscall(SYS_reboot, 0, 0, LINUX_REBOOT_CMD_CAD_OFF, NULL);
}

ATTEMPT(load_module) {
    return syscall(SYS_init_module, "", 0UL, "");
}

ATTEMPT(load_module_file) {
    return syscall(SYS_finit_module, -1, "", 0);
}

ATTEMPT(remove_module) {
    return syscall(SYS_delete_module, "no_such_module", 0);
}

ATTEMPT(load_kexec) {
    return syscall(SYS_kexec_load, 0UL, ~0UL, NULL, 0xffffUL << 16); /* no such architecture */
}

ATTEMPT(set_clock) {
    struct timespec bad = {.tv_nsec = -1};
    return syscall(SYS_clock_settime, CLOCK_REALTIME, &bad);
}

ATTEMPT(set_time_of_day) {
    struct timeval bad = {.tv_usec = -1};
    return syscall(SYS_settimeofday, &bad, NULL);
}

/* Allowed by the filter for reading; changing takes a capability over the host. */
ATTEMPT(adjust_clock) {
    struct timex change = {.modes = ADJ_TICK, .tick = -1}; /* out of range */
    return syscall(SYS_adjtimex, &change);
}

ATTEMPT(set_host_name) {
    return syscall(SYS_sethostname, "escaped", 7);
}

ATTEMPT(set_domain_name) {
    return syscall(SYS_setdomainname, "escaped", 7);
}

ATTEMPT(swap_on) {
    return syscall(SYS_swapon, "/no/such/file", 0);
}

ATTEMPT(account_processes) {
    return syscall(SYS_acct, NULL);
}

ATTEMPT(read_kernel_log) {
    char text[512];
    return syscall(SYS_syslog, 3, text, sizeof text);
}

ATTEMPT(set_quota) {
    return syscall(SYS_quotactl, QCMD(Q_SYNC, USRQUOTA), NULL, 0, NULL);
}

ATTEMPT(use_bpf) {
    union bpf_attr attributes = {
        .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
}

ATTEMPT(use_perf) {
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .config = PERF_COUNT_SW_CPU_CLOCK};
    return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0UL);
}

ATTEMPT(use_io_uring) {
    struct io_uring_params parameters = {0};
    return syscall(SYS_io_uring_setup, 4, &parameters);
}

ATTEMPT(use_userfaultfd) {
    return syscall(SYS_userfaultfd, O_CLOEXEC);
}

ATTEMPT(use_keyring) {
    return syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3 /* session */, 1);
}

ATTEMPT(add_key_to_keyring) {
    return syscall(SYS_add_key, "user", "escape", "x", 1UL, -3);
}

ATTEMPT(request_key_of_host) {
    return syscall(SYS_request_key, "user", words[0], NULL, 0);
}

ATTEMPT(set_personality) {
    return syscall(SYS_personality, 0x0400000 /* READ_IMPLIES_EXEC */);
}

ATTEMPT(set_mempolicy) {
    return syscall(SYS_set_mempolicy, 0, NULL, 0UL);
}

ATTEMPT(open_by_handle) {
    struct {
        unsigned bytes;
        int type;
        unsigned char handle[128];
    } handle = {.bytes = sizeof handle.handle};
    int mount;
    (void)syscall(SYS_name_to_handle_at, AT_FDCWD, "/", &handle, &mount, 0);
    int root = open("/", O_RDONLY);
    return syscall(SYS_open_by_handle_at, root, &handle, O_RDONLY);
}

ATTEMPT(watch_with_fanotify) {
    return syscall(SYS_fanotify_init, 0, O_RDONLY);
}

#if defined(__x86_64__)
ATTEMPT(use_ports) {
    return syscall(SYS_ioperm, 0x80UL, 1UL, 1);
}

ATTEMPT(raise_io_level) {
    return syscall(SYS_iopl, 3);
}

/* x32: the same architecture word as ours, and numbers with bit 30 set. */
ATTEMPT(call_x32) {
    return syscall(0x40000000L + 165 /* mount */, "none", "/mnt", "tmpfs", 0UL, "");
}
#endif
