/* "burst COUNT THREADS": so many opens of "/burst" by each thread; prints how many there were. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static void *run(void *count) {
    for (long i = 0; i < (long)count; i++)
        open("/burst", O_RDONLY);
    return NULL;
}

int main(int argc, char **argv) {
    long count = argc > 2 ? atol(argv[1]) : 0, threads = argc > 2 ? atol(argv[2]) : 0;
    pthread_t running[64];
    if (count <= 0 || threads <= 0 || threads > 64)
        return 2;
    for (long i = 0; i < threads; i++)
        pthread_create(&running[i], NULL, run, (void *)count);
    for (long i = 0; i < threads; i++)
        pthread_join(running[i], NULL);
    printf("%ld\n", count * threads);
    return 6;
}
