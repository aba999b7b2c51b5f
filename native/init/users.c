/*
 * Names to ids, from the box's own /etc/passwd and /etc/group. musl's getpwnam would ask nscd over
 * a socket that the box controls, so the files are read here: regular files only, never waiting.
 */
#include "init.h"

#include <ctype.h>
#include <stdio.h>

static FILE *open_database(const char *path) {
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat status;
    if (fd < 0)
        return NULL;
    FILE *file = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) ? fdopen(fd, "r") : NULL;
    if (!file)
        close(fd);
    return file;
}

static bool parse_id(const char *text, uint32_t *id) {
    char *end;
    if (!text || !isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (*end || errno || value >= UINT32_MAX)
        return false;
    *id = (uint32_t)value;
    return true;
}

/* Splits "name:x:id:rest" in place. */
static bool split_entry(char *line, char **name, uint32_t *id, char **rest) {
    char *save;
    line[strcspn(line, "\n")] = 0;
    *name = strsep(&line, ":");
    strsep(&line, ":");
    save = strsep(&line, ":");
    *rest = line;
    return *rest && parse_id(save, id);
}

static int find_user(const char *wanted, uint32_t wanted_id, char *name, size_t room,
                     struct identity *identity) {
    FILE *file = open_database("/etc/passwd");
    char line[4096];
    while (file && fgets(line, sizeof line, file)) {
        char *entry, *rest;
        uint32_t uid, gid;
        if (!split_entry(line, &entry, &uid, &rest) || !parse_id(strsep(&rest, ":"), &gid) ||
            (wanted ? strcmp(entry, wanted) != 0 : uid != wanted_id))
            continue;
        identity->uid = uid;
        identity->gid = gid;
        snprintf(name, room, "%s", entry);
        fclose(file);
        return 0;
    }
    if (file)
        fclose(file);
    return ENOENT;
}

static bool is_member(char *members, const char *name) {
    for (char *member; members && (member = strsep(&members, ","));)
        if (strcmp(member, name) == 0)
            return true;
    return false;
}

static int find_group(const char *wanted, gid_t *gid) {
    FILE *file = open_database("/etc/group");
    char line[8192];
    int result = ENOENT;
    while (file && result && fgets(line, sizeof line, file)) {
        char *entry, *members;
        uint32_t id;
        if (split_entry(line, &entry, &id, &members) && strcmp(entry, wanted) == 0) {
            *gid = id;
            result = 0;
        }
    }
    if (file)
        fclose(file);
    return result;
}

static void add_groups_of(const char *name, struct identity *identity) {
    FILE *file = open_database("/etc/group");
    char line[8192];
    while (file && fgets(line, sizeof line, file) && identity->group_count < GROUPS_MAX) {
        char *entry, *members;
        uint32_t id;
        if (split_entry(line, &entry, &id, &members) && is_member(members, name))
            identity->groups[identity->group_count++] = id;
    }
    if (file)
        fclose(file);
}

/* `user` is "", "name", "uid", each with ":group" or ":gid" allowed behind; numbers win. */
int identity_find(const struct start *start, struct identity *identity) {
    char name[256] = "", text[512];
    *identity = (struct identity){.uid = getuid(), .gid = getgid()};
    if (!self.single_id)
        identity->uid = identity->gid = 0;
    if (strlen(start->user) >= sizeof text)
        return ENAMETOOLONG;
    strcpy(text, start->user);
    char *group = strchr(text, ':');
    if (group)
        *group++ = 0;
    uint32_t number = identity->uid;
    if (start->head.uid >= 0)
        number = (uint32_t)start->head.uid;
    if (start->head.uid < 0 && text[0] && !parse_id(text, &number)) {
        int error = find_user(text, 0, name, sizeof name, identity);
        if (error)
            return error;
    } else if (find_user(NULL, number, name, sizeof name, identity)) {
        identity->uid = number; /* not in the database: the group is root's, as with Docker */
    }
    if (name[0])
        add_groups_of(name, identity);
    if (start->head.gid >= 0) {
        identity->gid = (gid_t)start->head.gid;
    } else if (group && group[0] && !parse_id(group, &identity->gid)) {
        int error = find_group(group, &identity->gid);
        if (error)
            return error;
    }
    /* Our own is no exec's: with it a command could change what limits us. */
    return !self.single_id && identity->uid == getuid() ? EINVAL : 0;
}
