/*
 * Addresses of sockets, as JSON.
 */
#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "writing.h"

struct slice socket_path(struct slice address) {
    uint16_t family = 0;
    struct slice path = {NULL, 0};
    if (address.length > sizeof(family))
        memcpy(&family, address.bytes, sizeof(family));
    if (family == AF_UNIX) {
        path.bytes = address.bytes + sizeof(family);
        path.length = (uint32_t)strnlen(path.bytes, address.length - sizeof(family));
    }
    return path;
}

bool format_address(struct buffer *out, struct slice address, uint16_t *family, uint16_t *port) {
    char text[INET6_ADDRSTRLEN];
    *family = 0;
    *port = 0;
    if (address.length < sizeof(*family))
        return false;
    memcpy(family, address.bytes, sizeof(*family));
    if (*family == AF_INET && address.length >= sizeof(struct sockaddr_in)) {
        struct sockaddr_in in;
        memcpy(&in, address.bytes, sizeof(in));
        inet_ntop(AF_INET, &in.sin_addr, text, sizeof(text));
        *port = ntohs(in.sin_port);
    } else if (*family == AF_INET6 &&
               address.length >= offsetof(struct sockaddr_in6, sin6_scope_id)) {
        struct sockaddr_in6 in = {0};
        memcpy(&in, address.bytes, address.length < sizeof(in) ? address.length : sizeof(in));
        inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof(text));
        *port = ntohs(in.sin6_port);
    } else {
        return false;
    }
    json_name(out, text);
    return true;
}

void write_address(struct buffer *out, struct slice address) {
    uint16_t family, port;
    size_t start = out->used;
    json_literal(out, ",\"address\":");
    if (format_address(out, address, &family, &port)) {
        json_literal(out, ",\"port\":");
        json_unsigned(out, port);
        if (family == AF_INET)
            json_literal(out, ",\"family\":\"AF_INET\"");
        else
            json_literal(out, ",\"family\":\"AF_INET6\"");
        return;
    }
    out->used = start;
    if (family == AF_UNIX) {
        struct slice name = {address.bytes + sizeof(family),
                             address.length - (uint32_t)sizeof(family)};
        struct slice path = socket_path(address);
        json_literal(out, ",\"family\":\"AF_UNIX\",\"address\":");
        if (path.length == 0 && name.length > 0 && name.bytes[0] == '\0')
            path = name; /* abstract: the zero shows */
        json_bytes(out, path.bytes, path.length);
        return;
    }
    json_literal(out, ",\"family\":\"");
    json_unsigned(out, family);
    json_literal(out, "\"");
}
