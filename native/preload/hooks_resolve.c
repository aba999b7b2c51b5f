/*
 * Name look-ups: what was asked, and the answers where they are at hand.
 */
#define _GNU_SOURCE 1

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "hook.h"

#define ANSWERS_MAX 16

struct answers {
    uint32_t count;
    uint32_t bytes; /* as fields */
    struct {
        const void *address;
        uint32_t length;
    } list[ANSWERS_MAX];
};

static void add_answer(struct answers *answers, const void *address, size_t length) {
    if (answers->count == ANSWERS_MAX || length > sizeof(struct sockaddr_storage))
        return;
    answers->list[answers->count].address = address;
    answers->list[answers->count++].length = (uint32_t)length;
    answers->bytes += sub_field_size(length);
}

static void record_look_up(enum sub_operation op, uint64_t start, struct sub_text name,
                           struct sub_text service, int result, int error,
                           const struct answers *answers) {
    uint32_t fields = sub_text_size(name) + sub_text_size(service) + answers->bytes;
    struct sub_record *record = sub_begin(SUB_RESOLVE, (uint16_t)op, start, fields);
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    unsigned char *at = sub_put_text((unsigned char *)(record + 1), SUB_TAG_NAME, name);
    at = sub_put_text(at, SUB_TAG_SERVICE, service);
    for (uint32_t i = 0; i < answers->count; i++)
        at = sub_put(at, SUB_TAG_ADDRESS, answers->list[i].address, answers->list[i].length);
    sub_commit(record);
}

static const struct sub_text nothing = {NULL, 0, 0};

/* --- getaddrinfo and its inverse -------------------------------------------------------------- */

HOOK(int, getaddrinfo,
     (const char *node, const char *service, const struct addrinfo *hints,
      struct addrinfo **found)) {
    typedef int resolve_function(const char *, const char *, const struct addrinfo *,
                                 struct addrinfo **);
    uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);
    resolve_function *next = NEXT(getaddrinfo, resolve_function *);
    if (next == NULL) {
        errno = ENOSYS;
        return EAI_SYSTEM;
    }
    int result = next(node, service, hints, found);
    if (start == 0)
        return result;
    struct answers answers = {0};
    for (const struct addrinfo *answer = result == 0 ? *found : NULL; answer != NULL;
         answer = answer->ai_next)
        add_answer(&answers, answer->ai_addr, answer->ai_addrlen);
    record_look_up(SUB_OP_getaddrinfo, start, sub_text(node, 0), sub_text(service, 0), result,
                   result == EAI_SYSTEM ? errno : 0, &answers);
    return result;
}

HOOK(int, getnameinfo,
     (const struct sockaddr *address, socklen_t length, char *host, socklen_t host_size,
      char *service, socklen_t service_size, int flags)) {
    typedef int name_function(const struct sockaddr *, socklen_t, char *, socklen_t, char *,
                              socklen_t, int);
    uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);
    name_function *next = NEXT(getnameinfo, name_function *);
    if (next == NULL) {
        errno = ENOSYS;
        return EAI_SYSTEM;
    }
    int result = next(address, length, host, host_size, service, service_size, flags);
    if (start == 0)
        return result;
    struct answers answers = {0};
    if (result == 0)
        add_answer(&answers, address, length);
    bool named = result == 0 && host != NULL && host_size > 0;
    bool served = result == 0 && service != NULL && service_size > 0;
    record_look_up(SUB_OP_getnameinfo, start, named ? sub_text(host, 0) : nothing,
                   served ? sub_text(service, 0) : nothing, result,
                   result == EAI_SYSTEM ? errno : 0, &answers);
    return result;
}

#ifdef __GLIBC__
/* The answers come later, in a thread of libc's own. */
HOOK(int, getaddrinfo_a, (int mode, struct gaicb **list, int count, struct sigevent *event)) {
    typedef int resolve_function(int, struct gaicb **, int, struct sigevent *);
    uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);
    resolve_function *next = NEXT(getaddrinfo_a, resolve_function *);
    if (next == NULL)
        return EAI_SYSTEM;
    int result = next(mode, list, count, event);
    static const struct answers none;
    for (int i = 0; start != 0 && i < count; i++) {
        if (list[i] != NULL)
            record_look_up(SUB_OP_getaddrinfo_a, start, sub_text(list[i]->ar_name, 0),
                           sub_text(list[i]->ar_service, 0), result, 0, &none);
    }
    return result;
}
#endif

