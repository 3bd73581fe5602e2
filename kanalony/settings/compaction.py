"""Settings of compaction."""

import math
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ByteSize, Field

from kanalony.settings.shared import DataSettings, Time


def _check_age(age: float) -> float:
    if not age >= 0:
        raise ValueError("must be a length of time like 7d, or forever")
    return age


_Age = Annotated[Time, AfterValidator(_check_age)]


class CompactSettings(DataSettings):
    """Settings of `kanalony compact`."""

    commands: ClassVar[tuple[str, ...]] = ("compact",)

    memory: ByteSize = Field(ByteSize(1 << 30), ge=512 << 20, le=1 << 40)
    """Bytes of memory that compaction may use. More makes larger files in the lake."""

    keep_segments: _Age = 7 * 86400.0
    """Age at which segments that are in the lake are deleted: 12h, 7d or forever, for example."""

    keep_ten_seconds: _Age = 7 * 86400.0
    """Age at which rollups by ten seconds are deleted. Reports take longer without them."""

    keep_minutes: _Age = 180 * 86400.0
    """Age at which rollups by minute are deleted. Reports take longer without them."""

    keep_hours: _Age = math.inf
    """Age at which rollups by hour are deleted. Reports take longer without them."""

    geoip: Path | None = None
    """MaxMind database (.mmdb) with the country, region and city of addresses."""

    ks_secrets: Path | None = None
    """File with a line PARTNER_ID SECRET for each partner, to read the user of a ks."""
