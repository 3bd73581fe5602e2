"""Times of journals and segments: microseconds since 1970, UTC."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(microseconds: int) -> datetime:
    """Returns a time (µs since 1970) as an aware datetime in UTC."""
    return EPOCH + timedelta(microseconds=microseconds)


def to_microseconds(moment: datetime) -> int:
    """Returns an aware datetime as µs since 1970."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def to_iso(microseconds: int) -> str:
    """Returns a time (µs since 1970) as ISO 8601 in UTC, always with six decimals."""
    return to_datetime(microseconds).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