/* --- the gethostby family --------------------------------------------------------------------- */

static void record_host(enum sub_operation op, uint64_t start, const char *name,
                        const struct hostent *host) {
    union {
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } addresses[ANSWERS_MAX];
    struct answers answers = {0};
    for (char **entry = host != NULL ? host->h_addr_list : NULL;
         entry != NULL && *entry != NULL && answers.count < ANSWERS_MAX; entry++) {
        uint32_t i = answers.count;
        memset(&addresses[i], 0, sizeof(addresses[i]));
        if (host->h_addrtype == AF_INET && host->h_length == 4) {
            addresses[i].in.sin_family = AF_INET;
            memcpy(&addresses[i].in.sin_addr, *entry, 4);
            add_answer(&answers, &addresses[i].in, sizeof(addresses[i].in));
        } else if (host->h_addrtype == AF_INET6 && host->h_length == 16) {
            addresses[i].in6.sin6_family = AF_INET6;
            memcpy(&addresses[i].in6.sin6_addr, *entry, 16);
            add_answer(&answers, &addresses[i].in6, sizeof(addresses[i].in6));
        } else {
            break;
        }
    }
    record_look_up(op, start, sub_text(name, 0), nothing, host != NULL ? 0 : -1, 0, &answers);
}

/* `name`: of what was found where an address was asked for. */
#define HOST_HOOK(symbol, parameters, types, arguments, name)                                      \
    HOOK(struct hostent *, symbol, parameters) {                                                   \
        typedef struct hostent *host_function types;                                               \
        uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);                                       \
        host_function *next = NEXT(symbol, host_function *);                                       \
        if (next == NULL)                                                                          \
            return NULL;                                                                           \
        struct hostent *host = next arguments;                                                     \
        if (start != 0)                                                                            \
            record_host(SUB_OP_##symbol, start, name, host);                                       \
        return host;                                                                               \
    }

HOST_HOOK(gethostbyname, (const char *name), (const char *), (name), name)
HOST_HOOK(gethostbyname2, (const char *name, int family), (const char *, int), (name, family), name)
HOST_HOOK(gethostbyaddr, (const void *address, socklen_t length, int family),
          (const void *, socklen_t, int), (address, length, family),
          host != NULL ? host->h_name : NULL)

/* These return an error number, and a result that is NULL where nothing was found. */
#define HOST_R_HOOK(symbol, parameters, types, arguments, name)                                    \
    HOOK(int, symbol, parameters) {                                                                \
        typedef int host_function types;                                                           \
        uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);                                       \
        host_function *next = NEXT(symbol, host_function *);                                       \
        if (next == NULL)                                                                          \
            return ENOSYS;                                                                         \
        int error = next arguments;                                                                \
        const struct hostent *host = error == 0 ? *found : NULL;                                   \
        if (start != 0 && error != ERANGE) /* asked again with more room */                        \
            record_host(SUB_OP_##symbol, start, name, host);                                       \
        return error;                                                                              \
    }

HOST_R_HOOK(gethostbyname_r,
            (const char *name, struct hostent *to, char *buffer, size_t size,
             struct hostent **found, int *h_error),
            (const char *, struct hostent *, char *, size_t, struct hostent **, int *),
            (name, to, buffer, size, found, h_error), name)
HOST_R_HOOK(gethostbyname2_r,
            (const char *name, int family, struct hostent *to, char *buffer, size_t size,
             struct hostent **found, int *h_error),
            (const char *, int, struct hostent *, char *, size_t, struct hostent **, int *),
            (name, family, to, buffer, size, found, h_error), name)
HOST_R_HOOK(gethostbyaddr_r,
            (const void *address, socklen_t length, int family, struct hostent *to, char *buffer,
             size_t size, struct hostent **found, int *h_error),
            (const void *, socklen_t, int, struct hostent *, char *, size_t, struct hostent **,
             int *),
            (address, length, family, to, buffer, size, found, h_error),
            host != NULL ? host->h_name : NULL)

