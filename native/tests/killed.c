/* A thousand opens, then SIGKILL. */
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>
int main(void) {
    for (int i = 0; i < 1000; i++)
        open("/before", O_RDONLY);
    kill(getpid(), SIGKILL);
}
