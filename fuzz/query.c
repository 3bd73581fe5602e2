/* querystring.h: pairs lie within the string, in order, and decoding never makes a string longer. */
#include "querystring.h"

#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *query = exact_copy(data, size), *decoded = malloc(size + 1);
    const uint8_t *end = query + size, *last = query;
    cursor c = {query, end};
    query_pair pair;
    CHECK(decoded);
    while (query_next(&c, &pair)) {
        CHECK(last <= pair.name && pair.name <= pair.name_end && pair.name_end <= pair.value);
        CHECK(pair.value <= pair.value_end && pair.value_end <= end && c.p == pair.value_end);
        for (const uint8_t *p = pair.name; p < pair.name_end; p++) CHECK(*p != '=' && *p != '&');
        for (const uint8_t *p = pair.value; p < pair.value_end; p++) CHECK(*p != '&');
        for (const uint8_t *p = last; p < pair.name; p++) CHECK(*p == '&');
        CHECK(pair.value == pair.name_end || pair.value == pair.name_end + 1);
        CHECK(sent_name_prefix(pair.name, (size_t)(pair.name_end - pair.name)) <= (size_t)(pair.name_end - pair.name));
        last = pair.value_end;
    }
    for (const uint8_t *p = last; p < end; p++) CHECK(*p == '&');
    CHECK(!query_next(&c, &pair)); /* the end stays the end */
    size_t n = query_decode(query, end, decoded);
    CHECK(n <= size);
    if (!query_is_escaped(query, end)) CHECK(n == size && !memcmp(query, decoded, n));
    int type = query_event_type(query, size);
    CHECK((type >= 0 && type <= EVENT_TYPE_MAX) || type == EVENT_TYPE_OTHER);
    free(query);
    free(decoded);
    return 0;
}
