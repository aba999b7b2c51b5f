/*
 * The event records that programs in a world write about themselves.
 *
 * This file is the whole contract between libsubstrate_preload.so (the writer) and
 * substrate-decode (the only reader). Everything is little endian and naturally aligned.
 *
 * A segment is one file: a header, then records, back to back, each a multiple of eight bytes. The
 * file is full of zeros when it is made, so a record is there once its length is not zero:
 *
 *   - a writer claims room with one atomic addition, stores `length | SUB_LENGTH_PENDING`, fills the
 *     record, then stores `length` alone with release order;
 *   - a reader takes a length with acquire order (a pread of a later moment does as well), stops at
 *     zero, and steps over a record that is still pending: its writer was interrupted, by a signal
 *     handler that itself wrote or by SIGKILL.
 *
 * A chain is a run of segments written one after the other by one thread at a time; `seq` counts
 * its claims without a gap. A chain outlives its thread: another thread of the process may carry it
 * on, which is why the thread id stands in each record.
 *
 * Growth: new operations go to the end of SUB_OPERATIONS, new record types and tags get new numbers,
 * readers skip tags they do not know. Anything else raises SUB_SEGMENT_VERSION.
 */
#ifndef SUBSTRATE_EVENTS_H
#define SUBSTRATE_EVENTS_H

#include <stdint.h>

#define SUB_SEGMENT_DIRECTORY "/run/substrate/seg"
#define SUB_SEGMENT_VARIABLE "SUBSTRATE_SEGMENTS"
/* Beside the segments: a u32, by which a program learns that it may be below a filter that kills. */
#define SUB_FILTER_MARK "filtered"
/* A symbolic link whose target is the hexadecimal mask of the SUB_CLASS_* that are wanted. */
#define SUB_CLASSES_LINK "/run/substrate/classes"

#define SUB_SEGMENT_MAGIC 0x3147455342555353ULL /* "SSUBSEG1" */
#define SUB_SEGMENT_VERSION 2u
#define SUB_SEGMENT_VERSION_BEFORE 1u /* which readers still take: it had no short records */

/* Sizes of the segments of a chain: the first is small because most programs are short. */
#define SUB_SEGMENT_FIRST (8u << 10)
#define SUB_SEGMENT_LAST (1u << 20)
#define SUB_CHAIN_MAX 4096u /* segments; 4 GiB of records from one chain */

#define SUB_LENGTH_PENDING 0x80000000u
#define SUB_RECORD_MAX (56u << 10)
#define SUB_STRING_MAX 4096u     /* a path or a name */
#define SUB_ARGV_MAX (32u << 10) /* all arguments together, NULs included */

/* What can be left out, by policy or world. Processes, their programs and ends always are told. */
enum sub_class {
    SUB_CLASS_OPEN = 1,
    SUB_CLASS_MUTATE = 2,
    SUB_CLASS_NETWORK = 4,
    SUB_CLASS_STAT = 8,      /* SUB_STAT */
    SUB_CLASS_TRANSFER = 16, /* SUB_TRANSFER */
    SUB_CLASS_LOAD = 32,     /* SUB_LOAD */
    SUB_CLASS_SOURCES = 64,  /* SUB_SOURCES */
    SUB_CLASS_ALL = 127,
};

/* One process image: what a process runs between two execs. */
struct sub_identity {
    uint64_t pid_namespace; /* inode of /proc/self/ns/pid */
    /*
     * Tells processes of one pid apart: the inode of the process's pidfd | bit 62 where the kernel
     * numbers those (6.9), else field 22 of /proc/self/stat, else CLOCK_MONOTONIC ns | bit 63.
     */
    uint64_t start_ticks;
    int32_t pid;          /* in that namespace */
    uint32_t exec_number; /* 0: a forked child that has not called exec; then 1, 2, ... */
};

/*
 * Bit of sub_segment.flags: the program installed a seccomp filter. From then on the writer makes no
 * system call, so there are no further segments, and forked children stay silent.
 */
#define SUB_SEGMENT_QUIET 1u
/*
 * The program loaded a library that finds libc's functions where no hook stands: with a libc of its
 * own (dlmopen), or one that looks among its own first (RTLD_DEEPBIND).
 */
