/*
 * Taking up recording: by the constructor, or by the first hook where another library's constructor
 * comes before ours.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "process.h"
#include "record.h"
#include "system.h"

uint32_t sub_classes = SUB_CLASS_ALL;
char **sub_environment;
char sub_directory_variable[sizeof(SUB_SEGMENT_VARIABLE) + SUB_DIRECTORY_MAX];
char sub_preload_path[SUB_DIRECTORY_MAX];

/* Our own entry of LD_PRELOAD, whose entries are separated by spaces or colons. */
static void take_preload(const char *value) {
    const char *ours = strstr(value, "libsubstrate_preload");
    if (ours == NULL)
        return;
    const char *first = ours;
    while (first > value && first[-1] != ':' && first[-1] != ' ')
        first--;
    size_t length = strcspn(first, ": ");
    if (length < sizeof(sub_preload_path))
        memcpy(sub_preload_path, first, length);
}

static void take_directory(const char *entry, const char *value) {
    size_t length = strlen(value);
    if (value[0] != '/' || length >= sizeof(sub_directory))
        return;
    memcpy(sub_directory, value, length + 1);
    memcpy(sub_directory_variable, entry, (size_t)(value - entry) + length + 1);
}

static void read_environment(void) {
    static const char ours[] = SUB_SEGMENT_VARIABLE "=";
    static const char preload[] = "LD_PRELOAD=";
    if (getauxval(AT_SECURE) != 0)
        return; /* who runs a set-id program does not choose where it writes */
    for (char **entry = sub_environment; entry != NULL && *entry != NULL; entry++) {
        if (strncmp(*entry, ours, sizeof(ours) - 1) == 0)
            take_directory(*entry, *entry + sizeof(ours) - 1);
        else if (strncmp(*entry, preload, sizeof(preload) - 1) == 0)
            take_preload(*entry + sizeof(preload) - 1);
    }
}

/* The arguments lie in front of the first environment, their number in front of them. */
static void find_arguments(void) {
    if (sub_arguments != NULL || sub_environment == NULL || sub_environment[-1] != NULL)
        return;
    char **end = sub_environment - 1;
    for (int count = 0; count < 1 << 20; count++) {
        if ((uintptr_t)end[-1 - count] == (uintptr_t)count) {
            sub_arguments = end - count;
            sub_argument_count = count;
            return;
        }
    }
}

#ifdef __GLIBC__
extern void *__libc_stack_end __attribute__((weak)); /* ld.so's: where the arguments begin */
#endif

/*
 * glibc sets its environ with its own constructor. The functions of a program's .preinit_array, and
 * whatever they call, come before that: there the kernel's own list is taken.
 */
static void find_environment(void) {
    sub_environment = environ;
#ifdef __GLIBC__
    if (environ != NULL || &__libc_stack_end == NULL || __libc_stack_end == NULL)
        return;
    uintptr_t count = *(const uintptr_t *)__libc_stack_end;
    char **arguments = (char **)__libc_stack_end + 1;
    if (count < 1 << 20 && arguments[count] == NULL)
        sub_environment = arguments + count + 1;
#endif
}

/*
 * The classes that are wanted, from the link beside the segment directory (SUB_CLASSES_LINK, unless
 * SUB_SEGMENT_VARIABLE names another directory). Where there is one, there is a directory as well.
 */
static bool read_classes(void) {
    char path[sizeof(sub_directory) + sizeof("classes")];
    char target[24];
    size_t length = strlen(sub_directory);
    while (length > 1 && sub_directory[length - 1] == '/')
        length--;
    while (length > 0 && sub_directory[length - 1] != '/')
        length--;
    memcpy(path, sub_directory, length);
    memcpy(path + length, "classes", sizeof("classes"));
    long digits = SYS4(SYS_readlinkat, AT_FDCWD, path, target, sizeof(target));
    if (digits <= 0)
        return false;
    uint32_t classes = 0;
    for (long i = 0; i < digits; i++) {
        char digit = target[i];
        if (digit >= '0' && digit <= '9')
            classes = classes << 4 | (uint32_t)(digit - '0');
        else if (digit >= 'a' && digit <= 'f')
            classes = classes << 4 | (uint32_t)(digit - 'a' + 10);
        else
            return false; /* somebody else's link: record everything */
    }
    sub_classes = classes & SUB_CLASS_ALL;
    return true;
}

/*
 * Takes up recording. Called by the constructor, or by the first hook where another library's
 * constructor comes first. With no segment directory it leaves two failed system calls behind.
 */
void sub_start(void) {
    static int started;
    if (__atomic_exchange_n(&started, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    find_environment();
    read_environment();
    /* First: anything else that the kernel is asked could be the last. */
    if (sub_below_filter()) {
        sub_mode = SUB_OFF;
        return;
    }
    if (!read_classes() && SYS3(SYS_faccessat, AT_FDCWD, sub_directory, 0) != 0) {
        sub_mode = SUB_OFF;
        return;
    }
    sub_find_clock();
    if (!sub_make_process_page()) {
        sub_mode = SUB_OFF;
        return;
    }
    find_arguments();
    sub_mode = SUB_ON;
    sub_start_first_image();
    sub_record_first_libraries();
}

#ifdef __GLIBC__
static void exiting(int status, void *unused) {
    (void)unused;
    sub_record_exit(SUB_OP_exit, status);
}
#endif

__attribute__((constructor)) static void construct(int argc, char **argv) {
#ifdef __GLIBC__
    sub_argument_count = argc;
    sub_arguments = argv;
#else
    (void)argc; /* musl passes none: see find_arguments */
    (void)argv;
#endif
    if (sub_mode == SUB_UNSTARTED)
        sub_start();
#ifdef __GLIBC__
    /*
     * The status of a return from main reaches no symbol of ours, only the handlers of on_exit.
     * This is the first one registered, so it is the last to run.
     */
    if (sub_mode == SUB_ON)
        on_exit(exiting, NULL);
#endif
}
