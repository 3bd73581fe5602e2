"""Redaction: the values of secret parameters are replaced in queries, referrers and bodies."""

import gzip

from kanalony.bodies import is_plain_form, read_body
from kanalony.collector.counts import Counts
from kanalony.collector.intake import Append, all_fields
from kanalony.core.frames import FIELD_NAMES
from kanalony.core.redact import Redactor

REPLACEMENT = b"redacted"
_UNREADABLE = b"{redacted}"  # neither JSON nor a form: readers still count the body as one that cannot be read

_REFERER, _QUERY, _BODY, _CONTENT_TYPE, _CONTENT_ENCODING = map(
    FIELD_NAMES.index, ("referer", "query", "body", "content_type", "content_encoding")
)

_MIN_EVENT = 64  # bytes of max_body for each event that is redacted while a player waits
_COMPRESSION = 4  # bytes of max_body for each byte that is decompressed: blocks that hold nothing take the longest


def redacting(append: Append, redactor: Redactor, max_body: int, counts: Counts) -> Append:
    """Wraps `append` so that it stores no values of secret parameters.

    Args:
        append: Stores a request.
        redactor: Replaces the values.
        max_body: Most bytes of a body, stored or decompressed.
        counts: Counts the bodies that are not stored whole.
    """

    def store(*values: object) -> int:
        request = all_fields(values)
        query, referer, body = request[_QUERY], request[_REFERER], request[_BODY]
        request[_QUERY] = redactor.query(query.encode("latin-1")) if query else None
        request[_REFERER] = _redact_url(referer, redactor) if referer else None
        if body:
            request[_BODY], request[_CONTENT_ENCODING], is_whole = redact_body(
                body, request[_CONTENT_TYPE] or "", request[_CONTENT_ENCODING], redactor, max_body
            )
            if not is_whole:
                counts.add("bodies that could not be read for redaction, stored in part or not at all")
        return append(*request)

    return store


def _redact_url(url: str, redactor: Redactor) -> bytes:
    raw = url.encode("latin-1")
    start = min((place for mark in b"?#" if (place := raw.find(mark)) >= 0), default=len(raw))
    return raw[:start] + redactor.query(raw[start:])


def redact_body(
    body: bytes, content_type: str, content_encoding: str | None, redactor: Redactor, max_body: int
) -> tuple[bytes, str | None, bool]:
    """Replaces the secret values in a body.

    A body without secret values stays as it was sent. Of a body that cannot be read to its end, only the events that
    can be are kept: the rest may hold secrets. A compressed body may decompress to no more than `max_body`, so that
    redacting it costs no more than an uncompressed one.

    Args:
        body: The body as it was sent.
        content_type: The Content-Type header, or an empty string.
        content_encoding: The Content-Encoding header.
        redactor: Replaces the values.
        max_body: Most bytes of the returned body.

    Returns:
        The body, its content encoding, and whether nothing is missing but the secret values.
    """
    found = read_body(
        body,
        content_type.encode("latin-1"),
        (content_encoding or "").encode("latin-1"),
        max_events=1 + max_body // _MIN_EVENT,
        max_expanded=max_body,
        max_compressed=max_body // _COMPRESSION,
    )
    text = found.text
    if not text and found.problem:
        # The replacement still contradicts its content encoding, so readers find the same problem.
        return REPLACEMENT, content_encoding, False
    is_whole = found.problem is None
    if found.form:
        start, end = found.form
        pairs = text[start:end]
        # What is not form-encoded may contain anything.
        is_whole = is_plain_form(pairs)
        redacted = text[:start] + (redactor.query(pairs) if is_whole else REPLACEMENT) + text[end:]
    elif found.problem:
        redacted = b"\n".join([*(redactor.json(text, start, end) for start, end in found.objects), _UNREADABLE])
    else:
        redacted = redactor.json(text, 0, len(text))
    if redacted == text:
        return body, content_encoding, is_whole
    is_compressed = text is not body
    if is_compressed or len(redacted) > max_body:  # many short values may become longer than a journal block
        compressed = gzip.compress(redacted, 1, mtime=0)
        if len(compressed) <= max_body:
            return compressed, "gzip", is_whole
        if len(redacted) > max_body:
            return REPLACEMENT, "gzip", False  # not gzip, so readers count it as a body that cannot be read
        content_encoding = None
    return redacted, content_encoding, is_whole
