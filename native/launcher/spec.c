/* The payload of SUB_L_CREATE, read into memory of our own. */
#include "launcher.h"

#include <stdlib.h>

static const struct {
    uint8_t least, most;
} STRINGS[] = {
    [SUB_OP_OVERLAY] = {4, OP_STRINGS_MAX},
    [SUB_OP_BIND] = {2, 2},
    [SUB_OP_TMPFS] = {1, 1},
    [SUB_OP_MASK_FILE] = {1, 1},
    [SUB_OP_MASK_DIR] = {1, 1},
    [SUB_OP_GRAB] = {2, 2},
    [SUB_OP_PLACE] = {2, 2},
    [SUB_OP_SYMLINK] = {2, 2},
};
#define OPS_MAX 4096u

void spec_free(struct spec *spec) {
    if (!spec)
        return;
    for (uint32_t i = 0; spec->ops && i < spec->op_count; i++) {
        struct op *op = &spec->ops[i];
        for (uint16_t s = 0; op->strings && s < op->string_count; s++)
            free(op->strings[s]);
        free(op->strings);
    }
    free(spec->ops);
    free(spec->world_id);
    free(spec->hostname);
    free(spec);
}

static bool read_op(struct sub_reader *reader, struct op *op) {
    struct sub_op wire;
    sub_get_into(reader, &wire, sizeof wire);
    if (reader->bad || wire.kind == 0 || wire.kind >= sizeof STRINGS / sizeof STRINGS[0] ||
        wire.string_count < STRINGS[wire.kind].least || wire.string_count > STRINGS[wire.kind].most)
        return false;
    op->kind = wire.kind;
    op->read_only = (wire.flags & SUB_OP_READ_ONLY) != 0;
    op->mode = wire.mode & 07777;
    op->value = wire.value;
    op->strings = calloc(wire.string_count, sizeof *op->strings);
    if (!op->strings)
        return false;
    op->string_count = wire.string_count;
    for (uint16_t i = 0; i < wire.string_count; i++)
        if (!(op->strings[i] = sub_get_string(reader)))
            return false;
    return true;
}

/* What came to CREATE later; what is not known here is not left undone, but refused. */
static bool read_section(struct sub_reader *reader, struct spec *spec, struct fail *fail) {
    struct sub_section head;
    sub_get_into(reader, &head, sizeof head);
    if (reader->bad || head.length > reader->left)
        return false;
    if (head.tag == SUB_SECTION_LIMITS && head.length == sizeof spec->limits) {
        sub_get_into(reader, &spec->limits, sizeof spec->limits);
        return true;
    }
    fail_set(fail, 0, "section %u of the create request (%u bytes) is not known to this launcher",
             head.tag, head.length);
    return false;
}

struct spec *spec_parse(const uint8_t *payload, size_t length, struct fail *fail) {
    struct sub_reader reader = {payload, length, false};
    struct sub_create head;
    sub_get_into(&reader, &head, sizeof head);
    struct spec *spec = calloc(1, sizeof *spec);
    if (!spec || reader.bad || head.op_count == 0 || head.op_count > OPS_MAX) {
        fail_set(fail, 0, "malformed create request (%zu bytes, %u operations)", length,
                 head.op_count);
        spec_free(spec);
        return NULL;
    }
    spec->range = head.id_mapping == SUB_MAP_RANGE;
    spec->segment_limit = head.segment_limit_bytes;
    spec->world_id = sub_get_string(&reader);
    spec->hostname = sub_get_string(&reader);
    spec->ops = calloc(head.op_count, sizeof *spec->ops);
    bool good =
        spec->ops && !reader.bad && sub_id_is_valid(spec->world_id) && strlen(spec->hostname) <= 64;
    for (; good && spec->op_count < head.op_count;) {
        good = read_op(&reader, &spec->ops[spec->op_count]);
        spec->op_count++; /* also the half-read one, for spec_free */
        if (!good)
            fail_set(fail, 0, "malformed mount operation %u in create request", spec->op_count - 1);
    }
    while (good && reader.left)
        good = read_section(&reader, spec, fail);
    if (!spec->limits.pids)
        spec->limits.pids = BOX_PROCESSES;
    if (good)
        return spec;
    fail_set(fail, 0, "malformed create request: bad world_id, hostname or trailing bytes");
    spec_free(spec);
    return NULL;
}