#define SUB_SEGMENT_PASSED 2u

/* Bits of sub_segment.state, set by the writer. */
#define SUB_STATE_CONTINUED 1u /* full: the chain goes on in index + 1 */
#define SUB_STATE_EXITED 2u    /* the process said that it exits */

struct sub_segment {
    uint64_t magic;
    uint16_t version;
    uint16_t header_bytes; /* where the first record starts, behind tables of the writer's own */
    uint32_t flags;        /* SUB_SEGMENT_*, atomic */
    uint64_t size;         /* of the file, as mapped by the writer */
    struct sub_identity self;
    uint32_t chain; /* number of the chain in its image, from 0 */
    uint32_t index; /* number of this segment in its chain, from 0 */
    uint64_t created_ns;
    uint32_t first_sequence;
    uint32_t state;       /* SUB_STATE_*, atomic */
    uint64_t lost;        /* events that found no room while this segment was current, atomic */
    uint32_t classes_off; /* SUB_CLASS_* that the program does not record */
    uint32_t reserved32;
    uint64_t sources; /* the writer's own: where its SUB_SOURCES is */
    uint32_t changes; /* the writer's own: of its working directory, as far as records tell here */
    uint32_t reserved32_2;
    uint64_t reserved[17];
};
_Static_assert(sizeof(struct sub_segment) == 240, "the segment header is part of the format");

enum sub_record_type {
    SUB_HELLO = 1,        /* first record of an image: who it is */
    SUB_FORK = 2,         /* result: child pid */
    SUB_VFORK = 3,        /* written before; the child's own records carry its pid */
    SUB_EXEC = 4,         /* written before; only a SUB_FAILED with the same reference undoes it */
    SUB_FAILED = 5,       /* arg[0]: sequence of the SUB_EXEC that came back */
    SUB_SPAWN = 6,        /* result: errno of posix_spawn or status of system; arg[0]: child pid */
    SUB_SPAWN_ACTION = 7, /* a file action, told apart by SUB_TAG_KEY, joined by its later spawn */
    SUB_EXIT = 8,         /* arg[0]: status as passed to exit */
    SUB_WAIT = 9,         /* result: pid; arg[0]: wait status */
    SUB_OPEN = 10,        /* arg: dirfd, flags, mode; result: descriptor */
    SUB_MUTATE = 11,      /* arg: dirfd, flags, mode, second dirfd */
    SUB_CONNECT = 12,     /* arg[0]: descriptor */
    SUB_RESOLVE = 13,     /* getaddrinfo: names, answers */
    SUB_CHDIR = 14,       /* arg[0]: descriptor of fchdir; the directory it led to */
    SUB_BIND = 15,        /* arg[0]: descriptor; SUB_TAG_ADDRESS */
    SUB_LISTEN = 16,      /* arg: descriptor, backlog */
    SUB_ACCEPT = 17,      /* arg[0]: listening descriptor; result: the new one; SUB_TAG_ADDRESS */
    SUB_THREAD = 18,      /* result: errno of pthread_create, tid of clone */
    SUB_LOAD = 19,        /* SUB_TAG_LIBRARIES; of dlopen: SUB_TAG_PATH as asked, result 0 or -1 */
    SUB_DUP = 20,         /* arg[0]: descriptor; result: its copy */
    SUB_STAT = 21,        /* arg[0]: dirfd; paths as in SUB_OPEN; SUB_TAG_STAT_COUNTS */
    SUB_TRANSFER = 22,    /* arg[0]: descriptor; SUB_TAG_TRANSFER_COUNTS */
    SUB_SOURCES = 23,     /* SUB_TAG_SOURCE_COUNTS */
    SUB_LOOK = 24,        /* a struct sub_look: a SUB_STAT in a third of the room */
};

