/*
 * Calls one entry point after another, by name, in the current directory, and prints what each
 * returned: "name<TAB>path<TAB>result<TAB>errno". The test compares that with what was recorded.
 */
#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* musl 1.2.3 has neither. */
extern int renameat2(int, const char *, int, const char *, unsigned) __attribute__((weak));
extern int execveat(int, const char *, char *const[], char *const[], int) __attribute__((weak));

static char cwd[4096];
static int directory;

static void report(const char *name, const char *path, long result) {
    int error = result < 0 ? errno : 0;
    char absolute[8192];
    if (path == NULL || path[0] == '/' || path[0] == '\0')
        snprintf(absolute, sizeof(absolute), "%s", path != NULL ? path : "");
    else
        snprintf(absolute, sizeof(absolute), "%s/%s", cwd, path);
    printf("%s\t%s\t%ld\t%d\n", name, absolute, result < 0 ? -1 : result, error);
    fflush(stdout);
}

static void *find(const char *name) {
    return dlsym(RTLD_DEFAULT, name);
}

static void closes(long fd) {
    if (fd > 2)
        close((int)fd);
}

static void opens(void) {
    static const char *const plain[] = {"open", "open64", "__open", "__open64"};
    for (size_t i = 0; i < 4; i++) {
        int (*call)(const char *, int, ...) = (int (*)(const char *, int, ...))find(plain[i]);
        if (call == NULL)
            continue;
        long fd = call("made", O_CREAT | O_RDWR, 0640);
        report(plain[i], "made", fd);
        closes(fd);
        report(plain[i], "missing", call("missing", O_RDONLY));
        fd = call(".", O_TMPFILE | O_RDWR, 0600);
        report(plain[i], "", fd);
        closes(fd);
    }
    static const char *const at[] = {"openat", "openat64"};
    for (size_t i = 0; i < 2; i++) {
        int (*call)(int, const char *, int, ...) =
            (int (*)(int, const char *, int, ...))find(at[i]);
        if (call == NULL)
            continue;
        long fd = call(directory, "made", O_RDONLY);
        report(at[i], "made", fd);
        closes(fd);
        fd = call(AT_FDCWD, "made", O_RDONLY);
        report(at[i], "made", fd);
        closes(fd);
        report(at[i], "", call(-7, "made", O_RDONLY));
    }
    static const char *const fortified[] = {"__open_2", "__open64_2"};
    for (size_t i = 0; i < 2; i++) {
        int (*call)(const char *, int) = (int (*)(const char *, int))find(fortified[i]);
        if (call == NULL)
            continue;
        long fd = call("made", O_RDONLY);
        report(fortified[i], "made", fd);
        closes(fd);
    }
    static const char *const fortified_at[] = {"__openat_2", "__openat64_2"};
    for (size_t i = 0; i < 2; i++) {
        int (*call)(int, const char *, int) =
            (int (*)(int, const char *, int))find(fortified_at[i]);
        if (call == NULL)
            continue;
        long fd = call(directory, "made", O_RDONLY);
        report(fortified_at[i], "made", fd);
        closes(fd);
    }
    static const char *const creators[] = {"creat", "creat64"};
    for (size_t i = 0; i < 2; i++) {
        int (*call)(const char *, mode_t) = (int (*)(const char *, mode_t))find(creators[i]);
        if (call == NULL)
            continue;
        long fd = call("created", 0600);
        report(creators[i], "created", fd);
        closes(fd);
    }
}

static void streams(void) {
    static const char *const names[] = {"fopen", "fopen64", "_IO_fopen"};
    for (size_t i = 0; i < 3; i++) {
        FILE *(*call)(const char *, const char *) =
            (FILE * (*)(const char *, const char *)) find(names[i]);
        if (call == NULL)
            continue;
        FILE *stream = call("made", "r+e");
        report(names[i], "made", stream != NULL ? fileno(stream) : -1);
        if (stream != NULL)
            fclose(stream);
        stream = call("missing", "r");
        report(names[i], "missing", stream != NULL ? fileno(stream) : -1);
    }
    static const char *const again[] = {"freopen", "freopen64"};
    for (size_t i = 0; i < 2; i++) {
        FILE *(*call)(const char *, const char *, FILE *) =
            (FILE * (*)(const char *, const char *, FILE *)) find(again[i]);
        if (call == NULL)
            continue;
        FILE *stream = fopen("made", "r");
        stream = call("created", "w", stream);
        report(again[i], "created", stream != NULL ? fileno(stream) : -1);
        if (stream != NULL)
            fclose(stream);
    }
    FILE *stream = tmpfile();
    report("tmpfile", "", stream != NULL ? fileno(stream) : -1);
    if (stream != NULL)
        fclose(stream);
    DIR *listing = opendir(".");
    report("opendir", cwd, listing != NULL ? dirfd(listing) : -1);
    closedir(listing);
    listing = opendir("missing");
    report("opendir", "missing", listing != NULL ? 0 : -1);
    struct dirent **entries;
    int count = scandir(".", &entries, NULL, NULL);
    report("scandir", cwd, count);
    for (int i = 0; i < count; i++)
        free(entries[i]);
    free(entries);
}

static void temporaries(void) {
    static const char *const names[] = {"mkstemp", "mkostemp", "mkstemps", "mkostemps"};
    for (size_t i = 0; i < 4; i++) {
        char path[] = "tempXXXXXX.c";
        if (i < 2)
            path[10] = '\0';
        long fd = i == 0   ? mkstemp(path)
                  : i == 1 ? mkostemp(path, O_CLOEXEC)
                  : i == 2 ? mkstemps(path, 2)
                           : mkostemps(path, 2, O_CLOEXEC);
        report(names[i], path, fd);
        closes(fd);
    }
    char path[] = "dirXXXXXX";
    report("mkdtemp", path, mkdtemp(path) != NULL ? 0 : -1);
}

