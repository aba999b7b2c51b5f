/*
 * Stands in for a shell where a target has none: "sh -c 'exit N'" does that, "sh run DIRECTORY
 * NAME=VALUE... program arguments..." goes there, sets its environment and becomes the program.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "-c") == 0 && strncmp(argv[2], "exit ", 5) == 0)
        return atoi(argv[2] + 5);
    if (argc < 4 || strcmp(argv[1], "run") != 0 || chdir(argv[2]) != 0)
        return 2;
    char **program = argv + 3;
    for (; *program != NULL && strchr(*program, '=') != NULL; program++)
        putenv(*program);
    if (*program != NULL)
        execv(*program, program);
    return 127;
}