/*
 * SUB_STAT, SUB_TRANSFER and SUB_SOURCES are sums: the first call of a kind makes the record, the
 * later ones add to the counts in it (relaxed atomic additions), for as long as the writer
 * remembers where it is. A path, descriptor or image may have several; a reader adds them up.
 * `result` and `error` are those of the first call, `start_ns` is when it returned; nobody measured
 * how long it took. `last_ns` comes from a clock that ticks every few milliseconds.
 *
 * A SUB_STAT without a path is of the descriptor arg[0]; calls that failed count in SUB_STAT, not in
 * SUB_TRANSFER. A transfer to an address (sendto) carries it.
 */

/* Bits of sub_record.flags. */
#define SUB_FLAG_VFORK_CHILD 1u /* written by a child that borrows the memory: tid is its pid */
#define SUB_FLAG_TRUNCATED 2u   /* a string or the argument list was cut */
#define SUB_FLAG_FAULT 4u       /* a pointer of the caller could not be read */
#define SUB_FLAG_DIRECTORY 8u   /* opened as a directory (opendir) */
/*
 * Of SUB_TRANSFER and of SUB_STAT without a path: since the descriptor was last closed or made
 * anew (a pipe, a socket that is not connected), no record says what it leads to.
 */
#define SUB_FLAG_UNNAMED 16u
/*
 * Of SUB_OPEN and SUB_DUP that succeeded: their result stands for a path from now on, as if a
 * SUB_TAG_DIRECTORY_ID of it had been explained. That of an open is its PATH below its directory
 * (one name, no link followed; or of a file that it made); that of a copy is what arg[0] stood for.
 */
#define SUB_FLAG_PLACE 32u
/* As a SUB_TAG_DIRECTORY_ID of arg[0] without a path, which most records of a walk would have. */
#define SUB_FLAG_BELOW 64u

struct sub_record {
    uint32_t length; /* of header and fields, a multiple of 8; stored last, release */
    uint16_t type;
    uint16_t op;       /* SUB_OP_* */
    uint64_t start_ns; /* CLOCK_MONOTONIC at the call, read past any interposed clock */
    uint64_t elapsed_ns;
    int64_t result;
    uint32_t sequence;
    uint32_t tid;
    int32_t error; /* errno, 0 when the call succeeded */
    uint32_t flags;
    int32_t arg[4];
};
_Static_assert(sizeof(struct sub_record) == 64, "the record header is part of the format");

/*
 * A sum of look-ups of one path, as SUB_STAT, for the most frequent case: nothing about it is
 * unusual, and where a relative path starts is explained (as with SUB_FLAG_BELOW). It happened after
 * the record in front of it; what else it does not say, nobody asks of a look-up. It is claimed as
 * any record is, and counts in `sequence`.
 */
struct sub_look {
    uint32_t length;
    uint16_t type;
    uint16_t bytes; /* of the path, which follows, padded with zeros to eight bytes */
    uint32_t calls, failed;
    int32_t dirfd;
    uint32_t last; /* when the last call was: SUB_LOOK_TICK_BITS, since the segment was made */
};
_Static_assert(sizeof(struct sub_look) == 24, "the head of a look is part of the format");
#define SUB_LOOK_TICK_BITS 20 /* of about a millisecond each: the clock asked has no finer ones */

/* After the header: fields, each padded with zeros to eight bytes. */
struct sub_field {
    uint16_t tag;
    uint16_t reserved;
    uint32_t bytes; /* of the value, without padding */
};

