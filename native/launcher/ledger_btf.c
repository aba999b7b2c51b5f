/* Where fields lie in this kernel's structures: what the ledger's programs read. */
#include "../include/btf.h"
#include "kernel.h"

static int look_up(const struct btf *btf, struct kernel_offsets *o, struct fail *fail) {
    const struct {
        const char *structure, *member;
        uint32_t *bytes;
    } wanted[] = {
        {"task_struct", "tgid", &o->task_tgid},
        {"task_struct", "pid", &o->task_pid},
        {"task_struct", "signal", &o->task_signal},
        {"task_struct", "group_leader", &o->task_leader},
        {"task_struct", "real_parent", &o->task_parent},
        {"task_struct", "exit_code", &o->task_exit_code},
        {"task_struct", "comm", &o->task_comm},
        {"task_struct", "mm", &o->task_mm},
        {"signal_struct", "flags", &o->signal_flags},
        {"signal_struct", "group_exit_code", &o->signal_exit_code},
        {"signal_struct", "pids", &o->signal_pids},
        {"signal_struct", "live", &o->signal_live},
        {"pid", "level", &o->pid_level},
        {"pid", "numbers", &o->pid_numbers},
        {"upid", "nr", &o->upid_nr},
        {"linux_binprm", "filename", &o->bprm_filename},
    };
    const char *structure = "";
    const struct btf_type *type = NULL;
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        if (strcmp(structure, wanted[i].structure) != 0)
            type = btf_find_struct(btf, structure = wanted[i].structure);
        if (!type || !btf_find_member(btf, type, wanted[i].member, 0, wanted[i].bytes))
            return fail_set(fail, 0, "BTF of this kernel has no %s.%s", wanted[i].structure,
                            wanted[i].member);
        if (wanted[i].bytes == &o->upid_nr)
            o->upid_size = type->size;
    }
    return 0;
}

int btf_offsets(struct kernel_offsets *offsets, struct fail *fail) {
    struct btf btf = {0};
    int result = btf_load(&btf) ? look_up(&btf, offsets, fail)
                                : fail_set(fail, 0,
                                           "no kernel type information in " BTF_PATH
                                           " (CONFIG_DEBUG_INFO_BTF)");
    btf_free(&btf);
    return result;
}
