/* json.h: objects and members lie within the body, an accepted object is accepted again, and text never grows. */
#include "json.h"

#include "check.h"
#include "utf8.h"

static void members_are_within(const uint8_t *start, const uint8_t *end, int is_utf8) {
    uint8_t *room = malloc((size_t)(end - start));
    CHECK(room);
    cursor c = {start + 1, end};
    query_pair pair;
    while (json_next_member(&c, &pair)) {
        CHECK(start < pair.name && pair.name <= pair.name_end && pair.name_end < pair.value);
        CHECK(pair.value < pair.value_end && pair.value_end < end);
        size_t n = json_unescape(pair.name, pair.name_end, room);
        CHECK(n <= (size_t)(pair.name_end - pair.name) && (!is_utf8 || utf8_valid(room, n)));
        n = json_text(pair.value, pair.value_end, room);
        CHECK(n <= (size_t)(pair.value_end - pair.value) && (!is_utf8 || utf8_valid(room, n)));
    }
    cursor whole = {start, end};
    CHECK(json_skip(&whole) && whole.p == end);
    json_space(&c);
    CHECK(end - c.p == 1 && *c.p == '}'); /* every member was found */
    free(room);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *body = exact_copy(data, size);
    int is_utf8 = utf8_valid(body, size);
    json_objects objects = {.c = {body, body + size}};
    const uint8_t *start, *end, *last = body;
    while (json_next_object(&objects, &start, &end)) {
        CHECK(last <= start && start < end && end <= body + size);
        CHECK(*start == '{' && end[-1] == '}');
        members_are_within(start, end, is_utf8);
        last = end;
    }
    CHECK(objects.c.p == body + size);
    free(body);
    return 0;
}
