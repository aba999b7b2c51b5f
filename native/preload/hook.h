/*
 * How a hook is written.
 *
 * HOOK(result, symbol, (parameters)) defines the function that programs find under `symbol`. The C
 * name is another one, by asm label, so that libc's own headers (macros, aliases, attributes,
 * FORTIFY inlines) have nothing to say about it. NEXT(symbol, type) is the function behind it.
 */
#ifndef SUBSTRATE_PRELOAD_HOOK_H
#define SUBSTRATE_PRELOAD_HOOK_H

#include <errno.h>

#include "record.h"

#define HOOK(result, symbol, parameters)                                                           \
    __attribute__((visibility("default"))) result hook_##symbol parameters __asm__(#symbol);       \
    result hook_##symbol parameters

#define NEXT(symbol, type) ((type)sub_next(SUB_OP_##symbol))

/* errno as the call left it; the hook never changes it. */
static inline int sub_error(bool failed) {
    return failed ? errno : 0;
}

/* Makes the kernel's answer libc's, where there is no function to call. */
static inline long sub_libc_result(long result) {
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

#endif
