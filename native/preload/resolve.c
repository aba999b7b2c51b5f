/*
 * Finding the function behind a hook, and the clock, without the loader's help.
 *
 * dlsym takes the loader's lock and, in glibc before 2.34, may call malloc: a malloc that opens a
 * file on its first call (jemalloc, sanitizers) would come back here and wait for itself, and a
 * signal handler would do the same. So the symbol tables of the objects behind this one are read
 * directly, which is also faster. The rules are those of dlsym(RTLD_NEXT) for default versions, and
 * then of versions that are kept for old programs.
 */
#define _GNU_SOURCE 1

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/auxv.h>
#include <time.h>

#include "record.h"
#include "system.h"

void *sub_found[SUB_OP_COUNT];

/*
 * The names lie one behind the other and are found by their places. Pointers to them would be the
 * loader's to relocate in each program that is started, and fill most of the one page that a start
 * writes to.
 */
#define SUB_OPERATION_FIELD(name) char name_##name[sizeof(#name)];
#define SUB_OPERATION_NAME(name) #name,
#define SUB_OPERATION_PLACE(name) offsetof(struct operation_names, name_##name),
struct operation_names {
    SUB_OPERATIONS(SUB_OPERATION_FIELD)
};
static const struct operation_names operation_names = {SUB_OPERATIONS(SUB_OPERATION_NAME)};
static const uint16_t operation_places[] = {SUB_OPERATIONS(SUB_OPERATION_PLACE)};
_Static_assert(sizeof(struct operation_names) <= UINT16_MAX, "the places are 16 bits wide");

struct symbols {
    uintptr_t base;
    const ElfW(Sym) * table;
    const char *strings;
    const ElfW(Half) * versions;
    bool old; /* take what is kept for old programs only, too */
    const uint32_t *gnu_hash;
    const uint32_t *hash;
};

static uint32_t gnu_hash_of(const char *name) {
    uint32_t hash = 5381;
    for (; *name != '\0'; name++)
        hash = hash * 33 + (unsigned char)*name;
    return hash;
}

static uint32_t sysv_hash_of(const char *name) {
    uint32_t hash = 0;
    for (; *name != '\0'; name++) {
        hash = (hash << 4) + (unsigned char)*name;
        uint32_t high = hash & 0xf0000000u;
        hash = (hash ^ (high >> 24)) & ~high;
    }
    return hash;
}

/* The loader relocates these pointers in place in writable dynamic sections, but not in the vDSO's. */
static const void *dynamic_pointer(uintptr_t base, ElfW(Addr) value) {
    return (const void *)(value < base ? base + value : value);
}

static struct symbols symbols_of(uintptr_t base, const ElfW(Dyn) * dynamic) {
    struct symbols symbols = {.base = base};
    for (; dynamic != NULL && dynamic->d_tag != DT_NULL; dynamic++) {
        const void *value = dynamic_pointer(base, dynamic->d_un.d_ptr);
        switch (dynamic->d_tag) {
        case DT_SYMTAB:
            symbols.table = value;
            break;
        case DT_STRTAB:
            symbols.strings = value;
            break;
        case DT_VERSYM:
            symbols.versions = value;
            break;
        case DT_GNU_HASH:
            symbols.gnu_hash = value;
            break;
        case DT_HASH:
            symbols.hash = value;
            break;
        default:
            break;
        }
    }
    return symbols;
}

static void *matching(const struct symbols *in, uint32_t index, const char *name) {
    const ElfW(Sym) *symbol = &in->table[index];
    if (symbol->st_shndx == SHN_UNDEF || strcmp(in->strings + symbol->st_name, name) != 0)
        return NULL;
    if (in->versions != NULL && (in->versions[index] & 0x8000u) != 0 && !in->old)
        return NULL; /* kept for old programs: not the default version */
    unsigned type = symbol->st_info & 0xfu;
    void *address = (void *)(in->base + symbol->st_value);
    if (type == STT_GNU_IFUNC)
        return ((void *(*)(void))address)();
    return type == STT_FUNC || type == STT_NOTYPE ? address : NULL;
}

static void *find_symbol(const struct symbols *in, const char *name) {
    if (in->table == NULL || in->strings == NULL)
        return NULL;
    if (in->gnu_hash != NULL) {
        uint32_t hash = gnu_hash_of(name);
        uint32_t buckets = in->gnu_hash[0], first = in->gnu_hash[1], words = in->gnu_hash[2];
        const ElfW(Addr) *bloom = (const ElfW(Addr) *)(const void *)(in->gnu_hash + 4);
        const uint32_t *bucket = (const uint32_t *)(const void *)(bloom + words);
        const uint32_t *chain = bucket + buckets;
        if (buckets == 0)
            return NULL;
        for (uint32_t i = bucket[hash % buckets]; i >= first && i != 0; i++) {
            if ((chain[i - first] | 1u) == (hash | 1u)) {
                void *found = matching(in, i, name);
                if (found != NULL)
                    return found;
            }
            if ((chain[i - first] & 1u) != 0)
                break;
        }
        return NULL;
    }
    if (in->hash != NULL && in->hash[0] != 0) {
        const uint32_t *bucket = in->hash + 2, *chain = bucket + in->hash[0];
        for (uint32_t i = bucket[sysv_hash_of(name) % in->hash[0]]; i != 0; i = chain[i]) {
            void *found = matching(in, i, name);
            if (found != NULL)
                return found;
        }
    }
    return NULL;
}

