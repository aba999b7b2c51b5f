/*
 * The start and the end of a process, as lines.
 */
#include "writing.h"

void write_start(struct writer *writer, const struct image *image) {
    struct buffer *out = &writer->out;
    const struct image *program = program_of(writer->images, image);
    write_time(writer, out, image, image->began_ns);
    write_ids(writer, image, "world_process_start", image->kernel_start ? "ledger" : "preload");
    json_literal(out, ",\"ppid\":");
    json_signed(out, image->ppid);
    json_literal(out, ",\"cwd\":");
    json_bytes(out, image->cwd.bytes, image->cwd.length);
    json_literal(out, ",\"argv\":");
    write_argv(out, program->argv);
    json_literal(out, ",\"exe\":");
    json_bytes(out, program->exe.bytes, program->exe.length);
    json_literal(out, ",\"exec_no\":");
    json_unsigned(out, image->exec_no);
    if (image->uncovered)
        json_literal(out, ",\"coverage\":\"none\"");
    write_source(writer, image->kernel_start);
}

void write_end(struct writer *writer, const struct image *image) {
    struct buffer *out = &writer->out;
    write_time(writer, out, image, image->end_ns);
    write_ids(writer, image, "world_process_exit", image->kernel_exit ? "ledger" : "preload");
    json_literal(out, ",\"ppid\":");
    json_signed(out, image->ppid);
    json_literal(out, ",\"exit_code\":");
    if (image->signal == 0)
        json_signed(out, image->exit_code);
    else
        json_literal(out, "null");
    json_literal(out, ",\"signal\":");
    if (image->signal != 0)
        json_signed(out, image->signal);
    else
        json_literal(out, "null");
    json_literal(out, ",\"duration_ms\":");
    json_decimal(
        out,
        image->end_ns > image->start_ns ? (int64_t)((image->end_ns - image->start_ns) / 1000) : 0,
        3);
    write_source(writer, image->kernel_exit);
}
