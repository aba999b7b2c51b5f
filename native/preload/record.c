/*
 * Records of calls on paths, and reading what a program passed without believing it.
 */
#define _GNU_SOURCE 1

#include "record.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>

#include "process.h"
#include "system.h"

#define PAGE 4096u

/*
 * rt_sigprocmask copies the new mask before it looks at its first argument: with a nonsense one it
 * only tells whether eight bytes can be read (EINVAL) or not (EFAULT).
 */
static bool word_readable(uintptr_t address) {
    return SYS4(SYS_rt_sigprocmask, ~0L, address & ~7UL, NULL, 8) != -EFAULT;
}

bool sub_readable(const void *address, size_t bytes) {
    uintptr_t first = (uintptr_t)address;
    for (uintptr_t page = first & ~(uintptr_t)(PAGE - 1); page < first + bytes; page += PAGE) {
        if (!word_readable(page < first ? first : page))
            return false;
    }
    return true;
}

/* strnlen that returns SIZE_MAX where the string runs into memory that cannot be read. */
size_t sub_readable_string(const char *string, size_t max) {
    size_t length = 0;
    while (length < max) {
        uintptr_t at = (uintptr_t)string + length;
        size_t here = PAGE - at % PAGE;
        if (!word_readable(at))
            return SIZE_MAX;
        if (here > max - length)
            here = max - length;
        size_t found = strnlen(string + length, here);
        length += found;
        if (found < here)
            return length;
    }
    return max;
}

static void descriptor_link(int descriptor, char *name) {
    char digits[12];
    int count = 0;
    memcpy(name, "/proc/self/fd/", 14);
    name += 14;
    do {
        digits[count++] = (char)('0' + descriptor % 10);
        descriptor /= 10;
    } while (descriptor > 0);
    while (count > 0)
        *name++ = digits[--count];
    *name = '\0';
}

size_t sub_descriptor_path(int descriptor, char *buffer, size_t size) {
    char name[32];
    if (descriptor < 0 || sub_quiet)
        return 0;
    descriptor_link(descriptor, name);
    long length = SYS4(SYS_readlinkat, AT_FDCWD, name, buffer, size);
    return length > 0 && (size_t)length < size ? (size_t)length : 0;
}

static bool needs_directory(int dirfd, struct sub_text path) {
    return dirfd != AT_FDCWD && (path.bytes == NULL || path.bytes[0] != '/');
}

/* Room for the usual; whoever goes deeper gets a bigger frame. */
#define DIRECTORY_USUAL 512

struct directories {
    char *first, *second;
    size_t first_length, second_length;
};

static void write_call(const struct sub_call *call, struct sub_text path, struct sub_text path2,
                       const struct directories *directories) {
    struct sub_text mode = {call->mode, call->mode != NULL ? (uint32_t)strnlen(call->mode, 16) : 0,
                            0};
    uint32_t fields = sub_text_size(path) + sub_text_size(path2) + sub_text_size(mode);
    if (directories->first_length > 0)
        fields += sub_field_size(directories->first_length);
    if (directories->second_length > 0)
        fields += sub_field_size(directories->second_length);
    struct sub_record *record = sub_begin(call->type, call->op, call->start_ns, fields);
    if (record == NULL)
        return;
    record->result = call->result;
    record->error = call->error;
    record->flags |= call->flags | path.flags | path2.flags;
    memcpy(record->arg, call->arg, sizeof(record->arg));
    unsigned char *at = (unsigned char *)(record + 1);
    at = sub_put_text(at, SUB_TAG_PATH, path);
    at = sub_put_text(at, SUB_TAG_PATH2, path2);
    at = sub_put_text(at, SUB_TAG_MODE, mode);
    if (directories->first_length > 0)
        at = sub_put(at, SUB_TAG_DIRECTORY, directories->first, directories->first_length);
    if (directories->second_length > 0)
        sub_put(at, SUB_TAG_DIRECTORY2, directories->second, directories->second_length);
    sub_commit(record);
}

static bool find_directories(const struct sub_call *call, struct sub_text path,
                             struct sub_text path2, struct directories *found, size_t size) {
    bool complete = true;
    if (needs_directory(call->arg[0], path)) {
        found->first_length = sub_descriptor_path(call->arg[0], found->first, size);
        complete = found->first_length > 0;
    }
    if (path2.bytes != NULL && needs_directory(call->arg[3], path2)) {
        found->second_length = sub_descriptor_path(call->arg[3], found->second, size);
        complete = complete && found->second_length > 0;
    }
    return complete;
}

static __attribute__((noinline)) void
record_deep_call(const struct sub_call *call, struct sub_text path, struct sub_text path2) {
    char first[SUB_STRING_MAX], second[SUB_STRING_MAX];
    struct directories directories = {first, second, 0, 0};
    find_directories(call, path, path2, &directories, sizeof(first));
    write_call(call, path, path2, &directories);
}

static __attribute__((noinline)) void
record_relative_call(const struct sub_call *call, struct sub_text path, struct sub_text path2) {
    char first[DIRECTORY_USUAL], second[DIRECTORY_USUAL];
    struct directories directories = {first, second, 0, 0};
    if (find_directories(call, path, path2, &directories, sizeof(first)) || sub_quiet ||
        call->error == EBADF)
        write_call(call, path, path2, &directories);
    else
        record_deep_call(call, path, path2);
}

/*
 * Records one call on one or two paths. Paths are written as they were passed; what only the kernel
 * knows at this moment, the directory behind a descriptor, is written beside them. Relative paths
 * without a descriptor need nothing: the reader follows the working directory from the hello and
 * the SUB_CHDIR records.
 */
void sub_record_call(const struct sub_call *call) {
    struct sub_text path = sub_text(call->path, call->error);
    struct sub_text path2 = sub_text(call->path2, call->error);
    static const struct directories none;
    if (unlikely(needs_directory(call->arg[0], path) ||
                 (path2.bytes != NULL && needs_directory(call->arg[3], path2))))
        record_relative_call(call, path, path2);
    else
        write_call(call, path, path2, &none);
}