enum sub_tag {
    SUB_TAG_PATH = 1,
    SUB_TAG_PATH2 = 2,
    SUB_TAG_DIRECTORY = 3,  /* what arg[0] (a dirfd) leads to, for a relative PATH */
    SUB_TAG_DIRECTORY2 = 4, /* what arg[3] leads to, for a relative PATH2 */
    SUB_TAG_CWD = 5,        /* absolute */
    SUB_TAG_ARGV = 6,       /* each argument with its NUL */
    SUB_TAG_EXE = 7,        /* absolute, as execve was given it; of a script, its interpreter */
    SUB_TAG_ENV_DIGEST = 8, /* u64, the same for any order of the same variables */
    SUB_TAG_VARIABLE = 9,   /* NAME=value of a SUBSTRATE_* id or TRACEPARENT */
    SUB_TAG_HELLO = 10,     /* struct sub_hello */
    SUB_TAG_ADDRESS = 11,   /* struct sockaddr as passed, or one answer of a resolver */
    SUB_TAG_NAME = 12,
    SUB_TAG_SERVICE = 13,
    SUB_TAG_MODE = 14, /* of fopen, popen */
    SUB_TAG_KEY = 15,  /* u64: address of a posix_spawn_file_actions_t */
    /*
     * u64 that stands for what is behind arg[0] or arg[3]. Asking the kernel for a descriptor's path
     * is dear: the path stands beside this (as SUB_TAG_DIRECTORY) when it was asked for, and counts
     * for later records of the same chain that have the same id and no path. The id is the number of
     * the descriptor + 1.
     */
    SUB_TAG_DIRECTORY_ID = 16,
    SUB_TAG_DIRECTORY2_ID = 17,
    SUB_TAG_LIBRARIES = 18, /* absolute paths, each with its NUL */
    SUB_TAG_STAT_COUNTS = 19,
    SUB_TAG_TRANSFER_COUNTS = 20,
    SUB_TAG_SOURCE_COUNTS = 21,
};

struct sub_stat_counts {
    uint64_t calls, failed, last_ns;
};

struct sub_transfer_counts {
    uint64_t read_calls, read_bytes, write_calls, write_bytes, last_ns;
};

/* What a program reads that is not the same the next time; append only. */
enum sub_source {
    SUB_SOURCE_CLOCK = 0,     /* time, gettimeofday, clock_gettime, timespec_get, ftime */
    SUB_SOURCE_MONOTONIC = 1, /* clock_gettime of the other clocks */
    SUB_SOURCE_RANDOM = 2, /* getrandom, getentropy, arc4random*; /dev/urandom shows as an open */
    SUB_SOURCE_PID = 3,    /* getpid, getppid, gettid */
    SUB_SOURCE_DIRECTORY_ORDER = 4, /* readdir without a sort */
    SUB_SOURCE_COUNT = 8,
};

struct sub_source_counts {
    uint64_t reads[SUB_SOURCE_COUNT];
};

struct sub_hello {
    struct sub_identity parent; /* of the image this one was forked from; zeros after an exec */
    int32_t ppid;
    uint32_t umask;
    uint64_t realtime_ns; /* CLOCK_REALTIME and CLOCK_BOOTTIME at start_ns of the record */
    uint64_t boottime_ns;
    uint32_t uid;
    uint32_t argc; /* the true number, whatever SUB_TAG_ARGV has room for */
};

/* Kinds of SUB_SPAWN_ACTION, in arg[0]; then fd, second fd or flags, mode. */
enum sub_spawn_action {
    SUB_ACTION_INIT = 0,
    SUB_ACTION_OPEN = 1,
    SUB_ACTION_CLOSE = 2,
    SUB_ACTION_DUP2 = 3,
    SUB_ACTION_CHDIR = 4,
    SUB_ACTION_FCHDIR = 5,
    SUB_ACTION_CLOSEFROM = 6,
    SUB_ACTION_DESTROY = 7,
};

/*
 * Every operation that can stand in sub_record.op: X(symbol). The name is the symbol that the
 * program called, which is also what the preload looks up behind itself. Append only.
 */
