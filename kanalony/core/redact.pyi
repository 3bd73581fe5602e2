from collections.abc import Iterable

from typing_extensions import disjoint_base

@disjoint_base
class Redactor:
    """Replaces the values of secret parameters.

    A parameter is secret when one of `names` is a word of its name, after all percent-encoding is undone (repeatedly)
    and ASCII letters are made lower-case. ASCII letters, digits, `_` and `-` make up words: `ks` is a word of
    `event:ks`, `1:ks`, `ks[0]` and `KS`, not of `ksx` or `my_ks`.
    """

    def __init__(self, names: Iterable[str], replacement: bytes) -> None:
        """Prepares the names.

        Args:
            names: decoded names; none may be empty.
            replacement: needs no escapes in JSON.
        """

    def query(self, text: bytes) -> bytes:
        """Returns a query or form with the replacement for every value of a secret name that is not empty.

        All other bytes stay as they are. A value ends at `&`; a name begins behind `&` or `=` and ends at any `=`, so
        names are also found in pairs with another separator (`;`, or the `, ` of joined headers).
        """

    def json(self, text: bytes, start: int, end: int) -> bytes:
        """Returns a part of a JSON text with the quoted replacement for the value of every secret member, at any depth.

        `null`, "" and all other bytes stay as they are.

        Args:
            text: the whole text.
            start: of a part that holds valid JSON objects.
            end: of the same part.

        Raises:
            ValueError: the part is not within the text, or an object is not valid.
        """
