#ifndef SUBSTRATE_PRELOAD_PROCESS_H
#define SUBSTRATE_PRELOAD_PROCESS_H

#include <stddef.h>
#include <stdint.h>

void sub_find_clock(void);
uint64_t sub_clock(int clock);
void *sub_find_function(const char *name);
uint64_t sub_hash_variable(const char *variable, size_t length);
void sub_record_exit(uint16_t op, int status);

#endif
