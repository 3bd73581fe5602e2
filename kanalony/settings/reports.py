"""Settings of reports and the dashboard."""

import re
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from kanalony.core.querystring import bare_name
from kanalony.settings.shared import DataSettings, Several


def _metric_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", text):
        raise ValueError("must be a name: a letter, then letters, digits and _")
    return text


def _not_secret(parameter: str) -> str:
    if bare_name(parameter).lower() == "ks":
        raise ValueError("must be another parameter: a ks is a credential, and reports are no place for it")
    return parameter


def _api_key(text: str) -> str:
    if not re.fullmatch(r"(0|[1-9][0-9]{0,17}|\*)=[!-+\--~]{8,}", text):
        raise ValueError("must be like 585231=KEY or *=KEY, with 8 characters or more, no spaces and no commas")
    return text


def _one_partner_for_each(keys: tuple[str, ...]) -> tuple[str, ...]:
    partners: dict[str, str] = {}
    for partner, _, key in (text.partition("=") for text in keys):
        if partners.setdefault(key, partner) != partner:
            raise ValueError(
                f"must have a key of its own for each partner: {partners[key]} and {partner} have the same"
            )
    return keys


_Name = Annotated[str, AfterValidator(_metric_name)]


class ReportSettings(DataSettings):
    """Settings of `kanalony report`."""

    commands: ClassVar[tuple[str, ...]] = ("report",)

    custom_events: dict[_Name, Annotated[int, Field(ge=0, lt=10**18)]] = Field({})
    """Further event types by the name of their metric: `quizAnswered = 201` below `[custom_events]`."""

    custom_dimensions: dict[_Name, Annotated[str, Field(min_length=1), AfterValidator(_not_secret)]] = Field({})
    """Further parameters of events by the name of their dimension: `campaign = "utm_campaign"` below
    `[custom_dimensions]`."""


class DashboardSettings(ReportSettings):
    """Settings of `kanalony dashboard`."""

    commands: ClassVar[tuple[str, ...]] = ("dashboard",)

    api_key: Annotated[Several[Annotated[str, AfterValidator(_api_key)]], AfterValidator(_one_partner_for_each)] = ()
    """PARTNER_ID=KEY: a key that shows the rows of a partner; *=KEY shows all rows. Without one, all who reach the
    dashboard see everything. Other users of the machine can read a key on the command line."""
