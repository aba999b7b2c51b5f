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

/*
 * LATE_HOOK: of a function that an older libc has not got, and that nothing else can stand in for. A
 * program that refers to it weakly, to see whether it is there, must not find the hook instead: the
 * loader asks (STT_GNU_IFUNC) what the symbol stands for. musl's knows no such symbols; its library
 * does not export what musl has not got.
 */
#ifdef __GLIBC__
void *sub_late_hook(const char *name, void *hook);
#define LATE_HOOK(result, symbol, parameters)                                                      \
    static result hook_##symbol parameters;                                                        \
    __attribute__((used)) static void *choose_##symbol(void) {                                     \
        return sub_late_hook(#symbol, (void *)(uintptr_t)hook_##symbol);                           \
    }                                                                                              \
    __asm__(".globl " #symbol "\n"                                                                 \
            ".type " #symbol ", %gnu_indirect_function\n"                                          \
            ".set " #symbol ", choose_" #symbol "\n");                                             \
    static result hook_##symbol parameters
#else
#define LATE_HOOK HOOK
#endif

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