extern ElfW(Dyn) _DYNAMIC[] __attribute__((visibility("hidden")));

#ifdef __GLIBC__
static void *find_version_behind_us(const char *name, bool old) {
    struct link_map *map = _r_debug.r_map;
    while (map != NULL && map->l_ld != _DYNAMIC)
        map = map->l_next;
    for (map = map != NULL ? map->l_next : NULL; map != NULL; map = map->l_next) {
        if (map->l_ld == NULL)
            continue;
        struct symbols symbols = symbols_of(map->l_addr, map->l_ld);
        symbols.old = old;
        void *found = find_symbol(&symbols, name);
        if (found != NULL)
            return found;
    }
    return NULL;
}

/*
 * A program built years ago may call what no program is built to call any more (__res_query): our
 * hook stands before that as well, as it has no version, and must find it.
 */
static void *find_behind_us(const char *name) {
    void *found = find_version_behind_us(name, false);
    return found != NULL ? found : find_version_behind_us(name, true);
}

static uintptr_t own_base(void) {
    for (const struct link_map *map = _r_debug.r_map; map != NULL; map = map->l_next) {
        if (map->l_ld == _DYNAMIC)
            return map->l_addr;
    }
    return 0;
}
#else
/* musl keeps its list for debuggers only. Its dlsym, like this, takes a lock and no memory. */
struct walk {
    const char *name; /* NULL: find this library */
    bool behind;
    uintptr_t base;
    void *found;
};

static int visit(struct dl_phdr_info *object, size_t size, void *context) {
    struct walk *walk = context;
    (void)size;
    for (unsigned i = 0; i < object->dlpi_phnum; i++) {
        if (object->dlpi_phdr[i].p_type != PT_DYNAMIC)
            continue;
        const ElfW(Dyn) *dynamic =
            (const ElfW(Dyn) *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
        if (dynamic == _DYNAMIC) {
            walk->behind = true;
            walk->base = object->dlpi_addr;
        } else if (walk->behind && walk->name != NULL) {
            struct symbols symbols = symbols_of(object->dlpi_addr, dynamic);
            walk->found = find_symbol(&symbols, walk->name);
        }
    }
    return walk->name != NULL ? walk->found != NULL : walk->behind;
}

static void *find_behind_us(const char *name) {
    struct walk walk = {.name = name};
    dl_iterate_phdr(visit, &walk);
    return walk.found;
}

static uintptr_t own_base(void) {
    struct walk walk = {.name = NULL};
    dl_iterate_phdr(visit, &walk);
    return walk.base;
}
#endif

void *sub_own_function(const char *name) {
    struct symbols symbols = symbols_of(own_base(), _DYNAMIC);
    return find_symbol(&symbols, name);
}

#ifdef __GLIBC__
/*
 * Asked by the loader, for a library that is relocated before this one too: then nothing can be
 * looked up yet. (Programs come last.)
 */
void *sub_late_hook(const char *name, void *hook) {
    static void *volatile relocated = (void *)&relocated;
    if (relocated != (void *)&relocated)
        return hook;
    return find_behind_us(name) != NULL ? hook : NULL;
}
#endif

void *sub_lookup(enum sub_operation op) {
    void *found = find_behind_us((const char *)&operation_names + operation_places[op]);
    if (found != NULL)
        __atomic_store_n(&sub_found[op], found, __ATOMIC_RELAXED);
    return found;
}

void *sub_find_function(const char *name) {
    return find_behind_us(name);
}

/* --- the clock -------------------------------------------------------------------------------- */

static int clock_by_system_call(clockid_t clock, struct timespec *now) {
    return (int)SYS2(SYS_clock_gettime, clock, now);
}

static int (*clock_function)(clockid_t, struct timespec *) = clock_by_system_call;

/*
 * Takes the clock from the vDSO itself: whatever else is loaded to control what the program sees of
 * time, events carry the real one.
 */
void sub_find_clock(void) {
    uintptr_t vdso = getauxval(AT_SYSINFO_EHDR);
    if (vdso == 0)
        return;
    const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)vdso;
    const ElfW(Phdr) *program = (const ElfW(Phdr) *)(vdso + header->e_phoff);
    for (unsigned i = 0; i < header->e_phnum; i++) {
        if (program[i].p_type != PT_DYNAMIC)
            continue;
        struct symbols symbols = symbols_of(vdso, (const ElfW(Dyn) *)(vdso + program[i].p_vaddr));
#if defined(__x86_64__)
        void *found = find_symbol(&symbols, "__vdso_clock_gettime");
#else
        void *found = find_symbol(&symbols, "__kernel_clock_gettime");
#endif
        if (found != NULL)
            clock_function = (int (*)(clockid_t, struct timespec *))found;
        return;
    }
}

uint64_t sub_clock(int clock) {
    struct timespec now = {0, 0};
    clock_function(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t sub_now(void) {
    return sub_clock(CLOCK_MONOTONIC);
}
