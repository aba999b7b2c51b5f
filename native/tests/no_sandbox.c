/* Stands in for sandbox.c in sanitizer builds, whose runtime needs what the sandbox takes away. */
#include "../decode/decode.h"

void enter_sandbox(const struct options *options) {
    (void)options;
}
