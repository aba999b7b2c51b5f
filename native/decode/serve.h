/* How the program is asked: once by its command line, or many times through a socket (serve.c). */
#ifndef SUBSTRATE_DECODE_SERVE_H
#define SUBSTRATE_DECODE_SERVE_H

#include "decode.h"

/* From the command line, or what came in its place; ends the process where they make no sense. */
void options_parse(struct options *options, int argc, char **argv);
_Noreturn void serve(int socket);

#endif
