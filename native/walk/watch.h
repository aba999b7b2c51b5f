/* The kernel's word on which inodes a world's processes have changed. */
#ifndef SUBSTRATE_WALK_WATCH_H
#define SUBSTRATE_WALK_WATCH_H

#include <stdbool.h>

#include "walk.h"

/* Begins to watch the world whose init has this pid; NULL, or why it cannot be. */
const char *watch_begin(long init, const char *world_id, const int *roots, uint32_t count);
/* Adds the inodes that were changed since the last time; false where that is not known. */
bool watch_take(struct inodes *inodes);
/* Whether nobody but the init lives in the world: then nothing is half done. */
bool watch_is_quiet(void);

#endif
