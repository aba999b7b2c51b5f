/* Whether text is one JSON value (RFC 8259) and nothing else. */
#ifndef SUBSTRATE_FUZZ_JSON_CHECK_H
#define SUBSTRATE_FUZZ_JSON_CHECK_H

#include <stdbool.h>
#include <stddef.h>

bool is_json(const char *text, size_t length);

#endif
