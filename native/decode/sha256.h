/* SHA-256 (FIPS 180-4), enough for span ids. */
#ifndef SUBSTRATE_DECODE_SHA256_H
#define SUBSTRATE_DECODE_SHA256_H

#include <stddef.h>
#include <stdint.h>

void sha256(const void *data, size_t length, uint8_t digest[32]);

#endif
