/* Opens under a timer whose handler opens too; prints how often it did. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
static volatile long handled;
static void handler(int number) {
    int e = errno;
    open("/handler", O_RDONLY);
    handled++;
    errno = e;
}
int main(void) {
    struct itimerval timer = {{0, 100}, {0, 100}};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    for (int i = 0; i < 100000; i++)
        if (open("/main", O_RDONLY) != -1 || errno != ENOENT)
            return 1;
    timer.it_value.tv_usec = timer.it_interval.tv_usec = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
    printf("%ld\n", handled);
    return 0;
}
