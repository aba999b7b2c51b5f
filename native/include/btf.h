/*
 * Where fields lie in the running kernel's structures, from its own type information (BTF,
 * Documentation/bpf/btf.rst). Every index is checked, because a kernel with another idea of BTF must
 * end in "no BTF", not in a crash. For the launcher and the walker, which put BPF programs together.
 */
#ifndef SUBSTRATE_BTF_H
#define SUBSTRATE_BTF_H

#include "wire.h"

#include <linux/btf.h>
#include <stdlib.h>

#define BTF_PATH "/sys/kernel/btf/vmlinux"
#define BTF_MAX (64u << 20)
#define BTF_NESTING_MAX 4 /* anonymous structures in structures */

struct btf {
    uint8_t *data;
    const uint8_t *types;
    const char *strings;
    uint32_t type_bytes, string_bytes;
    uint32_t *offsets; /* of each type, by id */
    uint32_t count;
};

static inline uint8_t *btf_read(const char *path, size_t *size) {
    SUB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) || status.st_size < 64 || status.st_size > BTF_MAX)
        return NULL;
    uint8_t *data = malloc((size_t)status.st_size);
    size_t done = 0;
    while (data && done < (size_t)status.st_size) {
        ssize_t got = read(fd, data + done, (size_t)status.st_size - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        done += (size_t)got;
    }
    *size = done;
    return data;
}

/* Bytes that follow a struct btf_type; -1 for a kind that is not known. */
static inline int64_t btf_tail_bytes(const struct btf_type *type) {
    uint32_t count = BTF_INFO_VLEN(type->info);
    switch (BTF_INFO_KIND(type->info)) {
    case BTF_KIND_INT:
    case BTF_KIND_VAR:
    case BTF_KIND_DECL_TAG:
        return 4;
    case BTF_KIND_ARRAY:
        return sizeof(struct btf_array);
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
        return (int64_t)count * (int64_t)sizeof(struct btf_member);
    case BTF_KIND_ENUM:
        return (int64_t)count * (int64_t)sizeof(struct btf_enum);
    case BTF_KIND_FUNC_PROTO:
        return (int64_t)count * (int64_t)sizeof(struct btf_param);
    case BTF_KIND_DATASEC:
        return (int64_t)count * (int64_t)sizeof(struct btf_var_secinfo);
    case BTF_KIND_ENUM64:
        return (int64_t)count * (int64_t)sizeof(struct btf_enum64);
    case BTF_KIND_PTR:
    case BTF_KIND_FWD:
    case BTF_KIND_TYPEDEF:
    case BTF_KIND_VOLATILE:
    case BTF_KIND_CONST:
    case BTF_KIND_RESTRICT:
    case BTF_KIND_FUNC:
    case BTF_KIND_FLOAT:
    case BTF_KIND_TYPE_TAG:
        return 0;
    default:
        return -1;
    }
}

static inline bool btf_index(struct btf *btf) {
    uint32_t room = btf->type_bytes / sizeof(struct btf_type) + 2;
    btf->offsets = malloc(room * sizeof *btf->offsets);
    if (!btf->offsets)
        return false;
    btf->offsets[btf->count++] = UINT32_MAX; /* id 0 is void */
    for (uint32_t at = 0; at + sizeof(struct btf_type) <= btf->type_bytes;) {
        const struct btf_type *type = (const void *)(btf->types + at);
        int64_t tail = btf_tail_bytes(type);
        uint64_t next = at + sizeof *type + (uint64_t)tail;
        if (tail < 0 || next > btf->type_bytes)
            return false;
        btf->offsets[btf->count++] = at;
        at = (uint32_t)next;
    }
    return true;
}

static inline bool btf_load(struct btf *btf) {
    size_t size;
    btf->data = btf_read(BTF_PATH, &size);
    const struct btf_header *header = (const void *)btf->data;
    if (!btf->data || size < sizeof *header || header->magic != BTF_MAGIC ||
        (uint64_t)header->hdr_len + header->type_off + header->type_len > size ||
        (uint64_t)header->hdr_len + header->str_off + header->str_len > size ||
        header->type_off % 4 || header->hdr_len % 4 || !header->str_len)
        return false;
    btf->types = btf->data + header->hdr_len + header->type_off;
    btf->type_bytes = header->type_len;
    btf->strings = (const char *)btf->data + header->hdr_len + header->str_off;
    btf->string_bytes = header->str_len;
    return btf->strings[btf->string_bytes - 1] == 0 && btf_index(btf);
}

static inline const struct btf_type *btf_type_at(const struct btf *btf, uint32_t id) {
    return id && id < btf->count ? (const void *)(btf->types + btf->offsets[id]) : NULL;
}

static inline const char *btf_name_at(const struct btf *btf, uint32_t offset) {
    return offset < btf->string_bytes ? btf->strings + offset : "";
}

static inline const struct btf_type *btf_find_struct(const struct btf *btf, const char *name) {
    for (uint32_t id = 1; id < btf->count; id++) {
        const struct btf_type *type = btf_type_at(btf, id);
        if (BTF_INFO_KIND(type->info) == BTF_KIND_STRUCT &&
            strcmp(btf_name_at(btf, type->name_off), name) == 0)
            return type;
    }
    return NULL;
}

static inline bool btf_find_member(const struct btf *btf, const struct btf_type *type,
                                   const char *name, int nesting, uint32_t *bytes) {
    const struct btf_member *members = (const void *)(type + 1);
    for (uint32_t i = 0; i < BTF_INFO_VLEN(type->info); i++) {
        uint32_t bits = BTF_INFO_KFLAG(type->info) ? BTF_MEMBER_BIT_OFFSET(members[i].offset)
                                                   : members[i].offset;
        const char *own = btf_name_at(btf, members[i].name_off);
        if (strcmp(own, name) == 0) {
            *bytes = bits / 8;
            return bits % 8 == 0;
        }
        const struct btf_type *inner = own[0] ? NULL : btf_type_at(btf, members[i].type);
        uint32_t kind = inner ? BTF_INFO_KIND(inner->info) : 0;
        if ((kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION) && nesting < BTF_NESTING_MAX &&
            btf_find_member(btf, inner, name, nesting + 1, bytes)) {
            *bytes += bits / 8;
            return true;
        }
    }
    return false;
}

static inline void btf_free(struct btf *btf) {
    free(btf->offsets);
    free(btf->data);
}

#endif
