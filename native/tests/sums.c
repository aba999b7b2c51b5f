/*
 * Looks files up and moves bytes, many times, in one of several ways, in the current directory.
 * Prints what it did: "stat<TAB>path<TAB>calls<TAB>failed" and
 * "moved<TAB>path<TAB>read calls<TAB>bytes<TAB>write calls<TAB>bytes".
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 8

struct done {
    long looks, reads, read_bytes, writes, written_bytes;
};

static void say(const char *path, const struct done *done) {
    if (done->looks != 0)
        printf("stat\t%s\t%ld\t0\n", path, done->looks);
    printf("moved\t%s\t%ld\t%ld\t%ld\t%ld\n", path, done->reads, done->read_bytes, done->writes,
           done->written_bytes);
    fflush(stdout);
}

/* One round on one file: a look, an open, bytes in and out, by a copy of the descriptor too. */
static void round_on(const char *path, struct done *done, int round) {
    char bytes[64] = {0};
    struct stat status;
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || stat(path, &status) != 0)
        abort();
    done->looks++;
    done->writes += write(fd, bytes, 1 + round % 60) > 0;
    done->written_bytes += 1 + round % 60;
    int copy = round % 3 == 0 ? dup(fd) : round % 3 == 1 ? fcntl(fd, F_DUPFD, 30) : -1;
    for (int i = 0; i < 4; i++) {
        ssize_t got = pread(copy >= 0 && i % 2 == 1 ? copy : fd, bytes, sizeof(bytes), 0);
        done->reads++;
        done->read_bytes += got;
    }
    if (copy >= 0)
        close(copy);
    close(fd);
}

static void *rounds(void *number) {
    char path[32], other[32];
    struct done done = {0}, elsewhere = {0};
    snprintf(path, sizeof(path), "file-%ld", (long)number);
    snprintf(other, sizeof(other), "other-%ld", (long)number);
    for (int i = 0; i < 2000; i++)
        round_on(i % 5 == 4 ? other : path, i % 5 == 4 ? &elsewhere : &done, i);
    say(path, &done);
    say(other, &elsewhere);
    return NULL;
}

static void threads(void) {
    pthread_t list[THREADS];
    for (long i = 0; i < THREADS; i++)
        pthread_create(&list[i], NULL, rounds, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(list[i], NULL);
}

/* The same descriptor and path before, in and after many segments. */
static void long_chain(void) {
    struct done done = {0};
    struct stat status;
    char byte;
    int fd = open("/dev/zero", O_RDONLY);
    for (int i = 0; i < 40000; i++) {
        if (i % 10 == 0)
            open("/absent", O_RDONLY);
        done.looks += stat("/dev/zero", &status) == 0;
        done.reads += read(fd, &byte, 1);
    }
    done.read_bytes = done.reads;
    say("/dev/zero", &done);
}

/* A forked child, and a vfork child, do the same on what they got from their parent. */
static void children(void) {
    struct done done = {0};
    struct stat status;
    char bytes[8];
    int fd = open("/dev/zero", O_RDONLY);
    for (int i = 0; i < 20; i++) {
        done.looks += stat("/dev/zero", &status) == 0;
        done.reads += read(fd, bytes, 2) == 2;
        pid_t child = i % 2 == 0 ? fork() : vfork();
        if (child == 0) {
            stat("/dev/zero", &status);
            read(fd, bytes, 2);
            dup2(fd, 9);
            close(fd);
            read(9, bytes, 3);
            _exit(0);
        }
        waitpid(child, NULL, 0);
        done.reads += 2;
        done.read_bytes += 7;
        done.looks++;
    }
    done.read_bytes += 0;
    say("/dev/zero", &done);
}

static volatile struct done handled;

static void handle(int signal) {
    struct stat status;
    char bytes[8];
    int fd = open("/dev/zero", O_RDONLY);
    read(fd, bytes, 5);
    close(fd);
    stat("/dev/zero", &status);
    handled.reads++;
    handled.looks++;
}

static void handlers(void) {
    struct done done = {0};
    struct stat status;
    char byte;
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    int fd = open("/dev/zero", O_RDONLY);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 50000; i++) {
        done.looks += stat("/dev/zero", &status) == 0;
        done.reads += read(fd, &byte, 1);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    done.read_bytes = done.reads + 5 * handled.reads;
    done.reads += handled.reads;
    done.looks += handled.looks;
    say("/dev/zero", &done);
}

/* The same number for one file after the other; the same relative path in two directories. */
static void again(void) {
    char bytes[16] = "0123456789";
    struct stat status;
    const char *const names[] = {"first", "second"};
    struct done done[2] = {{0}};
    for (int i = 0; i < 10; i++) {
        int which = i % 2;
        int fd = open(names[which], O_RDWR | O_CREAT, 0600);
        done[which].writes += write(fd, bytes, 3 + which) > 0;
        done[which].written_bytes += 3 + which;
        switch (i / 2) {
        case 0:
            close(fd);
            break;
        case 1:
            fclose(fdopen(fd, "w"));
            break;
        case 2:
            close_range(fd, fd, 0);
            break;
        case 3:
            closefrom(fd);
            break;
        default:
            dup2(open("/dev/null", O_RDWR), fd);
            done[which].writes += 0;
            close(fd);
            closefrom(3);
        }
    }
    say(names[0], &done[0]);
    say(names[1], &done[1]);
    mkdir("below", 0700);
    for (int i = 0; i < 6; i++) {
        stat("here", &status);
        if (chdir(i % 2 == 0 ? "below" : "..") != 0)
            abort();
    }
    printf("chdir\n");
}

static void *read_forever(void *fd) {
    char byte;
    for (;;)
        read((int)(long)fd, &byte, 1);
}

/* Cancellation unwinds through the hook's frame. */
static void cancelled(void) {
    int pair[2];
    for (int i = 0; i < 50; i++) {
        pthread_t thread;
        void *result;
        if (pipe(pair) != 0)
            abort();
        pthread_create(&thread, NULL, read_forever, (void *)(long)pair[0]);
        write(pair[1], "x", 1);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        if (result != PTHREAD_CANCELED)
            abort();
        close(pair[0]);
        close(pair[1]);
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } ways[] = {{"threads", threads},   {"chain", long_chain}, {"children", children},
                {"handlers", handlers}, {"again", again},      {"cancelled", cancelled}};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
        if (argc > 1 && strcmp(argv[1], ways[i].name) == 0)
            ways[i].run();
    return 0;
}
