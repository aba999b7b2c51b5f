/* Prints the permissions that O_TMPFILE gave. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
int main(void) {
    struct stat status;
    fstat(open("/tmp", O_TMPFILE | O_RDWR, 0640), &status);
    printf("%o\n", status.st_mode & 0777);
    return 0;
}
