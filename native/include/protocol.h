/*
 * The wire between the host process, the launcher and the inits.
 *
 * Both sockets are AF_UNIX SOCK_SEQPACKET: a message is one packet and carries descriptors by
 * SCM_RIGHTS. Every packet starts with struct sub_header. A payload that does not fit in a packet
 * (argv and environment of up to megabytes) comes in a memfd, which is then the first descriptor.
 * All numbers are little-endian and at their natural alignment; there is no implicit padding.
 *
 * Strings: u32 length, then that many bytes (no terminator, any byte but NUL where the kernel
 * would not take it). Readers treat every length as hostile.
 *
 * Versions: a host speaks its own version and the one before. SUB_PROTOCOL_VERSION changes when a
 * structure changes; adding a message type does not change it.
 */
#ifndef SUBSTRATE_PROTOCOL_H
#define SUBSTRATE_PROTOCOL_H

#include <stdint.h>

#define SUB_PROTOCOL_VERSION 1
#define SUB_PACKET_MAX 65536u     /* header and inline payload */
#define SUB_MEMFD_MAX (64u << 20) /* payload in a memfd */
#define SUB_FDS_MAX 4
#define SUB_ID_MAX 64                 /* world_id and exec_id: [A-Za-z0-9_.-]{1,64} */
#define SUB_STDIN_WINDOW (256u << 10) /* unacknowledged stdin bytes a host may have in flight */
#define SUB_STDIN_CHUNK (32u << 10)

/* Bits of sub_header.flags. */
#define SUB_IN_MEMFD 1u     /* the payload is in the first descriptor */
#define SUB_WANTS_LEDGER 2u /* of CREATE and ATTACH: send the ledger's descriptor too, if any */

struct sub_header {
    uint16_t version;
    uint16_t type;
    uint32_t request; /* chosen by the asker, given back in the answer; 0 in events */
    uint32_t length;  /* payload bytes, wherever they are */
    uint32_t flags;
};

/* ---- launcher ----------------------------------------------------------------------------- */

enum sub_launcher_type {
    SUB_L_HELLO = 0x0101, /* - -> SUB_L_WELCOME */
    /* sub_create, world_id, hostname, ops, sections -> SUB_L_BOX | SUB_L_ERROR */
    SUB_L_CREATE = 0x0102,
    SUB_L_LIST = 0x0103,     /* - -> SUB_L_WORLDS */
    SUB_L_ATTACH = 0x0104,   /* world_id -> SUB_L_BOX | SUB_L_ERROR */
    SUB_L_REMOVE = 0x0105,   /* world_id -> SUB_L_OK; also where there is no such world */
    SUB_L_SHUTDOWN = 0x0106, /* - -> SUB_L_OK, after all worlds are gone; then the launcher ends */
    /*
     * u64 from_ns, world_id -> SUB_L_OK | SUB_L_ERROR: all that the kernel has told so far is in the
     * world's ledger when the answer comes. Records before from_ns (CLOCK_MONOTONIC) are not needed
     * any more.
     */
    SUB_L_LEDGER = 0x0107,
    /* sub_limits, world_id -> SUB_L_OK | SUB_L_ERROR: from now on; all that is not set is unlimited */
    SUB_L_LIMITS = 0x0108,

    SUB_L_WELCOME = 0x0181, /* text: "key=value\n" lines, see launcher/probe.c */
    SUB_L_BOX = 0x0182,     /* sub_box, world_id; descriptors: channel, segments, pidfd; ledger */
    SUB_L_WORLDS = 0x0183,  /* u32 count, then world_ids */
    SUB_L_OK = 0x0184,
    SUB_L_ERROR = 0x0185, /* sub_error, text, hint */
    SUB_L_GONE = 0x0186,  /* event: sub_gone, world_id: the init ended without REMOVE */
};

enum sub_id_mapping { SUB_MAP_CALLER = 0, SUB_MAP_RANGE = 1 };

struct sub_create {
    uint32_t id_mapping;
    uint32_t op_count;
    uint64_t segment_limit_bytes;
};

/*
 * What came to CREATE after its first version: after the operations, each with a head. WELCOME names
 * those that a launcher knows ("sections="); it refuses others, so that nothing is left undone.
 */
enum sub_section_tag { SUB_SECTION_LIMITS = 1 };

