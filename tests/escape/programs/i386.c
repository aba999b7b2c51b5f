/* The same doors by their i386 numbers, which any 64-bit program can use by int 0x80. */
#include "attempt.h"

#if defined(__x86_64__)
#include <sys/mman.h>
#include <sys/socket.h>

/* What a 32-bit argument can point to. */
static void *low_memory(void) {
    void *place =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    return place == MAP_FAILED ? NULL : place;
}

static long call(uint32_t number, uint32_t first, uint32_t second, uint32_t third) {
    int32_t result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(first), "c"(second), "d"(third)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result < 0) {
        errno = -result;
        return REFUSED;
    }
    return result;
}

static long socketcall(uint32_t family, uint32_t type) {
    uint32_t *arguments = low_memory();
    if (!arguments)
        return REFUSED;
    arguments[0] = family;
    arguments[1] = type;
    arguments[2] = 0;
    return call(102, 1 /* SYS_SOCKET */, (uint32_t)(uintptr_t)arguments, 0);
}

/* No filter sees the arguments of socketcall(2): they are in memory. */
ATTEMPT(vsock_by_socketcall) {
    return socketcall(AF_VSOCK, SOCK_STREAM);
}

ATTEMPT(alg_by_socketcall) {
    return socketcall(AF_ALG, SOCK_SEQPACKET);
}

ATTEMPT(vsock_by_i386) {
    return call(359, AF_VSOCK, SOCK_STREAM, 0);
}

ATTEMPT(unshare_by_i386) {
    return call(310, 0x04000000 /* CLONE_NEWUTS */, 0, 0);
}

ATTEMPT(chroot_by_i386) {
    char *path = low_memory();
    if (!path)
        return REFUSED;
    strcpy(path, "/");
    return call(61, (uint32_t)(uintptr_t)path, 0, 0);
}

ATTEMPT(keyring_by_i386) {
    return call(288, 0, (uint32_t)-3, 1);
}

ATTEMPT(set_clock_by_i386) {
    uint32_t *time = low_memory();
    if (!time)
        return REFUSED;
    time[1] = ~0u; /* no such number of nanoseconds */
    return call(264, 0, (uint32_t)(uintptr_t)time, 0);
}

ATTEMPT(become_init_by_i386) {
    return call(213 /* setuid32 */, 65535, 0, 0);
}

ATTEMPT(io_level_by_i386) {
    return call(110, 3, 0, 0);
}
#endif
