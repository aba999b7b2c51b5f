/*
 * Functions that a program asks the loader for by name.
 *
 * Asked for in the whole program, a name leads to its hook, like a call. Asked for in libc itself
 * (Python's ctypes.CDLL("libc.so.6"), JNA, or any library whose dependencies end in libc) it leads
 * past it: then the hook is the answer, but only where the loader's own would have been the function
 * that the hook stands in front of. Whoever has a function of another library in hand keeps it.
 *
 * What the loader answers to RTLD_NEXT and RTLD_DEFAULT depends on who asks, which the return address
 * tells: so no frame of ours may lie between. Other questions can be asked beforehand.
 */
#define _GNU_SOURCE 1

#include <dlfcn.h>

#include "hook.h"
#include "jump.h"
#include "process.h"

typedef void *dlsym_function(void *, const char *);
typedef void *dlvsym_function(void *, const char *, const char *);

/* On a glibc before 2.34, in a program without libdl, which could not have called it. */
static void *no_symbol(void) {
    return NULL;
}

static void *answer_hook(void *handle, const char *name) {
    (void)handle;
    return sub_own_function(name);
}

#define FUNCTION(pointer) ((void *)(uintptr_t)(pointer))

/* Is `found` what the hook of that name stands in front of? */
static bool is_hooked(const char *name, const void *found) {
    return found != NULL && found == sub_find_function(name);
}

__attribute__((used)) void *sub_prepare_dlsym(void *handle, const char *name);
void *sub_prepare_dlsym(void *handle, const char *name) {
    dlsym_function *next = (dlsym_function *)sub_next(SUB_OP_dlsym);
    if (next == NULL)
        return FUNCTION(no_symbol);
    if (sub_mode != SUB_OFF && handle != RTLD_NEXT && handle != RTLD_DEFAULT &&
        sub_own_function(name) != NULL && is_hooked(name, next(handle, name)))
        return FUNCTION(answer_hook);
    return FUNCTION(next);
}

JUMP_HOOK(dlsym, sub_prepare_dlsym);

#ifdef __GLIBC__
/* No version is that of a hook: asked for in the whole program, too, it leads past them. */
__attribute__((used)) void *sub_prepare_dlvsym(void *handle, const char *name, const char *version);
void *sub_prepare_dlvsym(void *handle, const char *name, const char *version) {
    dlvsym_function *next = (dlvsym_function *)sub_next(SUB_OP_dlvsym);
    if (next == NULL)
        return FUNCTION(no_symbol);
    if (sub_mode != SUB_OFF && handle != RTLD_NEXT && sub_own_function(name) != NULL &&
        is_hooked(name, next(handle, name, version)))
        return FUNCTION(answer_hook);
    return FUNCTION(next);
}

JUMP_HOOK(dlvsym, sub_prepare_dlvsym);
#endif
