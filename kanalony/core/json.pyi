from typing_extensions import Buffer

def split(body: Buffer, limit: int) -> tuple[list[tuple[int, int]], bool]:
    """(start, end) of every object of a body that is one object, an array of objects, or several of either one behind
    another, as on the lines of NDJSON; at most `limit`. And whether that was all there was.

    After a mistake the rest is given up, but of NDJSON only the line: a body counts as NDJSON once something stood
    whole on a line of its own. Values nested deeper than 64 levels are a mistake.
    """

def members(body: Buffer, start: int, end: int) -> list[tuple[bytes, bytes]]:
    """(name, text of the value) of every member of an object that `split` found, in order: strings without quotes and
    escapes, nothing for null, everything else as it stands in the body. Raises ValueError when the object is not within
    the body.
    """
