#include "launcher.h"

#include <stdarg.h>
#include <stdio.h>

int fail_set(struct fail *fail, int error, const char *format, ...) {
    if (fail->text[0])
        return -1; /* the first failure is the cause, later ones follow from it */
    fail->error = error;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(fail->text, sizeof fail->text, format, arguments);
    va_end(arguments);
    if (error && length >= 0 && (size_t)length < sizeof fail->text)
        snprintf(fail->text + length, sizeof fail->text - (size_t)length, ": %s", strerror(error));
    return -1;
}
