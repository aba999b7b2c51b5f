/* Four threads fork twenty children each; all of them open a path of their own. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void *run(void *number) {
    for (int i = 0; i < 20; i++) {
        char path[64];
        pid_t child = fork();
        if (child == 0) {
            snprintf(path, sizeof(path), "/child-%ld-%d", (long)number, i);
            open(path, O_RDONLY);
            _exit(0);
        }
        snprintf(path, sizeof(path), "/parent-%ld-%d", (long)number, i);
        open(path, O_RDONLY);
        if (waitpid(child, NULL, 0) != child)
            abort();
    }
    return NULL;
}
int main(void) {
    pthread_t threads[4];
    for (long i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, run, (void *)i);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
