"""The pages of docs/ that are generated: they are up to date, and the same on every machine."""

import socket
from pathlib import Path

import pytest

from docs.__main__ import PAGES
from kanalony.cli import main
from kanalony.settings.loading import MODELS

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text() == PAGES[page](), f"docs/{page} is out of date: run `make docs`"


def test_generated_pages_are_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr("kanalony.settings.serving.find_spec", lambda _: None)
    for page in PAGES:
        assert (DOCS / page).read_text() == PAGES[page]()


def test_every_command_with_settings_has_one_model() -> None:
    commands = [command for model in MODELS for command in model.commands]
    assert sorted(commands) == sorted(set(main.commands) - {"simulate"})
