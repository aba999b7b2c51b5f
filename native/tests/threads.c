/* Three hundred threads, one after the other, open a path each. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
static void *run(void *number) {
    char path[64];
    snprintf(path, sizeof(path), "/thread-%ld", (long)number);
    open(path, O_RDONLY);
    return NULL;
}
int main(void) {
    for (long i = 0; i < 300; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, run, (void *)i);
        pthread_join(thread, NULL);
    }
    return 0;
}
