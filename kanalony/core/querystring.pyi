from typing_extensions import Buffer

def tokenize(query: Buffer) -> list[tuple[int, int, int, int]]:
    """Offsets (name start, name end, value start, value end) of every pair in a query string, nothing decoded.

    Pairs end at `&`, a name at the first `=`; empty pairs are passed over; a name without `=` has an empty value at its
    end.
    """

def parse(query: Buffer) -> list[tuple[bytes, bytes]]:
    """(name, value) of every pair, in order, percent-decoded: `+` is a space, an escape that is none stays as it is."""

def event_type(query: Buffer) -> int:
    """The event type as frame statistics count it: 0 to 254, or 255 for none or anything else."""
