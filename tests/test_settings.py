"""Settings: one file and one environment for all commands, and what each command takes from them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.server import run
from kanalony.collector import granian_server
from kanalony.errors import UsageError
from kanalony.segments.directory import DataDirectory
from kanalony.settings.compaction import CompactSettings
from kanalony.settings.loading import MODELS, OPTIONS, SettingsReader, load_settings
from kanalony.settings.reports import DashboardSettings, ReportSettings
from kanalony.settings.serving import ServeSettings, describe_reload
from kanalony.settings.shared import DataSettings
from tests.usage import assert_usage_error, call

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


def test_names_in_a_file_may_be_in_capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kanalony.toml").write_text('REDACT = ["ks"]\nredact = []\nKeep_Segments = "1d"\n')
    assert load_settings(ServeSettings).redact == ("ks",)
    assert load_settings(CompactSettings).keep_segments == 86400


@pytest.mark.parametrize("model", MODELS)
def test_a_misspelt_option_is_an_error_for_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: type[DataSettings]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kanalony.toml").write_text(f"keep_segment = 1\n{EVERYTHING}")
    with pytest.raises(UsageError, match=r"kanalony\.toml: unknown option 'keep_segment'"):
        load_settings(model)
    Path("kanalony.toml").write_text(EVERYTHING)
    monkeypatch.setenv("KANALONY_KEEP_SEGMENT", "1")
    with pytest.raises(UsageError, match="KANALONY_KEEP_SEGMENT is not an option") as caught:
        load_settings(model)
    assert caught.value.hint == "did you mean KANALONY_KEEP_SEGMENTS?"


def test_all_problems_are_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kanalony.toml").write_text("prot = 1\nworkers = 0\n")
    with pytest.raises(UsageError, match=r"kanalony\.toml: workers is 0: .*; kanalony\.toml: unknown option 'prot'"):
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


def test_a_wrong_value_in_the_environment_is_an_error_and_an_unknown_name_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: DataDirectory
) -> None:
    monkeypatch.setenv("KANALONY_DATA", str(data.root))
    monkeypatch.setenv("KANALONY_SERVICE_HOST", "10.0.0.1")
    done = run("cat", cwd=tmp_path)
    assert done.returncode == 0
    assert "KANALONY_SERVICE_HOST" in done.stderr
    monkeypatch.delenv("KANALONY_SERVICE_HOST")
    monkeypatch.setenv("KANALONY_PORT", "tcp://10.0.0.1:80")
    assert_usage_error(call("serve", cwd=tmp_path), "KANALONY_PORT is 'tcp://10.0.0.1:80'")


@pytest.mark.parametrize("text", ["port = \n", "prot = 8000\n", 'port = "x"\n'])
def test_an_error_in_a_settings_file_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "kanalony.toml").write_text(text)
    assert_usage_error(call("serve", cwd=tmp_path), "kanalony.toml")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.write_text(" \n"), "is empty"),
        (lambda path: path.symlink_to("gone.toml"), "is a link to nothing"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.write_bytes(b"host = '\xff'\n"), "is not valid TOML"),
    ],
)
def test_an_odd_settings_file_is_an_error(tmp_path: Path, make: Any, text: str) -> None:
    make(tmp_path / "kanalony.toml")
    assert_usage_error(call("serve", cwd=tmp_path), "kanalony.toml", text)
    assert_usage_error(call("serve", "--config", "kanalony.toml", cwd=tmp_path), "kanalony.toml", text)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_settings_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kanalony.toml").touch(mode=0)
    assert_usage_error(call("serve", cwd=tmp_path), "kanalony.toml cannot be read: Permission denied")


@pytest.mark.parametrize(
    "name",
    [
        "REDCAT",
        "redacted",
        "REDACT_NAMES",
        "ANONYMISE_IP",
        "ANONYMIZE_ADDRESSES",
        "PROT",
        "DATADIR",
        "DATA_PATH",
        "WORKER",
    ],
)
def test_a_misspelt_variable_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"KANALONY_{name}", "x")
    assert_usage_error(call("serve", cwd=tmp_path), f"KANALONY_{name} is not an option", "did you mean KANALONY_")


def test_variables_of_cluster_managers_are_not_misspelt_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: DataDirectory
) -> None:
    monkeypatch.setenv("KANALONY_DATA", str(data.root))
    names = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP"]
    names += ["DATA_SERVICE_HOST", "DATA_PORT", "DATA_PORT_80_TCP_ADDR"]  # of a service named kanalony-data
    names += ["PORT_8000_TCP", "PORT_8000_TCP_ADDR", "PORT_8000_TCP_PORT", "PORT_8000_TCP_PROTO"]
    for name in names:
        monkeypatch.setenv(f"KANALONY_{name}", "tcp://10.0.0.1:8000")
    done = run("cat", cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"KANALONY_{name}" in done.stderr for name in names)


def test_a_reload_that_loses_the_data_directory_or_privacy_is_refused() -> None:
    before = ServeSettings(data=Path("elsewhere"), redact=("ks",), anonymize_ip="drop", workers=2, port=1)
    for lost in ("data", "redact", "anonymize_ip"):
        with pytest.raises(UsageError, match=f"{lost} was set before and is not set now"):
            describe_reload(before, ServeSettings(**before.model_dump(include=before.model_fields_set - {lost})))
    kept = before.model_dump(include={"data", "redact", "anonymize_ip"})
    others = ["port: 1 → 8000, from the next start on", "workers: 2 → 1"]
    assert describe_reload(before, ServeSettings(**kept)) == ([], others)
    changed = ServeSettings(**{**kept, "data": Path("data"), "redact": (), "host": "::1"})
    guarded, others = describe_reload(before, changed)
    assert guarded == ["data: elsewhere → data", "redact: ks → none"]
    assert others == [
        "host: 127.0.0.1 → ::1, from the next start on",
        "port: 1 → 8000, from the next start on",
        "workers: 2 → 1",
    ]


def test_a_settings_file_that_was_read_must_exist_at_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read = SettingsReader()
    assert read().workers == 1
    Path("kanalony.toml").write_text("workers = 2\n")
    assert read().workers == 2
    Path("kanalony.toml").unlink()
    with pytest.raises(UsageError, match=r"no settings file kanalony\.toml"):
        read()
