from collections.abc import Iterable

class Redactor:
    """Replaces the values of secret parameters.

    A name is secret when one of `names` is a word of it, once its percent-encoding is undone, as often as it was done,
    and capitals of ASCII are made small. Letters and digits of ASCII, `_` and `-` make words: `ks` is a word of
    `event:ks`, `1:ks`, `ks[0]` and `KS`, not of `ksx` or `my_ks`.
    """

    def __init__(self, names: Iterable[str], replacement: bytes) -> None:
        """`names` are decoded; none may be empty. `replacement` needs no escapes in JSON."""

    def query(self, text: bytes) -> bytes:
        """A query or form with the replacement for every value of a secret name, unless it is empty; all other bytes as
        they are. A value ends at `&`; a name begins behind `&` or `=`, and ends at any `=`, so that pairs which
        something else parts (`;`, or the `, ` of joined headers) have names too.
        """

    def json(self, text: bytes, start: int, end: int) -> bytes:
        """A part of a text that holds valid JSON objects, with the replacement, quoted, for the value of every member,
        at any depth, whose name is secret; `null` and "" stay, and all other bytes. Raises ValueError when the part is
        not within the text, or an object is not valid.
        """