struct sub_section {
    uint32_t tag;
    uint32_t length;
};

/* What all processes of a box may use together; 0: no limit. */
struct sub_limits {
    uint64_t memory_bytes;
    uint64_t cpu_us; /* of processor time in each SUB_CPU_PERIOD_US */
    uint64_t pids;   /* processes and threads; 0: the launcher's own number */
};
#define SUB_CPU_PERIOD_US 100000u

enum sub_op_kind {
    SUB_OP_OVERLAY =
        1,           /* target, upper, work, lowers (topmost first); value: bit i = lower i as is */
    SUB_OP_BIND = 2, /* target, source */
    SUB_OP_TMPFS = 3,     /* target; mode; value: size in bytes */
    SUB_OP_MASK_FILE = 4, /* target */
    SUB_OP_MASK_DIR = 5,  /* target */
    SUB_OP_GRAB = 6,      /* name, path */
    SUB_OP_PLACE = 7,     /* name, target */
    SUB_OP_SYMLINK = 8,   /* target, points_to */
};
#define SUB_OP_READ_ONLY 1u

struct sub_op {
    uint8_t kind;
    uint8_t flags;
    uint16_t string_count;
    uint32_t mode;
    uint64_t value;
};

struct sub_box {
    int32_t init_pid; /* in the launcher's pid namespace */
    uint32_t id_base; /* host uid of the box's uid 0; 0 with SUB_MAP_CALLER */
};

struct sub_error {
    int32_t error; /* errno, or 0 where none fits */
    int32_t op;    /* index of the failing mount operation, or -1 */
};

struct sub_gone {
    int32_t wait_status; /* as wait(2) gives it */
    uint32_t reserved;
};

/* ---- init --------------------------------------------------------------------------------- */

enum sub_init_type {
    SUB_I_HELLO = 0x0201, /* u64 nonce -> SUB_I_WELCOME */
    /* sub_start, strings, rlimits; descriptors: log; output -> STARTED | FAILED */
    SUB_I_START = 0x0202,
    SUB_I_STDIN = 0x0203,  /* sub_stdin, bytes -> SUB_I_STDIN_ACK (unasked, as it is written) */
    SUB_I_SIGNAL = 0x0204, /* sub_signal -> SUB_I_OK | SUB_I_ERROR */
    SUB_I_RESIZE = 0x0205, /* sub_resize -> SUB_I_OK | SUB_I_ERROR */
    SUB_I_STATUS = 0x0206, /* - -> a SUB_I_STATE for each exec, then SUB_I_OK */
    SUB_I_FORGET = 0x0207, /* exec_id[64] -> SUB_I_OK; SUB_I_ERROR EBUSY while it runs */
    SUB_I_PROCS = 0x0208,  /* - -> SUB_I_PROC_LIST */
    SUB_I_FREEZE = 0x0209, /* u32 frozen, u32 zero -> SUB_I_FROZEN; asked until none is pending */

    /* sub_shell_run, text, trailer, stdin bytes; descriptor: log -> STARTED | FAILED */
    SUB_I_SHELL_RUN = 0x020a,

    SUB_I_WELCOME = 0x0281,   /* sub_welcome */
    SUB_I_STARTED = 0x0282,   /* sub_started */
    SUB_I_FAILED = 0x0283,    /* sub_failed, text: what failed */
    SUB_I_STDIN_ACK = 0x0284, /* sub_stdin_ack */
    SUB_I_OUTPUT = 0x0285,    /* event: sub_output; the log has grown */
    SUB_I_EXITED = 0x0286,    /* event: sub_state; of a shell command its directory, a string */
    SUB_I_STATE = 0x0287,     /* sub_state, directory */
    SUB_I_OK = 0x0288,
    SUB_I_ERROR = 0x0289,     /* sub_error, text */
    SUB_I_PROC_LIST = 0x028a, /* u32 count, u32 truncated, sub_proc... */
    SUB_I_FROZEN = 0x028b,    /* u32 frozen, u32 execs that are not yet as asked */
};

enum sub_kill_mode { SUB_KILL_CGROUP = 1, SUB_KILL_SUBREAPER = 2 };

struct sub_welcome {
    uint64_t nonce;
    uint64_t pid_namespace; /* inode number */
    uint64_t mono_ns;       /* CLOCK_MONOTONIC and CLOCK_BOOTTIME, read together */
    uint64_t boot_ns;
    uint32_t kill_mode;
    uint32_t exec_count;
};

