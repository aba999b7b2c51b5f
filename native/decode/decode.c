/*
 * The order of things.
 */
#include <stdlib.h>

#include "decode.h"

void decode_all(const struct options *options) {
    struct segments segments = {0};
    struct ledger ledger = {0};
    struct images images = {0};
    read_segments(&segments, options->directory);
    ledger_read(&ledger, options);
    build_images(&images, &segments, &ledger, options);
    struct summary *summary = summary_new(options);
    write_events(&images, &segments, options, summary);
    summary_write(summary, options, &images, &segments, &ledger);
    summary_free(summary);
    images_free(&images);
    ledger_free(&ledger);
    free(segments.list);
    free(segments.unborn);
    free(segments.spare);
}
