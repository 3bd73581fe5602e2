"""Copies of damaged bytes, kept when the file they were found in goes."""

from kanalony import durable
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory


def quarantine(place: DataDirectory, damage: Damage, content: bytes) -> None:
    """Copies the bytes of a damaged range to quarantine. Calling it again writes the same copy again.

    Args:
        place: The data directory or spool directory that gets the copy.
        damage: The range, which gives the copy its name.
        content: The bytes found there, fewer than the range has when the file is too short. None are not copied.

    Raises:
        OSError: The disk refuses.
    """
    if content:
        copy = place.quarantine / f"{damage.path.name[:200]}.{damage.start}-{damage.start + len(content)}"
        with durable.opened(copy, "wb") as file:  # the copy is durable before the original goes
            file.write(content)
