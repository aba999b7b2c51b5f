/* SUB_I_START, read into memory of our own. */
#include "init.h"

#define STRINGS_MAX 262144u
#define RLIMITS_MAX 16u

static char **read_strings(struct sub_reader *reader, uint32_t count) {
    if (count > STRINGS_MAX || count > reader->left / sizeof(uint32_t)) {
        reader->bad = true;
        return NULL;
    }
    char **strings = calloc((size_t)count + 1, sizeof *strings);
    for (uint32_t i = 0; strings && i < count; i++)
        if (!(strings[i] = sub_get_string(reader)))
            break;
    return strings;
}

static void free_strings(char **strings) {
    for (char **at = strings; at && *at; at++)
        free(*at);
    free(strings);
}

void start_release(struct start *start) {
    free(start->cwd);
    free(start->user);
    free_strings(start->argv);
    free_strings(start->env);
    free(start->rlimits);
    sub_close_fd(&start->output_fd);
}

/* The input stays in the packet: it is large, and goes into a file at once. */
bool shell_run_parse(struct shell_run *run, const uint8_t *payload, size_t length) {
    struct sub_reader reader = {payload, length, false};
    uint32_t input = 0;
    memset(run, 0, sizeof *run);
    sub_get_into(&reader, &run->head, sizeof run->head);
    run->head.word[SUB_ID_MAX - 1] = 0;
    char id[SUB_ID_MAX + 1] = "";
    memcpy(id, run->head.exec_id, SUB_ID_MAX);
    run->text = sub_get_string(&reader);
    run->trailer = sub_get_string(&reader);
    sub_get_into(&reader, &input, sizeof input);
    run->input = sub_get(&reader, input);
    run->input_length = input;
    return !reader.bad && !reader.left && sub_id_is_valid(id) && run->head.word[0];
}

void shell_run_release(struct shell_run *run) {
    free(run->text);
    free(run->trailer);
}

bool start_parse(struct start *start, const uint8_t *payload, size_t length) {
    struct sub_reader reader = {payload, length, false};
    memset(start, 0, sizeof *start);
    start->output_fd = -1;
    sub_get_into(&reader, &start->head, sizeof start->head);
    memcpy(start->exec_id, start->head.exec_id, SUB_ID_MAX);
    if (reader.bad || !sub_id_is_valid(start->exec_id) || start->head.argc == 0 ||
        start->head.rlimit_count > RLIMITS_MAX)
        return false;
    start->cwd = sub_get_string(&reader);
    start->user = sub_get_string(&reader);
    start->argv = read_strings(&reader, start->head.argc);
    start->env = read_strings(&reader, start->head.envc);
    start->rlimits = calloc(start->head.rlimit_count + 1, sizeof *start->rlimits);
    if (start->rlimits)
        sub_get_into(&reader, start->rlimits, start->head.rlimit_count * sizeof *start->rlimits);
    return !reader.bad && !reader.left && start->cwd && start->user && start->argv && start->env &&
           start->rlimits && start->argv[0][0];
}
