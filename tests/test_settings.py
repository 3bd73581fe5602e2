"""Settings: one file and one environment for all commands, and what each command takes from them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kanalony.collector import granian_server
from kanalony.errors import WrongUse
from kanalony.settings.compaction import CompactSettings
from kanalony.settings.loading import MODELS, OPTIONS, load_settings
from kanalony.settings.reports import DashboardSettings, ReportSettings
from kanalony.settings.serving import ServeSettings
from kanalony.settings.shared import DataSettings

EVERYTHING = """
data = "elsewhere"
port = 1
keep_segments = "1d"
ks_secrets = "/etc/kanalony/ks"
api_key = ["*=SECRET12"]
[custom_events]
quizAnswered = 201
"""


def test_every_command_takes_its_options_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kanalony.toml").write_text(EVERYTHING)
    monkeypatch.setenv("KANALONY_API_KEY", "*=SECRET34")
    monkeypatch.setenv("KANALONY_WORKERS", "3")
    assert {load_settings(model).data for model in MODELS} == {Path("elsewhere")}
    serving = load_settings(ServeSettings)
    assert (serving.port, serving.workers) == (1, 3)
    assert load_settings(CompactSettings).keep_segments == 86400
    assert load_settings(ReportSettings).custom_events == {"quizAnswered": 201}
    assert load_settings(DashboardSettings).api_key == ("*=SECRET34",)


@pytest.mark.parametrize("model", MODELS)
def test_a_misspelt_option_is_an_error_for_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: type[DataSettings]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kanalony.toml").write_text(f"keep_segment = 1\n{EVERYTHING}")
    with pytest.raises(WrongUse, match=r"kanalony\.toml: unknown option 'keep_segment'"):
        load_settings(model)
    Path("kanalony.toml").write_text(EVERYTHING)
    monkeypatch.setenv("KANALONY_KEEP_SEGMENT", "1")
    with pytest.raises(WrongUse, match="KANALONY_KEEP_SEGMENT is no option") as caught:
        load_settings(model)
    assert caught.value.hint == "did you mean KANALONY_KEEP_SEGMENTS?"


def test_all_problems_are_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kanalony.toml").write_text("prot = 1\nworkers = 0\n")
    with pytest.raises(WrongUse, match=r"kanalony\.toml: workers is 0: .*; kanalony\.toml: unknown option 'prot'"):
        load_settings(ServeSettings)


@pytest.fixture
def own_environment() -> Iterator[None]:
    """Undoes all changes of the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("own_environment")
def test_a_worker_gets_the_settings_of_serving_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What granian's workers find in their environment: the settings of the collector, whatever their source, and no
    option of another command.
    """

    class Started(Exception):
        pass

    def start(*_: object) -> None:
        code = "import os; print(*(f'{name}={value}' for name, value in os.environ.items()), sep='\\n')"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        raise Started(done.stdout)

    monkeypatch.chdir(tmp_path)
    Path("kanalony.toml").write_text(EVERYTHING)
    monkeypatch.setenv("kanalony_api_key", "*=SECRET34")
    monkeypatch.setenv("KANALONY_KS_SECRETS", "/etc/kanalony/ks")
    monkeypatch.setenv("KANALONY_WORKERS", "3")
    monkeypatch.setenv("KANALONY_SERVICE_HOST", "10.0.0.1")
    settings = load_settings(ServeSettings, redact=("ks",))
    monkeypatch.setattr(granian_server, "_server", start)
    with pytest.raises(Started) as caught:
        granian_server.serve(settings, 1, backlog=1, connections=1)
    environment = str(caught.value)
    assert "KANALONY_WORKERS=3" in environment
    assert 'KANALONY_REDACT=["ks"]' in environment
    assert "KANALONY_SERVICE_HOST" in environment
    foreign = [name for name in OPTIONS if name not in ServeSettings.model_fields]
    assert {"api_key", "ks_secrets", "custom_events"} <= set(foreign)
    assert [name for name in foreign if f"kanalony_{name}=" in environment.lower()] == []
    assert "SECRET" not in environment
    assert "/etc/kanalony/ks" not in environment