#define SUB_OPERATIONS(X)                                                                          \
    X(none)                                                                                        \
    X(execve)                                                                                      \
    X(execv)                                                                                       \
    X(execvp)                                                                                      \
    X(execvpe)                                                                                     \
    X(execl)                                                                                       \
    X(execlp)                                                                                      \
    X(execle)                                                                                      \
    X(fexecve)                                                                                     \
    X(execveat)                                                                                    \
    X(posix_spawn)                                                                                 \
    X(posix_spawnp)                                                                                \
    X(system)                                                                                      \
    X(popen)                                                                                       \
    X(posix_spawn_file_actions_init)                                                               \
    X(posix_spawn_file_actions_destroy)                                                            \
    X(posix_spawn_file_actions_addopen)                                                            \
    X(posix_spawn_file_actions_addclose)                                                           \
    X(posix_spawn_file_actions_adddup2)                                                            \
    X(posix_spawn_file_actions_addchdir_np)                                                        \
    X(posix_spawn_file_actions_addfchdir_np)                                                       \
    X(posix_spawn_file_actions_addclosefrom_np)                                                    \
    X(fork)                                                                                        \
    X(__fork)                                                                                      \
    X(_Fork)                                                                                       \
    X(vfork)                                                                                       \
    X(__vfork)                                                                                     \
    X(clone)                                                                                       \
    X(__clone)                                                                                     \
    X(daemon)                                                                                      \
    X(forkpty)                                                                                     \
    X(wait)                                                                                        \
    X(waitpid)                                                                                     \
    X(wait3)                                                                                       \
    X(wait4)                                                                                       \
    X(waitid)                                                                                      \
    X(exit)                                                                                        \
    X(_exit)                                                                                       \
    X(_Exit)                                                                                       \
    X(quick_exit)                                                                                  \
    X(open)                                                                                        \
    X(open64)                                                                                      \
    X(__open)                                                                                      \
    X(__open64)                                                                                    \
    X(__open_2)                                                                                    \
    X(__open64_2)                                                                                  \
    X(openat)                                                                                      \
    X(openat64)                                                                                    \
    X(__openat_2)                                                                                  \
    X(__openat64_2)                                                                                \
    X(creat)                                                                                       \
    X(creat64)                                                                                     \
    X(fopen)                                                                                       \
    X(fopen64)                                                                                     \
    X(_IO_fopen)                                                                                   \
    X(freopen)                                                                                     \
    X(freopen64)                                                                                   \
    X(opendir)                                                                                     \
    X(scandir)                                                                                     \
    X(scandir64)                                                                                   \
    X(scandirat)                                                                                   \
    X(scandirat64)                                                                                 \
    X(shm_open)                                                                                    \
    X(shm_unlink)                                                                                  \
    X(memfd_create)                                                                                \
    X(mkstemp)                                                                                     \
    X(mkstemp64)                                                                                   \
    X(mkostemp)                                                                                    \
    X(mkostemp64)                                                                                  \
    X(mkstemps)                                                                                    \
    X(mkstemps64)                                                                                  \
    X(mkostemps)                                                                                   \
    X(mkostemps64)                                                                                 \
    X(mkdtemp)                                                                                     \
    X(tmpfile)                                                                                     \
    X(tmpfile64)                                                                                   \
    X(unlink)                                                                                      \
    X(unlinkat)                                                                                    \
    X(remove)                                                                                      \
    X(rmdir)                                                                                       \
    X(rename)                                                                                      \
    X(renameat)                                                                                    \
    X(renameat2)                                                                                   \
    X(mkdir)                                                                                       \
    X(mkdirat)                                                                                     \
    X(link)                                                                                        \
    X(linkat)                                                                                      \
    X(symlink)                                                                                     \
    X(symlinkat)                                                                                   \
    X(mkfifo)                                                                                      \
    X(mkfifoat)                                                                                    \
    X(chmod)                                                                                       \
    X(fchmod)                                                                                      \
    X(fchmodat)                                                                                    \
    X(chown)                                                                                       \
    X(lchown)                                                                                      \
    X(fchown)                                                                                      \
    X(fchownat)                                                                                    \
    X(truncate)                                                                                    \
    X(truncate64)                                                                                  \
    X(ftruncate)                                                                                   \
    X(ftruncate64)                                                                                 \
    X(connect)                                                                                     \
    X(__connect)                                                                                   \
    X(getaddrinfo)                                                                                 \
    X(chdir)                                                                                       \
    X(fchdir)                                                                                      \
    X(chroot)                                                                                      \
    X(mknod)                                                                                       \
    X(mknodat)                                                                                     \
    X(fdopendir)                                                                                   \
    X(prctl)                                                                                       \
    X(syscall)                                                                                     \
    X(__libc_start_main)                                                                           \
    X(getaddrinfo_a)                                                                               \
    X(getnameinfo)                                                                                 \
    X(gethostbyname)                                                                               \
    X(gethostbyname_r)                                                                             \
    X(gethostbyname2)                                                                              \
    X(gethostbyname2_r)                                                                            \
    X(gethostbyaddr)                                                                               \
    X(gethostbyaddr_r)                                                                             \
    X(res_query)                                                                                   \
    X(__res_query)                                                                                 \
    X(res_search)                                                                                  \
    X(__res_search)                                                                                \
    X(res_send)                                                                                    \
    X(__res_send)                                                                                  \
    X(res_nquery)                                                                                  \
    X(__res_nquery)                                                                                \
    X(res_nsearch)                                                                                 \
    X(__res_nsearch)                                                                               \
    X(res_nsend)                                                                                   \
    X(__res_nsend)                                                                                 \
    X(bind)                                                                                        \
    X(listen)                                                                                      \
    X(accept)                                                                                      \
    X(accept4)                                                                                     \
    X(socket)                                                                                      \
    X(__socket)                                                                                    \
    X(socketpair)                                                                                  \
    X(stat)                                                                                        \
    X(stat64)                                                                                      \
    X(lstat)                                                                                       \
    X(lstat64)                                                                                     \
    X(fstat)                                                                                       \
    X(fstat64)                                                                                     \
    X(fstatat)                                                                                     \
    X(fstatat64)                                                                                   \
    X(statx)                                                                                       \
    X(__xstat)                                                                                     \
    X(__xstat64)                                                                                   \
    X(__lxstat)                                                                                    \
    X(__lxstat64)                                                                                  \
    X(__fxstat)                                                                                    \
    X(__fxstat64)                                                                                  \
    X(__fxstatat)                                                                                  \
    X(__fxstatat64)                                                                                \
    X(access)                                                                                      \
    X(faccessat)                                                                                   \
    X(euidaccess)                                                                                  \
    X(eaccess)                                                                                     \
    X(readlink)                                                                                    \
    X(readlinkat)                                                                                  \
    X(__readlink_chk)                                                                              \
    X(__readlinkat_chk)                                                                            \
    X(realpath)                                                                                    \
    X(__realpath_chk)                                                                              \
    X(canonicalize_file_name)                                                                      \
    X(statfs)                                                                                      \
    X(statfs64)                                                                                    \
    X(statvfs)                                                                                     \
    X(statvfs64)                                                                                   \
    X(getxattr)                                                                                    \
    X(lgetxattr)                                                                                   \
    X(listxattr)                                                                                   \
    X(llistxattr)                                                                                  \
    X(read)                                                                                        \
    X(__read)                                                                                      \
    X(__read_chk)                                                                                  \
    X(write)                                                                                       \
    X(__write)                                                                                     \
    X(pread)                                                                                       \
    X(pread64)                                                                                     \
    X(__pread64)                                                                                   \
    X(__pread_chk)                                                                                 \
    X(__pread64_chk)                                                                               \
    X(pwrite)                                                                                      \
    X(pwrite64)                                                                                    \
    X(__pwrite64)                                                                                  \
    X(readv)                                                                                       \
    X(writev)                                                                                      \
    X(preadv)                                                                                      \
    X(preadv64)                                                                                    \
    X(pwritev)                                                                                     \
    X(pwritev64)                                                                                   \
    X(preadv2)                                                                                     \
    X(preadv64v2)                                                                                  \
    X(pwritev2)                                                                                    \
    X(pwritev64v2)                                                                                 \
    X(send)                                                                                        \
    X(__send)                                                                                      \
    X(sendto)                                                                                      \
    X(sendmsg)                                                                                     \
    X(sendmmsg)                                                                                    \
    X(__sendmmsg)                                                                                  \
    X(recv)                                                                                        \
    X(__recv)                                                                                      \
    X(__recv_chk)                                                                                  \
    X(recvfrom)                                                                                    \
    X(__recvfrom_chk)                                                                              \
    X(recvmsg)                                                                                     \
    X(recvmmsg)                                                                                    \
    X(sendfile)                                                                                    \
    X(sendfile64)                                                                                  \
    X(copy_file_range)                                                                             \
    X(splice)                                                                                      \
    X(close)                                                                                       \
    X(__close)                                                                                     \
    X(closefrom)                                                                                   \
    X(close_range)                                                                                 \
    X(fclose)                                                                                      \
    X(_IO_fclose)                                                                                  \
    X(closedir)                                                                                    \
    X(pclose)                                                                                      \
    X(dup)                                                                                         \
    X(dup2)                                                                                        \
    X(__dup2)                                                                                      \
    X(dup3)                                                                                        \
    X(fcntl)                                                                                       \
    X(__fcntl)                                                                                     \
    X(fcntl64)                                                                                     \
    X(pipe)                                                                                        \
    X(__pipe)                                                                                      \
    X(pipe2)                                                                                       \
    X(eventfd)                                                                                     \
    X(timerfd_create)                                                                              \
    X(signalfd)                                                                                    \
    X(epoll_create)                                                                                \
    X(epoll_create1)                                                                               \
    X(inotify_init)                                                                                \
    X(inotify_init1)                                                                               \
    X(utime)                                                                                       \
    X(utimes)                                                                                      \
    X(utimensat)                                                                                   \
    X(futimens)                                                                                    \
    X(futimes)                                                                                     \
    X(lutimes)                                                                                     \
    X(futimesat)                                                                                   \
    X(fallocate)                                                                                   \
    X(fallocate64)                                                                                 \
    X(posix_fallocate)                                                                             \
    X(posix_fallocate64)                                                                           \
    X(setxattr)                                                                                    \
    X(lsetxattr)                                                                                   \
    X(fsetxattr)                                                                                   \
    X(removexattr)                                                                                 \
    X(lremovexattr)                                                                                \
    X(fremovexattr)                                                                                \
    X(lchmod)                                                                                      \
    X(__xmknod)                                                                                    \
    X(__xmknodat)                                                                                  \
    X(mount)                                                                                       \
    X(umount)                                                                                      \
    X(umount2)                                                                                     \
    X(sem_open)                                                                                    \
    X(sem_unlink)                                                                                  \
    X(mq_open)                                                                                     \
    X(__mq_open_2)                                                                                 \
    X(mq_unlink)                                                                                   \
    X(open_by_handle_at)                                                                           \
    X(ftw)                                                                                         \
    X(ftw64)                                                                                       \
    X(nftw)                                                                                        \
    X(nftw64)                                                                                      \
    X(fts_open)                                                                                    \
    X(fts64_open)                                                                                  \
    X(glob)                                                                                        \
    X(glob64)                                                                                      \
    X(wordexp)                                                                                     \
    X(pidfd_spawn)                                                                                 \
    X(pidfd_spawnp)                                                                                \
    X(__libc_fork)                                                                                 \
    X(pthread_create)                                                                              \
    X(thrd_create)                                                                                 \
    X(unshare)                                                                                     \
    X(setns)                                                                                       \
    X(dlopen)                                                                                      \
    X(dlmopen)                                                                                     \
    X(time)                                                                                        \
    X(gettimeofday)                                                                                \
    X(__gettimeofday)                                                                              \
    X(clock_gettime)                                                                               \
    X(__clock_gettime)                                                                             \
    X(timespec_get)                                                                                \
    X(ftime)                                                                                       \
    X(getrandom)                                                                                   \
    X(getentropy)                                                                                  \
    X(arc4random)                                                                                  \
    X(arc4random_buf)                                                                              \
    X(arc4random_uniform)                                                                          \
    X(getpid)                                                                                      \
    X(__getpid)                                                                                    \
    X(getppid)                                                                                     \
    X(gettid)                                                                                      \
    X(readdir)                                                                                     \
    X(readdir64)                                                                                   \
    X(readdir_r)                                                                                   \
    X(readdir64_r)                                                                                 \
    X(openat2)                                                                                     \
    X(clone3)                                                                                      \
    X(exit_group)                                                                                  \
    X(openpty)                                                                                     \
    X(posix_openpt)                                                                                \
    X(getpt)                                                                                       \
    X(dlsym)                                                                                       \
    X(dlvsym)

#define SUB_OPERATION_ENUM(name) SUB_OP_##name,
enum sub_operation { SUB_OPERATIONS(SUB_OPERATION_ENUM) SUB_OP_COUNT };
#undef SUB_OPERATION_ENUM

#endif
