from typing_extensions import Buffer

def split(body: Buffer, limit: int) -> tuple[list[tuple[int, int]], bool]:
    """Finds the objects of a body: one object, an array of objects, or several of either, as on the lines of NDJSON.

    After a mistake the rest is given up, but of NDJSON only the line: a body counts as NDJSON once an object or array
    ends its line. Values nested deeper than 64 levels are a mistake.

    Args:
        body: the text.
        limit: the most objects that are returned.

    Returns:
        The (start, end) of every object, and whether the body holds nothing else.
    """

def members(body: Buffer, start: int, end: int) -> list[tuple[bytes, bytes]]:
    """Returns (name, text of the value) of every member of an object, in order.

    Strings are without quotes and escapes, null is empty, and every other value is as it is in the body.

    Args:
        body: the text.
        start: of an object that `split` found.
        end: of the same object.

    Raises:
        ValueError: the object is not within the body.
    """