static void changes(void) {
    report("mkdir", "sub", mkdir("sub", 0755));
    report("mkdir", "sub", mkdir("sub", 0755));
    report("mkdirat", "sub2", mkdirat(directory, "sub2", 0700));
    report("rename", "created", rename("created", "renamed"));
    report("renameat", "renamed", renameat(directory, "renamed", AT_FDCWD, "sub/renamed"));
    if (renameat2 != NULL)
        report("renameat2", "sub/renamed",
               renameat2(AT_FDCWD, "sub/renamed", directory, "back", 0));
    else
        rename("sub/renamed", "back");
    report("link", "made", link("made", "linked"));
    report("linkat", "made", linkat(directory, "made", directory, "linked2", 0));
    report("symlink", "pointer", symlink("made", "pointer"));
    report("symlinkat", "pointer2", symlinkat("/absent", directory, "pointer2"));
    report("mkfifo", "fifo", mkfifo("fifo", 0600));
    report("chmod", "made", chmod("made", 0600));
    report("fchmodat", "made", fchmodat(directory, "made", 0640, 0));
    int fd = open("made", O_RDWR);
    report("fchmod", "made", fchmod(fd, 0644));
    report("ftruncate", "made", ftruncate(fd, 10));
    closes(fd);
    report("truncate", "made", truncate("made", 3));
    report("chown", "made", chown("made", (uid_t)-1, (gid_t)-1));
    report("unlink", "linked", unlink("linked"));
    report("unlink", "linked", unlink("linked"));
    report("unlinkat", "linked2", unlinkat(directory, "linked2", 0));
    report("remove", "back", remove("back"));
    report("rmdir", "sub2", rmdir("sub2"));
    report("chdir", "sub", chdir("sub"));
    report("open", "sub/below", open("below", O_CREAT | O_WRONLY, 0600));
    report("fchdir", cwd, fchdir(directory));
    report("chdir", "missing", chdir("missing"));
}

static void network(void) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(9)};
    inet_pton(AF_INET, "127.0.0.1", &in.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    report("connect", "", connect(fd, (struct sockaddr *)&in, sizeof(in)));
    close(fd);
    struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "/nonexistent.sock"};
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    report("connect", "", connect(fd, (struct sockaddr *)&un, sizeof(un)));
    report("connect", "", connect(fd, (struct sockaddr *)8, sizeof(un)));
    close(fd);
    struct addrinfo *answers = NULL, hints = {.ai_flags = AI_NUMERICHOST};
    int result = getaddrinfo("127.0.0.1", "80", &hints, &answers);
    report("getaddrinfo", "", result);
    if (result == 0)
        freeaddrinfo(answers);
}

static void reap(const char *name, const char *path, pid_t child) {
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    report(name, path, WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status));
}

#define IN_CHILD(name, path, code)                                                                 \
    do {                                                                                           \
        pid_t child = fork();                                                                      \
        if (child == 0) {                                                                          \
            code;                                                                                  \
            _exit(99);                                                                             \
        }                                                                                          \
        reap(name, path, child);                                                                   \
    } while (0)

static void programs(void) {
    char *argv[] = {"sh", "-c", "exit 7", NULL};
    char *environment[] = {"A=1", NULL};
    extern char **environ;
    IN_CHILD("execve", "/bin/sh", execve("/bin/sh", argv, environ));
    IN_CHILD("execv", "/bin/sh", execv("/bin/sh", argv));
    IN_CHILD("execvp", "", execvp("sh", argv));
    IN_CHILD("execvpe", "", execvpe("sh", argv, environ));
    IN_CHILD("execl", "/bin/sh", execl("/bin/sh", "sh", "-c", "exit 7", (char *)NULL));
    IN_CHILD("execlp", "", execlp("sh", "sh", "-c", "exit 7", (char *)NULL));
    IN_CHILD("execle", "/bin/sh",
             execle("/bin/sh", "sh", "-c", "exit 7", (char *)NULL, environment));
    IN_CHILD("fexecve", "", fexecve(open("/bin/sh", O_RDONLY | O_CLOEXEC), argv, environ));
    if (execveat != NULL)
        IN_CHILD("execveat", "/bin/sh", execveat(AT_FDCWD, "/bin/sh", argv, environ, 0));
    report("execve", "/missing", execve("/missing", argv, environ));
    report("execve", "", execve((char *)8, argv, environ));
    report("execve", "/bin/sh", execve("/bin/sh", (char **)8, environ));
    pid_t child;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "spawned", O_CREAT | O_WRONLY, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    posix_spawn_file_actions_addclose(&actions, 0);
    if (posix_spawn(&child, "/bin/sh", &actions, NULL, argv, environ) == 0)
        reap("posix_spawn", "/bin/sh", child);
    posix_spawn_file_actions_destroy(&actions);
    if (posix_spawnp(&child, "sh", NULL, NULL, argv, environ) == 0)
        reap("posix_spawnp", "", child);
    report("system", "", WEXITSTATUS(system("exit 7")));
    FILE *stream = popen("exit 7", "r");
    report("popen", "", stream != NULL ? WEXITSTATUS(pclose(stream)) : -1);
    child = vfork();
    if (child == 0) {
        execve("/missing", argv, environ);
        execve("/bin/sh", argv, environ);
        _exit(99);
    }
    reap("vfork", "", child);
}

int main(void) {
    if (getcwd(cwd, sizeof(cwd)) == NULL)
        return 1;
    directory = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    opens();
    streams();
    temporaries();
    changes();
    network();
    programs();
    return 3;
}
