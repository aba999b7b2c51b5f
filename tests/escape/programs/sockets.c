/* Sockets that reach past the network rules, or the host's own. */
#include "attempt.h"

#include <arpa/inet.h>
#include <linux/if_alg.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

ATTEMPT(open_raw) {
    return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
}

ATTEMPT(open_raw_v6) {
    return socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
}

ATTEMPT(open_packet) {
    return socket(AF_PACKET, SOCK_RAW, htons(0x0003));
}

ATTEMPT(open_vsock) {
    return socket(AF_VSOCK, SOCK_STREAM, 0);
}

ATTEMPT(open_alg) {
    return socket(AF_ALG, SOCK_SEQPACKET, 0);
}

/* Families that are younger than the filter. */
ATTEMPT(open_unknown_family) {
    return socket(46, SOCK_STREAM, 0);
}

ATTEMPT(connect_to_abstract) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(words[0]);
    memcpy(address.sun_path + 1, words[0], length);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (struct sockaddr *)&address,
                   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length));
}

ATTEMPT(connect_to_path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", words[0]);
    return connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, sizeof address);
}

ATTEMPT(connect_to_address) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(words[1]))};
    inet_pton(AF_INET, words[0], &address.sin_addr);
    return connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&address, sizeof address);
}

/* The kernel's own answer to a route that we ask it to add. */
ATTEMPT(add_route) {
    struct {
        struct nlmsghdr head;
        struct rtmsg route;
        struct rtattr kind;
        uint32_t address;
        struct rtattr out_kind;
        uint32_t out;
    } request = {
        .head = {.nlmsg_len = sizeof request,
                 .nlmsg_type = RTM_NEWROUTE,
                 .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE},
        .route = {.rtm_family = AF_INET,
                  .rtm_dst_len = 32,
                  .rtm_table = RT_TABLE_MAIN,
                  .rtm_protocol = RTPROT_STATIC,
                  .rtm_scope = RT_SCOPE_LINK,
                  .rtm_type = RTN_UNICAST},
        .kind = {.rta_len = 8, .rta_type = RTA_DST},
        .address = htonl(0x01020304),
        .out_kind = {.rta_len = 8, .rta_type = RTA_OIF},
        .out = 1, /* lo */
    };
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[512];
    } answer;
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &request, sizeof request, 0) < 0 ||
        recv(fd, &answer, sizeof answer, 0) < 0)
        return REFUSED;
    errno = -answer.error.error;
    return errno ? REFUSED : 0;
}

ATTEMPT(take_interface_down) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = 0};
    return ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &request);
}

/* A way to anywhere. */
ATTEMPT(find_interface) {
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *one = all; one && one->if_index; one++)
        if (strcmp(one->if_name, "lo") != 0)
            return show(one->if_name);
    errno = ENODEV;
    return REFUSED;
}
