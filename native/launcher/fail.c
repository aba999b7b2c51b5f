#include "launcher.h"

#include <stdarg.h>
#include <stdio.h>

int fail_set(struct fail *fail, int error, const char *format, ...) {
    if (fail->text[0])
        return -1; /* the first failure is the cause, later ones follow from it */
    fail->error = error;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(fail->text, sizeof fail->text, format, arguments);
    va_end(arguments);
    if (error && length >= 0 && (size_t)length < sizeof fail->text)
        snprintf(fail->text + length, sizeof fail->text - (size_t)length, ": %s", strerror(error));
    return -1;
}

/* What to do about the refusals that hosts are known for. */
const char *fail_hint(const struct fail *fail) {
    bool cloning = strstr(fail->text, "NEWUSER") || strstr(fail->text, "uid_map") ||
                   strstr(fail->text, "NEWNET") || strstr(fail->text, "private");
    if (cloning && (fail->error == EPERM || fail->error == EACCES)) {
        if (access("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", F_OK) == 0)
            return "AppArmor restricts user namespaces: sudo sysctl -w "
                   "kernel.apparmor_restrict_unprivileged_userns=0, or install an AppArmor "
                   "profile that allows userns for substrate-launcher";
        if (access("/proc/sys/kernel/unprivileged_userns_clone", F_OK) == 0)
            return "user namespaces are off: sudo sysctl -w kernel.unprivileged_userns_clone=1";
        return "user namespaces are refused here (in a container: run it with "
               "--security-opt seccomp=unconfined, or use the docker backend)";
    }
    if (cloning && (fail->error == ENOSPC || fail->error == EUSERS))
        return "namespaces are used up: sudo sysctl -w user.max_user_namespaces=15000 (and the "
               "other user.max_*_namespaces)";
    if (strstr(fail->text, "id-mapping") && fail->error == EINVAL)
        return "this file system cannot be id-mapped (Linux 5.12+ with ext4, xfs, btrfs; tmpfs "
               "6.3+): keep the layers on another one, or use id_mapping=caller";
    if (strstr(fail->text, "open_tree") && fail->error == EINVAL)
        return "a mount lies below that directory and a user namespace cannot leave it behind: "
               "give each mount an overlay of its own";
    return "";
}
