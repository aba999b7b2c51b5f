/*
 * How a change of the tree is recorded: for the hooks of hooks_mutate.c and hooks_attributes.c.
 */
#ifndef SUBSTRATE_PRELOAD_CHANGE_H
#define SUBSTRATE_PRELOAD_CHANGE_H

#include "hook.h"

#define NO_PATH NULL

void sub_record_change(enum sub_operation op, uint64_t start, long result, const char *path,
                       const char *path2, int dirfd, int flags, int mode, int dirfd2);

/*
 * CHANGE_HOOK(symbol, parameters, types, arguments; what to do without libc;
 *             path, path2, dirfd, flags, mode, dirfd2)
 */
#define CHANGE_HOOK(symbol, parameters, types, arguments, fallback, path, path2, dirfd, flags,     \
                    mode, dirfd2)                                                                  \
    HOOK(int, symbol, parameters) {                                                                \
        uint64_t start = sub_enter_class(SUB_CLASS_MUTATE);                                        \
        int(*next) types = NEXT(symbol, int(*) types);                                             \
        int result = next != NULL ? next arguments : (int)sub_libc_result(fallback);               \
        sub_record_change(SUB_OP_##symbol, start, result, path, path2, dirfd, (int)(flags),        \
                          (int)(mode), dirfd2);                                                    \
        return result;                                                                             \
    }

#endif
