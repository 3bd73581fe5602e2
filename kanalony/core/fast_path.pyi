from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from typing_extensions import disjoint_base

_Response = tuple[str, list[tuple[str, str]], bytes]

class _Intake(Protocol):
    append: Callable[..., int]
    @property
    def address(self) -> Callable[[dict[str, Any]], bytes | None]: ...

class _Resource(Protocol):
    @property
    def is_pixel(self) -> bool: ...
    @property
    def responses(self) -> ResponseCache: ...
    def refuse(self, environ: dict[str, Any], error: Exception | None) -> _Response: ...

@disjoint_base
class ResponseCache:
    """Responses of one second, by the origin they name. Threads may share an instance.

    The cache forgets the responses of a second with the first request of another.

    Args:
        compose: Makes the response of a second since 1970 that names an origin, or None.
        size: Most responses that are kept: the origin is the client's choice.
    """

    def __init__(self, compose: Callable[[int, str | None], _Response], size: int = 256) -> None: ...
    def get(self, second: int, origin: str | None) -> _Response:
        """Returns the response of a second since 1970. Its list of headers is shared: copy it before a change."""

@disjoint_base
class FastPath:
    """A WSGI application that stores and answers plain GETs of tracking paths. Threads may share an instance.

    Args:
        resources: The resource of each tracking path.
        intake: Stores requests.
        general: Handles every other request.
        deciding_headers: Names in the WSGI environment without which the response names no origin.
    """

    def __init__(
        self,
        resources: Mapping[str, _Resource],
        intake: _Intake,
        general: Callable[..., Iterable[bytes]],
        deciding_headers: Iterable[str],
    ) -> None: ...
    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]: ...
