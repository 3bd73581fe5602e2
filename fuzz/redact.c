/* redact.h: replaced ranges lie within the text, in order, and a parameter of a secret name is always found. */
#include "redact.h"

#include "check.h"

static const uint8_t NAMES[] = {2, 0, 'k', 's', 6, 0, 'u', 's', 'e', 'r', 'i', 'd'};

static void are_in_order(const redact_spans *spans, size_t size) {
    size_t last = 0;
    for (size_t i = 0; i < spans->count; i++) {
        CHECK(last <= spans->items[i].start && spans->items[i].start < spans->items[i].end);
        last = spans->items[i].end;
    }
    CHECK(last <= size);
}

static int is_marked(const redact_spans *spans, size_t start, size_t end) {
    for (size_t i = 0; i < spans->count; i++)
        if (spans->items[i].start <= start && end <= spans->items[i].end) return 1;
    return 0;
}

static void pairs_are_redacted(const uint8_t *text, size_t size, cursor names, uint8_t *scratch) {
    redact_spans spans = {0};
    CHECK(redact_query(text, text, text + size, names, scratch, &spans));
    are_in_order(&spans, size);
    cursor c = {text, text + size};
    query_pair pair;
    while (query_next(&c, &pair)) {
        size_t n = query_decode(pair.name, pair.name_end, scratch);
        if (n == 2 && !memcmp(scratch, "ks", 2) && pair.value < pair.value_end)
            CHECK(is_marked(&spans, (size_t)(pair.value - text), (size_t)(pair.value_end - text)));
    }
    free(spans.items);
}

static void objects_are_redacted(const uint8_t *text, size_t size, cursor names, uint8_t *scratch) {
    json_objects objects = {.c = {text, text + size}};
    const uint8_t *start, *end;
    while (json_next_object(&objects, &start, &end)) {
        redact_spans spans = {0};
        CHECK(redact_json(text, start, end, names, scratch, &spans) == 1);
        are_in_order(&spans, size);
        cursor c = {start + 1, end};
        query_pair pair;
        while (json_next_member(&c, &pair)) {
            size_t n = json_unescape(pair.name, pair.name_end, scratch);
            if (n == 2 && !memcmp(scratch, "ks", 2) && *pair.value != 'n' && pair.value_end - pair.value > 2)
                CHECK(is_marked(&spans, (size_t)(pair.value - text), (size_t)(pair.value_end - text)));
        }
        free(spans.items);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *text = exact_copy(data, size), *scratch = malloc(size + 1);
    cursor names = {NAMES, NAMES + sizeof NAMES};
    CHECK(scratch);
    pairs_are_redacted(text, size, names, scratch);
    objects_are_redacted(text, size, names, scratch);
    free(text);
    free(scratch);
    return 0;
}
