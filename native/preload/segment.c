/*
 * Making segment files.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "process.h"
#include "record.h"
#include "sums.h"
#include "system.h"

char sub_directory[SUB_DIRECTORY_MAX] = SUB_SEGMENT_DIRECTORY;

static char *append(char *at, const char *text) {
    size_t length = strlen(text);
    memcpy(at, text, length);
    return at + length;
}

static char *append_number(char *at, uint64_t number) {
    char digits[20];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

/* "<pid>-<start ticks>-<exec number>-<chain>-<index>": unique, and says whose it is. */
static void segment_path(char *path, const struct sub_identity *self, uint32_t chain,
                         uint32_t index) {
    char *at = append(path, sub_directory);
    *at++ = '/';
    at = append_number(at, (uint32_t)self->pid);
    *at++ = '-';
    at = append_number(at, self->start_ticks);
    *at++ = '-';
    at = append_number(at, self->exec_number);
    *at++ = '-';
    at = append_number(at, chain);
    *at++ = '-';
    at = append_number(at, index);
    *at = '\0';
}

/* Is there a file of that name? */
static bool is_taken(const struct sub_identity *self) {
    char path[sizeof(sub_directory) + 96];
    segment_path(path, self, 0, 0);
    return SYS3(SYS_faccessat, AT_FDCWD, path, 0) == 0;
}

/*
 * A process that runs one program after the other asks for the next number each time: of the numbers
 * from 1 on, which are taken in order, the first that is free is looked for by halves.
 */
uint32_t sub_free_exec_number(const struct sub_identity *self, uint32_t most) {
    struct sub_identity asked = *self;
    uint32_t taken = self->exec_number, step = 1;
    for (asked.exec_number = taken + step; asked.exec_number < most && is_taken(&asked);
         asked.exec_number = taken + step) {
        taken = asked.exec_number;
        step *= 2;
    }
    uint32_t free = asked.exec_number < most ? asked.exec_number : most;
    while (free - taken > 1) {
        asked.exec_number = taken + (free - taken) / 2;
        if (is_taken(&asked))
            taken = asked.exec_number;
        else
            free = asked.exec_number;
    }
    return free;
}

/*
 * The file that a first segment found no room for. It stays, empty: that is how a reader knows why
 * the image is silent. Whoever looks for room again takes it up.
 */
static struct sub_identity without_room;
static uint32_t chain_without_room;

static bool is_without_room(const struct sub_identity *self, uint32_t chain) {
    return without_room.pid == self->pid && without_room.start_ticks == self->start_ticks &&
           without_room.exec_number == self->exec_number && chain_without_room == chain;
}

static bool has_room(uint64_t size) {
    struct statfs status;
    return SYS2(SYS_statfs, sub_directory, &status) != 0 ||
           (uint64_t)status.f_bavail * (uint64_t)status.f_bsize >= size;
}

/*
 * Makes, fills with zeros and maps one segment file. Returns 0 or a negative errno.
 *
 * The room is allocated here because a full file system under a mapping is a SIGBUS later. The file
 * size limit is asked first because going over it is a signal to the program.
 */
long sub_make_segment(const struct sub_identity *self, uint32_t chain, uint32_t index,
                      uint64_t size, struct new_segment *made) {
    char path[sizeof(sub_directory) + 96];
    struct rlimit limit;
    if (SYS4(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit) == 0 && limit.rlim_cur < size)
        return -EFBIG;
    /* To the kernel's ledger a file that is made and removed again is one that was removed. */
    bool first = sub_process->phase == SUB_PHASE_STARTING;
    bool again = first && is_without_room(self, chain);
    if ((!first || again) && !has_room(size))
        return -ENOSPC;
    segment_path(path, self, chain, index);
    /* All permissions are asked for so that what is granted tells the umask. */
    int flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | (again ? 0 : O_EXCL);
    long fd = SYS4(SYS_openat, AT_FDCWD, path, flags, 0777);
    if (fd < 0)
        return fd;
    struct stat status;
    if (SYS2(SYS_fstat, fd, &status) != 0)
        status.st_mode = 0;
    made->umask = ~status.st_mode & 0777u;
    if ((status.st_mode & 0444u) != 0444u) /* the decoder is nobody */
        SYS2(SYS_fchmod, fd, 0644);
    long error;
    int attempts = 0;
    do
        error = SYS4(SYS_fallocate, fd, 0, 0, size);
    while (error == -EINTR && ++attempts < 16);
    long base = 0;
    if (error == 0) {
        base = SYS6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (base < 0 && base > -4096)
            error = base;
    }
    if (error == -ENOSPC && first) {
        without_room = *self;
        chain_without_room = chain;
    } else if (error != 0) {
        SYS3(SYS_unlinkat, AT_FDCWD, path, 0);
    }
    SYS1(SYS_close, fd);
    if (error != 0)
        return error;
    made->base = (unsigned char *)base;
    made->size = size;
    struct sub_segment *header = (struct sub_segment *)(void *)made->base;
    header->version = SUB_SEGMENT_VERSION;
    header->header_bytes = (uint16_t)sub_header_bytes(size);
    header->size = size;
    header->self = *self;
    header->chain = chain;
    header->index = index;
    header->classes_off = SUB_CLASS_ALL & ~sub_classes;
    header->created_ns = sub_now();
    return 0;
}

uint64_t sub_segment_size(uint32_t index, uint32_t length) {
    uint64_t size = SUB_SEGMENT_FIRST;
    for (uint32_t i = 0; i < index && size < SUB_SEGMENT_LAST; i++)
        size *= 4;
    if (size > SUB_SEGMENT_LAST)
        size = SUB_SEGMENT_LAST;
    while (size < sub_header_bytes(size) + (uint64_t)length)
        size *= 4;
    return size;
}
