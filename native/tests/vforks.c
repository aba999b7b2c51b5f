/* The child of each vfork opens /child and fails to exec; the parent opens /parent. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    for (int i = 0; i < 200; i++) {
        int status;
        pid_t child = vfork();
        if (child == 0) {
            open("/child", O_RDONLY);
            execl("/missing", "x", (char *)0);
            _exit(5);
        }
        if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 5)
            return 1;
        open("/parent", O_RDONLY);
    }
    return 0;
}
