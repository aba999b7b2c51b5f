/*
 * What this process knows about its descriptor numbers: not what they lead to, but whether that is
 * still the same as before. Each closing or making of a descriptor that passes a hook changes the
 * number's state, so a sum that was begun for another file is not added to.
 */
#ifndef SUBSTRATE_PRELOAD_DESCRIPTORS_H
#define SUBSTRATE_PRELOAD_DESCRIPTORS_H

#include "record.h"

#define SUB_DESCRIPTORS 1024u

/* Bit 0: no record says what the descriptor leads to. The rest counts. 0: never seen. */
extern uint32_t sub_descriptors[SUB_DESCRIPTORS];

/* Higher numbers share states, which begins more sums than there need be, and are not judged. */
static inline uint32_t sub_descriptor_state(int fd) {
    uint32_t state =
        __atomic_load_n(&sub_descriptors[(uint32_t)fd % SUB_DESCRIPTORS], __ATOMIC_RELAXED);
    return (uint32_t)fd < SUB_DESCRIPTORS ? state : state & ~1u;
}

/* A vfork child has descriptors of its own, but writes to its parent's memory. */
static inline bool sub_descriptors_are_ours(void) {
    return likely(sub_self.check == 0) || sub_vfork_child() == 0;
}

static inline void sub_change_descriptor(int fd, bool named) {
    uint32_t *state = &sub_descriptors[(uint32_t)fd % SUB_DESCRIPTORS];
    if (fd < 0 || !sub_descriptors_are_ours())
        return;
    uint32_t next = (__atomic_load_n(state, __ATOMIC_RELAXED) + 2) | 1u;
    __atomic_store_n(state, named ? next & ~1u : next, __ATOMIC_RELAXED);
}

/* A record says what this new descriptor leads to. */
static inline void sub_descriptor_named(int fd) {
    sub_change_descriptor(fd, true);
}

/*
 * It is closed, or made without a record. Called before a close, because right after it another
 * thread may have the number again.
 */
static inline void sub_descriptor_unnamed(int fd) {
    sub_change_descriptor(fd, false);
}

void sub_descriptors_unnamed_from(unsigned first, unsigned last);

/* The master of a pseudo-terminal was opened, as /dev/ptmx. */
void sub_record_master(enum sub_operation op, uint64_t start, int flags, int fd, int error);

#endif
