from typing import AnyStr

from typing_extensions import Buffer

def tokenize(query: Buffer) -> list[tuple[int, int, int, int]]:
    """Returns the offsets (name start, name end, value start, value end) of every pair in a query string, undecoded.

    Pairs end at `&`, a name at the first `=`. Empty pairs are left out; a name without `=` has an empty value at its
    end.
    """

def parse(query: Buffer) -> list[tuple[bytes, bytes]]:
    """Returns (name, value) of every pair, in order, percent-decoded.

    `+` is a space; an invalid escape stays as it is.
    """

def event_type(query: Buffer) -> int:
    """Returns the event type that frame prefixes count a query as: 0 to 254, or kanalony.core.frames.OTHER_TYPE."""

def bare_name(name: AnyStr) -> AnyStr:
    """Returns a decoded parameter name without the prefix `event:`, which players may send or not."""
