/* Linked statically: no loader, so no preload library either. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 2 || mkdir(argv[1], 0755) != 0 || chdir(argv[1]) != 0)
        return 1;
    int fd = open("made", O_CREAT | O_WRONLY, 0644);
    if (fd < 0 || write(fd, "x", 1) != 1 || close(fd) != 0)
        return 1;
    return rename("made", "moved") != 0 || chmod("moved", 0600) != 0;
}