#define SUB_START_PTY (1u << 0)     /* stdin, stdout, stderr are one terminal */
#define SUB_START_STDIN (1u << 1)   /* stdin is a pipe fed by SUB_I_STDIN; /dev/null otherwise */
#define SUB_START_BUILTIN (1u << 2) /* argv[0] names a file operation, see init/builtin.c */
#define SUB_START_NO_ASLR (1u << 3) /* personality(ADDR_NO_RANDOMIZE) */
#define SUB_START_OUTPUT (1u << 4)  /* stdout is the second descriptor; nothing of it is logged */

/*
 * A shell: stdin is its control, stdout and stderr are nothing. It also gets, from descriptor `rows`
 * on: the pipe for its reports; stdout and stderr of its commands; a file with their stdin.
 */
#define SUB_START_SHELL (1u << 5)

struct sub_start {
    uint32_t flags;
    uint32_t umask;
    int32_t uid; /* -1: by name in `user`; both absent: the box's default user */
    int32_t gid; /* -1: the user's */
    uint16_t rows;
    uint16_t cols;
    uint32_t argc;
    uint32_t envc;
    uint32_t rlimit_count;
    int64_t last_pid;         /* the first process gets the next free pid after this one; -1: any */
    uint64_t timeout_ms;      /* 0: none */
    uint64_t output_limit;    /* bytes of output kept; 0: none is kept */
    char exec_id[SUB_ID_MAX]; /* padded with NUL; all 64 bytes may be used */
    /* strings: cwd, user, argv[argc], env[envc]; then rlimit_count times sub_rlimit */
};

struct sub_rlimit {
    uint64_t resource; /* RLIMIT_* of the architecture */
    uint64_t soft;     /* UINT64_MAX: infinity */
    uint64_t hard;
};

struct sub_started {
    char exec_id[SUB_ID_MAX];
    int32_t pid;       /* in the box */
    uint32_t existing; /* 1: this exec_id had been started before; nothing was started now */
    uint64_t start_mono_ns;
    uint64_t start_boot_ns;
    uint64_t start_ticks; /* field 22 of /proc/PID/stat */
};

enum sub_stage {
    SUB_STAGE_REQUEST = 1, /* the request itself, descriptors, memory */
    SUB_STAGE_USER = 2,    /* no such user */
    SUB_STAGE_CWD = 3,
    SUB_STAGE_EXEC = 4, /* argv[0]: ENOENT is "not found" (127), others "cannot execute" (126) */
    SUB_STAGE_SETUP = 5 /* anything else before execve */
};

struct sub_failed {
    char exec_id[SUB_ID_MAX];
    int32_t error;
    uint32_t stage;
};

struct sub_stdin {
    char exec_id[SUB_ID_MAX];
    uint64_t offset; /* of the first byte; bytes received before are skipped */
    uint32_t eof;    /* 1: nothing follows these bytes */
    uint32_t reserved;
};

struct sub_stdin_ack {
    char exec_id[SUB_ID_MAX];
    uint64_t received;
    uint64_t written;
    uint32_t closed; /* the program closed its stdin, or ended */
    uint32_t reserved;
};

enum sub_signal_scope { SUB_SCOPE_MAIN = 0, SUB_SCOPE_TREE = 1, SUB_SCOPE_GROUP = 2 };

/*
 * A command of a shell. `text` and then `trailer` go to its control; the trailer makes it report
 * "WORD STATUS DIRECTORY" and NUL. A shell runs one command at a time.
 */
struct sub_shell_run {
    char shell_id[SUB_ID_MAX];
    char exec_id[SUB_ID_MAX];
    char word[SUB_ID_MAX];
    uint64_t timeout_ms;   /* 0: none */
    uint64_t output_limit; /* bytes of output kept */
};

struct sub_signal {
    char exec_id[SUB_ID_MAX];
    int32_t signo;
    uint32_t scope;
};

struct sub_resize {
    char exec_id[SUB_ID_MAX];
    uint16_t rows;
    uint16_t cols;
    uint32_t reserved;
};

struct sub_output {
    char exec_id[SUB_ID_MAX];
    uint64_t log_bytes;
};

