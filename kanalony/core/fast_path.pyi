from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from typing_extensions import disjoint_base

class _Cors(Protocol):
    @property
    def decides_by(self) -> tuple[str, ...]: ...

class _Intake(Protocol):
    append: Callable[..., int]
    @property
    def cors(self) -> _Cors: ...
    @property
    def address(self) -> Callable[[dict[str, Any]], bytes | None]: ...

class _Resource(Protocol):
    @property
    def is_pixel(self) -> bool: ...
    def answer_at(self, second: int) -> tuple[str, list[tuple[str, str]], bytes]: ...
    def refuse(self, environ: dict[str, Any], error: Exception | None) -> tuple[str, list[tuple[str, str]], bytes]: ...

@disjoint_base
class FastPath:
    """A WSGI application that stores plain GETs of the paths of `resources` and answers what their resource would;
    every other request is `otherwise`'s. Threads may share it.
    """

    def __init__(
        self, resources: Mapping[str, _Resource], intake: _Intake, otherwise: Callable[..., Iterable[bytes]]
    ) -> None: ...
    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]: ...
