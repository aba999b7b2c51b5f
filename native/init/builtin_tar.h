/*
 * The header of POSIX.1-2001 (pax) tar streams, pax(1), "ustar Interchange Format". Names and sizes
 * that do not fit come in an extended header before it.
 */
#ifndef SUBSTRATE_BUILTIN_TAR_H
#define SUBSTRATE_BUILTIN_TAR_H

#define TAR_BLOCK 512u
#define TAR_EXTENDED_MAX (64u << 10) /* of an extended header: two paths and some numbers */
#define TAR_SIZE_MAX 077777777777ll  /* what eleven octal digits hold */

struct tar_header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
    char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], pad[12];
};
_Static_assert(sizeof(struct tar_header) == TAR_BLOCK, "tar");

#endif