enum sub_phase { SUB_PHASE_STARTING = 0, SUB_PHASE_RUNNING = 1, SUB_PHASE_EXITED = 2 };
enum sub_reason {
    SUB_REASON_NONE = 0,
    SUB_REASON_EXITED = 1,
    SUB_REASON_SIGNALED = 2, /* includes signals sent by SUB_I_SIGNAL; see `killed` */
    SUB_REASON_TIMEOUT = 3,
};

#define SUB_STATE_TRUNCATED (1u << 0)   /* output was dropped at the limit */
#define SUB_STATE_LOG_FAILED (1u << 1)  /* writing the log failed; log_errno says why */
#define SUB_STATE_KILLED (1u << 2)      /* SUB_I_SIGNAL killed the tree */
#define SUB_STATE_LOST (1u << 3)        /* its supervisor was killed; the status is unknown */
#define SUB_STATE_SHELL_ENDED (1u << 8) /* of a command: its shell ended with it */
#define SUB_STATE_SPOILED (1u << 9)     /* it wrote to the shell's reports: the shell was ended */

struct sub_state {
    char exec_id[SUB_ID_MAX];
    uint32_t phase;
    uint32_t reason;
    int32_t pid;
    int32_t exit_code; /* with SUB_REASON_EXITED, else -1 */
    int32_t signo;     /* with SUB_REASON_SIGNALED or TIMEOUT, else 0 */
    uint32_t flags;
    uint32_t remaining; /* processes of this exec that live on */
    int32_t log_errno;
    uint64_t start_mono_ns, start_boot_ns, start_ticks;
    uint64_t end_mono_ns, end_boot_ns;
    uint64_t log_bytes;    /* length of the log that init has written */
    uint64_t out_bytes[3]; /* produced on stdout, stderr, terminal, kept or not */
    uint64_t user_us, system_us, max_rss_bytes;
    uint64_t minor_faults, major_faults, in_blocks, out_blocks;
    uint64_t voluntary_switches, involuntary_switches;
    uint64_t stdin_received, stdin_written;
    /* Since the second layout; inits before it end here. */
    uint64_t oom_kills;    /* processes of this exec that the kernel ended for want of memory */
    uint64_t pids_refused; /* processes of the box refused while this exec ran */
};

struct sub_proc {
    char exec_id[SUB_ID_MAX]; /* empty: belongs to no exec */
    int32_t pid;
    int32_t ppid;
    uint64_t start_ticks;
    char comm[16];
};

/* ---- output log --------------------------------------------------------------------------- */

enum sub_stream { SUB_STREAM_OUT = 1, SUB_STREAM_ERR = 2, SUB_STREAM_PTY = 3 };

/* Followed by `length` bytes. Written with one writev: a reader may still see a torn last frame. */
struct sub_frame {
    uint64_t mono_ns;
    uint8_t stream;
    uint8_t zero[3];
    uint32_t length;
};

_Static_assert(sizeof(struct sub_header) == 16, "wire");
_Static_assert(sizeof(struct sub_create) == 16, "wire");
_Static_assert(sizeof(struct sub_section) == 8, "wire");
_Static_assert(sizeof(struct sub_limits) == 24, "wire");
_Static_assert(sizeof(struct sub_op) == 16, "wire");
_Static_assert(sizeof(struct sub_welcome) == 40, "wire");
_Static_assert(sizeof(struct sub_start) == 120, "wire");
_Static_assert(sizeof(struct sub_rlimit) == 24, "wire");
_Static_assert(sizeof(struct sub_started) == 96, "wire");
_Static_assert(sizeof(struct sub_failed) == 72, "wire");
_Static_assert(sizeof(struct sub_stdin) == 80, "wire");
_Static_assert(sizeof(struct sub_stdin_ack) == 88, "wire");
_Static_assert(sizeof(struct sub_shell_run) == 208, "wire");
_Static_assert(sizeof(struct sub_signal) == 72, "wire");
_Static_assert(sizeof(struct sub_resize) == 72, "wire");
_Static_assert(sizeof(struct sub_output) == 72, "wire");
_Static_assert(sizeof(struct sub_state) == 272, "wire");
_Static_assert(sizeof(struct sub_proc) == 96, "wire");
_Static_assert(sizeof(struct sub_frame) == 16, "wire");

#endif
