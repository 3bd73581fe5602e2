"""ServeSettings that `kanalony serve` rejects: one clear line, and exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from kanalony.cli import main
from kanalony.settings.serving import ServeSettings


@pytest.fixture
def rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `kanalony serve` with options, in an empty directory. Returns its only line on stderr."""

    def serve(reload_settings: Callable[[], ServeSettings]) -> None:
        pytest.fail(f"accepted: {reload_settings()}")

    def run(*options: str) -> str:
        done = CliRunner().invoke(main, ["serve", "--port", "0", *options])
        assert done.exit_code == 2, done.exception
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kanalony.collector.server.serve", serve)
    return run


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--path", "e", "path"),
        ("--path", "/e?x", "path"),
        ("--path", "/{name}", "path"),
        ("--allow-origin", "videos.example", "origin"),
        ("--allow-origin", "https://videos.example/", "origin"),
        ("--max-body", "10", "greater than or equal to 1024"),
        ("--max-body", "1GB", "less than or equal to"),
        ("--anonymize-ip", "maybe", "'truncate'"),
        ("--redact", "", "one parameter"),
        ("--redact", "ks,userId", "one parameter"),
        ("--redact", " ks", "one parameter"),
        ("--redact", "k%73", "decoded"),
        ("--redact", "event:", "one parameter"),
        ("--redact", "event[ks]", "without brackets"),
        ("--redact", "k\udcff", "one parameter"),
        ("--trusted-proxy", "bad", "must be a network like 10.0.0.0/8"),
        ("--trusted-proxy", "10.0.0.1/8", "host bits"),
        ("--spool", "", "name of a directory"),
        ("--path", "/robots.txt", "another path"),
        ("--allow-origin", "https://a.example,https://b.example", "one origin"),
        ("--allow-origin", "https://bücher.example", "as browsers send it"),
    ],
)
def test_a_wrong_value_is_one_clear_line(rejected: Callable[..., str], option: str, value: str, problem: str) -> None:
    line = rejected(option, value)
    assert line.startswith(f"Error: {option} is {value!r}: ")
    assert problem in line
    assert ";" not in line, "one mistake is reported once"


def test_a_wrong_network_is_reported(rejected: Callable[..., str]) -> None:
    assert "--trusted-proxy is '10.0.0.0/99'" in rejected("--trusted-proxy", "10.0.0.0/99")


def test_a_block_that_the_largest_body_would_not_fit_is_reported(rejected: Callable[..., str]) -> None:
    Path("kanalony.toml").write_text('journal_block_size = "1MiB"\n')
    assert "journal_block_size is '1MiB': must be at least 1146880" in rejected()
