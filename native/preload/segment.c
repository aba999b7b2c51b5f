/*
 * Making segment files.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
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
    segment_path(path, self, chain, index);
    /* All permissions are asked for so that what is granted tells the umask. */
    long fd =
        SYS4(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0777);
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
    if (error != 0)
        SYS3(SYS_unlinkat, AT_FDCWD, path, 0);
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