/* --- the resolver itself ---------------------------------------------------------------------- */

static void record_query(enum sub_operation op, uint64_t start, const char *name, int result) {
    static const struct answers none;
    if (start != 0)
        record_look_up(op, start, sub_text(name, 0), nothing, result, sub_error(result < 0), &none);
}

#define QUERY_HOOK(symbol)                                                                         \
    HOOK(int, symbol, (const char *name, int class, int type, unsigned char *answer, int size)) {  \
        typedef int query_function(const char *, int, int, unsigned char *, int);                  \
        uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);                                       \
        query_function *next = NEXT(symbol, query_function *);                                     \
        if (next == NULL)                                                                          \
            return -1;                                                                             \
        int result = next(name, class, type, answer, size);                                        \
        record_query(SUB_OP_##symbol, start, name, result);                                        \
        return result;                                                                             \
    }

#define NQUERY_HOOK(symbol)                                                                        \
    HOOK(int, symbol,                                                                              \
         (void *state, const char *name, int class, int type, unsigned char *answer, int size)) {  \
        typedef int query_function(void *, const char *, int, int, unsigned char *, int);          \
        uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);                                       \
        query_function *next = NEXT(symbol, query_function *);                                     \
        if (next == NULL)                                                                          \
            return -1;                                                                             \
        int result = next(state, name, class, type, answer, size);                                 \
        record_query(SUB_OP_##symbol, start, name, result);                                        \
        return result;                                                                             \
    }

QUERY_HOOK(res_query)
QUERY_HOOK(__res_query)
QUERY_HOOK(res_search)
QUERY_HOOK(__res_search)
NQUERY_HOOK(res_nquery)
NQUERY_HOOK(__res_nquery)
NQUERY_HOOK(res_nsearch)
NQUERY_HOOK(__res_nsearch)

/* The name in the first question of a message, with dots; names are at most 255 bytes (RFC 1035). */
static const char *question(const unsigned char *message, int length, char name[256]) {
    int used = 0;
    for (int at = 12; at < length && message[at] != 0;) {
        int label = message[at++];
        if (label > 63 || at + label > length || used + label + 1 > 255)
            return NULL;
        memcpy(name + used, message + at, (size_t)label);
        used += label;
        name[used++] = '.';
        at += label;
    }
    if (used == 0)
        return NULL;
    name[used - 1] = '\0';
    return name;
}

#define SEND_HOOK(symbol)                                                                          \
    HOOK(int, symbol,                                                                              \
         (const unsigned char *message, int length, unsigned char *answer, int size)) {            \
        typedef int send_function(const unsigned char *, int, unsigned char *, int);               \
        char name[256];                                                                            \
        uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);                                       \
        send_function *next = NEXT(symbol, send_function *);                                       \
        if (next == NULL)                                                                          \
            return -1;                                                                             \
        int result = next(message, length, answer, size);                                          \
        if (start != 0)                                                                            \
            record_query(SUB_OP_##symbol, start, question(message, length, name), result);         \
        return result;                                                                             \
    }

#define NSEND_HOOK(symbol)                                                                         \
    HOOK(int, symbol,                                                                              \
         (void *state, const unsigned char *message, int length, unsigned char *answer,            \
          int size)) {                                                                             \
        typedef int send_function(void *, const unsigned char *, int, unsigned char *, int);       \
        char name[256];                                                                            \
        uint64_t start = sub_enter_class(SUB_CLASS_NETWORK);                                       \
        send_function *next = NEXT(symbol, send_function *);                                       \
        if (next == NULL)                                                                          \
            return -1;                                                                             \
        int result = next(state, message, length, answer, size);                                   \
        if (start != 0)                                                                            \
            record_query(SUB_OP_##symbol, start, question(message, length, name), result);         \
        return result;                                                                             \
    }

SEND_HOOK(res_send)
SEND_HOOK(__res_send)
NSEND_HOOK(res_nsend)
NSEND_HOOK(__res_nsend)
