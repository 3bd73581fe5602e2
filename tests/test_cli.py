"""The command line: help, clear errors, exit codes."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.load import cat
from harness.server import KANALONY, run
from kanalony.cli import main
from kanalony.collector.server import serve
from kanalony.errors import StorageError, UsageError
from kanalony.segments.directory import MARKER, DataDirectory
from kanalony.settings.serving import ServeSettings
from tests.files import JournalFile, fields, journal_file, segment_file
from tests.usage import assert_usage_error, call

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_an_example_and_a_place_in_the_readme(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert "Examples:\n" in done.stdout
    assert f"kanalony {command}" in done.stdout.split("Examples:")[1]
    assert f"kanalony {command}" in README


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--port", "http"], ["--port is 'http'", "integer"]),
        (["--port", "65536"], ["--port", "65535"]),
        (["--workers", "0"], ["--workers is '0'", "greater than or equal to 1"]),
        (["--ack", "maybe"], ["--ack is 'maybe'", "'written' or 'synced'"]),
        (["--journal-blocks", "1"], ["--journal-blocks"]),
        (["--config", "missing.toml"], ["no settings file missing.toml"]),
    ],
)
def test_a_wrong_option_is_an_error_in_one_line(tmp_path: Path, arguments: list[str], texts: list[str]) -> None:
    assert_usage_error(call("serve", *arguments, cwd=tmp_path), *texts)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--host", "192.0.2.1"], ["cannot listen on 192.0.2.1", "--host"]),
        (["--host", "::1"], ["meinheld cannot listen on IPv6", "--server granian"]),
        (["--host", "no such host"], ["cannot listen on no such host", "no such address", "--host"]),
        (["--data", "/proc/kanalony"], ["cannot be written", "--data"]),
    ],
)
def test_an_unusable_address_or_directory_is_an_error_in_one_line(
    tmp_path: Path, arguments: list[str], texts: list[str]
) -> None:
    assert_usage_error(run("serve", *arguments, cwd=tmp_path), *texts)


@pytest.mark.parametrize("arguments", [["serve", "--prot", "1"], ["srve"], ["cat", "--data"], ["serve", "x"]])
def test_a_wrong_command_line_is_an_error_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    assert_usage_error(call(*arguments, cwd=tmp_path), "--help)")


def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_usage_error(
            run("serve", "--port", str(port), cwd=tmp_path), f"port {port}: Address already in use", "--port"
        )


def test_a_foreign_directory_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    assert_usage_error(run("serve", "--data", tmp_path), "holds files that are not kanalony's")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]
    assert_usage_error(run("serve", "--data", tmp_path / "thesis.doc"), "is a file")


def test_a_data_directory_of_a_later_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("kanalony data directory, layout 9\n")
    for command in ("serve", "cat", "verify", "recover"):
        assert_usage_error(run(command, "--data", tmp_path), "layout 9", "version")


def test_a_disk_too_small_for_the_journals_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServeSettings(data=tmp_path / "data", port=0, workers=3)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=90 << 20))
    with pytest.raises(StorageError, match="less than 105 MiB free for the journals of 3 workers"):
        serve(lambda: settings)


def test_a_spool_directory_belongs_to_one_data_directory(tmp_path: Path) -> None:
    first, second = DataDirectory.writable(tmp_path / "first"), DataDirectory.writable(tmp_path / "second")
    first.add_spools([tmp_path / "spool"])
    first.add_spools([tmp_path / "spool"])
    assert len(first.places()) == 2
    with pytest.raises(UsageError, match="is the spool directory of"):
        second.add_spools([tmp_path / "spool"])
    with pytest.raises(UsageError, match="is the data directory itself"):
        second.add_spools([tmp_path / "second"])
    assert len(second.places()) == 1


def test_commands_that_read_use_the_data_directory_of_serve(tmp_path: Path) -> None:
    data = DataDirectory.writable(tmp_path / "elsewhere")
    segment_file(data, [[fields(1)]])
    (tmp_path / "kanalony.toml").write_text('data = "elsewhere"\n')
    for command in ("cat", "verify", "recover"):
        assert run(command, cwd=tmp_path).returncode == 0
    assert '"n": "1"' in run("cat", cwd=tmp_path).stdout


def test_a_start_that_fails_leaves_no_data_directory(tmp_path: Path) -> None:
    assert run("serve", "--host", "192.0.2.1", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_two_starts_at_once_on_a_new_directory_both_succeed(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from kanalony.segments.directory import DataDirectory; input()\n"
    code += "for n in range(40): DataDirectory.writable(Path(sys.argv[1]) / str(n))"
    makers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for maker in makers:
        assert maker.stdin
        maker.stdin.write(b"\n")
        maker.stdin.flush()
    for maker in makers:
        assert maker.communicate(timeout=60)[1] == b""


def test_help_shows_defaults_as_settings_are_written() -> None:
    text = " ".join(run("compact", "--help").stdout.split()) + " ".join(run("serve", "--help").stdout.split())
    defaults = re.findall(r"\[default: ([^\]]*)\]", text)
    assert {"7d", "180d", "forever", "1GiB", "1MiB", "none", "none, may be given more than once"} <= set(defaults)
    assert not {"inf", "None", "()", "604800.0"} & set(defaults)
    assert not any(re.search(r"^[0-9]+\.[0-9]+$|^[0-9]{5,}$", default) for default in defaults)


@pytest.mark.parametrize("command", ["cat", "verify", "recover"])
def test_a_directory_that_is_not_kanalonys_is_an_error(tmp_path: Path, command: str) -> None:
    assert_usage_error(run(command, "--data", tmp_path / "nothing"), "not a kanalony data directory", "--data")


@pytest.mark.parametrize("command", ["cat", "verify"])
def test_a_path_to_another_file_is_an_error(tmp_path: Path, command: str) -> None:
    (tmp_path / "letter.lz4").write_text("Dear Sir")
    assert_usage_error(run(command, tmp_path / "letter.lz4"), "is not a segment")
    assert_usage_error(run(command, tmp_path / "gone.lz4"), "no file")
    (tmp_path / "empty").mkdir()
    assert_usage_error(run(command, tmp_path / "empty"), "no segments or journals")


def test_an_empty_data_directory_is_sound_and_prints_nothing(data: DataDirectory) -> None:
    assert cat(data.root) == []
    done = run("verify", "--data", data.root)
    assert (done.returncode, done.stdout) == (0, "0 segments, 0 frames, 0 requests, 0 events; sound\n")


def test_cat_takes_files_and_directories(data: DataDirectory) -> None:
    segment = segment_file(data, [[fields(1), fields(2)]])
    journal = journal_file(data, [fields(3)])
    assert [event["params"]["n"] for event in cat(data.root, segment.path, journal.path)] == ["1", "2", "3"]
    assert [event["params"]["n"] for event in cat(data.root, data.sealed)] == ["1", "2"]
    assert [event["worker"] for event in cat(data.root, journal.path)] == [journal.path.stem]


def test_cat_prints_the_keys_of_the_contract_in_their_order(data: DataDirectory) -> None:
    request = (
        b"GET",
        b"/collect",
        b"\x7f\0\0\1",
        b"10.0.0.1",
        b"agent",
        b"http://a/",
        b"b=1&a=%C3%A9&b=2",
        b"\xff",
        b"text/x",
        None,
        None,
    )
    segment_file(data, [[request]])
    (event,) = cat(data.root)
    assert list(event) == [
        "received_at",
        "method",
        "path",
        "query",
        "body_base64",
        "content_type",
        "content_encoding",
        "remote_addr",
        "forwarded_for",
        "user_agent",
        "referer",
        "worker",
        "sequence",
        "index",
        "params",
    ]
    assert event["received_at"].endswith("Z")
    assert len(event["received_at"]) == len("2026-01-01T00:00:00.000001Z")
    assert event["params"] == {"b": ["1", "2"], "a": "é"}
    assert event["body_base64"] == "/w=="
    assert (event["remote_addr"], event["forwarded_for"], event["sequence"]) == ("127.0.0.1", "10.0.0.1", 1)


def test_cat_into_a_closed_pipe_ends_quietly(data: DataDirectory) -> None:
    segment_file(data, [[fields(n) for n in range(100)] for _ in range(5)])
    command = [*KANALONY, "cat", "--data", str(data.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0
    process.stderr.close()


def test_verify_names_each_damaged_place_and_exits_with_1(data: DataDirectory) -> None:
    sound = segment_file(data, [[fields(1)]])
    segment = segment_file(data, [[fields(n)] for n in range(3)])
    middle = (segment.ends[0] + segment.ends[1]) // 2
    segment.path.write_bytes(segment.content[:middle] + b"?" + segment.content[middle + 1 :])
    done = run("verify", "--data", data.root)
    assert done.returncode == 1
    assert done.stdout.startswith("2 segments, 3 frames, 3 requests, 3 events; damage found\nby event type: ")
    assert f"{segment.path}: offset {segment.ends[0]:,}, {segment.ends[1] - segment.ends[0]:,} bytes" in done.stderr
    assert str(sound.path) not in done.stderr
    events = run("cat", "--data", data.root)
    assert events.returncode == 1
    assert len([json.loads(line) for line in events.stdout.splitlines()]) == 3
    assert run("verify", sound.path).returncode == 0
    assert run("verify", segment.path).returncode == 1


def test_verify_counts_the_pending_requests_of_a_dead_worker(data: DataDirectory) -> None:
    segment_file(data, [[fields(1)]])
    dead: JournalFile = journal_file(data, [fields(2), fields(3)])
    done = run("verify", "--data", data.root)
    assert done.returncode == 0, done.stderr
    assert "1 journals left by dead workers, 2 requests pending; sound" in done.stdout
    content = dead.content.replace(b"n=3&", b"n=4&")
    dead.path.write_bytes(content)
    done = run("verify", "--data", data.root)
    assert done.returncode == 1
    assert str(dead.path) in done.stderr


def test_a_data_directory_among_paths_is_read_as_a_data_directory(data: DataDirectory) -> None:
    """The journal of a running worker is no damage, and an event that is in two files is printed once."""
    segment = segment_file(data, [[fields(1)], [fields(2)]])
    (data.open / segment.path.name).write_bytes(segment.content[: segment.ends[0]])
    running = journal_file(data, [fields(3)])
    with running.path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run("verify", data.root)
        assert done.returncode == 0, done.stderr
        assert done.stdout == run("verify", "--data", data.root).stdout
        assert "2 events; 1 journals in use, not checked; sound" in done.stdout
        assert "4 events; 1 journals in use" in run("verify", data.root, data.sealed).stdout
        assert [event["params"]["n"] for event in cat(data.root, data.root)] == ["1", "2", "3"]
        assert [event["params"]["n"] for event in cat(data.root, segment.path, data.root)] == ["1", "2", "1", "2", "3"]


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["verify"], ["cat"]])
def test_output_that_cannot_be_written_is_an_error_in_one_line(data: DataDirectory, arguments: list[str]) -> None:
    segment_file(data, [[fields(1)]])
    environment = {**os.environ, "KANALONY_DATA": str(data.root)}
    with Path("/dev/full").open("w") as full:
        command = [*KANALONY, *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True)
    assert (done.returncode, done.stderr) == (2, "Error: [Errno 28] No space left on device\n")


def test_the_module_and_the_script_are_the_same_command() -> None:
    script = Path(sys.executable).parent / "kanalony"
    version = subprocess.run([script, "--version"], check=True, capture_output=True, text=True).stdout
    assert version == run("--version").stdout
