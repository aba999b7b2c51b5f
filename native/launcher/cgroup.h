/*
 * The cgroups of boxes. Three things come of them: the end of a process tree however it forks
 * (cgroup.kill, v2, needs no controller), limits (memory, cpu, pids: v2 controllers, else v1), and
 * what the kernel counts against them.
 *
 * Version 2, with controllers:      without (hybrid hosts):       version 1, a tree each:
 *
 *   substrate-<hash>                  substrate-<hash>              memory/substrate-<hash>
 *     <world>    cpu.max                <world>    init               <world>   limit
 *       init                              e0, e1…  execs                e0, e1… execs
 *       execs    memory.max, pids.max                               cpu, pids/substrate-<hash>
 *         e0, e1…                                                     <world>   limit; all of it
 *
 * The init is never under the memory limit: the kernel would choose it some day.
 */
#ifndef SUBSTRATE_CGROUP_H
#define SUBSTRATE_CGROUP_H

#include "launcher.h"

enum controller { CONTROLLER_MEMORY, CONTROLLER_CPU, CONTROLLER_PIDS, CONTROLLERS };
extern const char *const controller_names[CONTROLLERS];

/* A directory of a hierarchy below which all boxes of this launcher are. */
struct cgroup_base {
    char path[4096]; /* "" where there is none */
    int fd;
};

int cgroup_write(int dir, const char *file, const char *text);
int cgroup_own(int dir, const char *const *files, uint32_t owner);
/* The directory of a hierarchy that a process of ours is in now, or NULL. `controller`: of v1. */
bool cgroup_own_directory(const char *controller, char *mount, char *own, size_t room);
int cgroup_open_base(struct cgroup_base *base);
int cgroup_make_below(struct cgroup_base *base, const char *name);
void cgroup_remove_below(int parent, const char *name);
/* Of the memory of this machine, what all boxes together may have; 0: not known. */
uint64_t cgroup_ceiling(void);

/* ---- cgroup_delegated.c ---------------------------------------------------------------------- */

/* Whether what is below a cgroup is ours to arrange. `top`: of all that is seen of the hierarchy. */
bool cgroup_is_delegated(int dir, bool top);
/* Whether systemd has marked it so. */
bool cgroup_is_marked(int dir);
/* Moves all processes of a cgroup to one below it; all of them or none. */
bool cgroup_vacate(int dir, const char *leaf);

/* ---- cgroup_v1.c ----------------------------------------------------------------------------- */

bool cgroup_v1_has(enum controller controller);
void cgroup_v1_find(const char *name, bool needed[CONTROLLERS]);
int cgroup_v1_make(const char *world_id, uint32_t owner, struct box_cgroups *made,
                   struct fail *fail);
int cgroup_v1_limit(const char *world_id, const struct sub_limits *limits, struct fail *fail);
void cgroup_v1_remove(const char *world_id);
void cgroup_v1_remove_all(void);

#endif
