"""The command `kanalony serve`."""

from pathlib import Path
from typing import Any

import click

from kanalony.cli.command import Command, examples
from kanalony.cli.options import CONFIG, setting
from kanalony.settings.loading import SettingsReader
from kanalony.settings.serving import ServeSettings


@click.command(
    cls=Command,
    epilog=examples("kanalony serve", "kanalony serve --host 0.0.0.0 --workers 4 --data /var/lib/kanalony"),
)
@setting(ServeSettings, "host")
@setting(ServeSettings, "port")
@setting(ServeSettings, "data")
@setting(ServeSettings, "group")
@setting(ServeSettings, "workers")
@setting(ServeSettings, "server")
@setting(ServeSettings, "ack")
@setting(ServeSettings, "trusted_proxy", multiple=True)
@setting(ServeSettings, "spool", multiple=True)
@setting(ServeSettings, "path", multiple=True)
@setting(ServeSettings, "max_body")
@setting(ServeSettings, "allow_origin", multiple=True)
@setting(ServeSettings, "shed_views")
@setting(ServeSettings, "anonymize_ip")
@setting(ServeSettings, "redact", multiple=True)
@setting(ServeSettings, "heartbeat")
@setting(ServeSettings, "journal_blocks")
@CONFIG
def serve(config: Path | None, **flags: Any) -> None:
    """Collect events over HTTP until stopped by SIGTERM or Ctrl-C.

    All options, and further ones, can also be set in kanalony.toml (port = 8000) and in the environment
    (KANALONY_PORT=8000). Options on the command line override both.
    """
    from kanalony.collector.server import serve

    serve(SettingsReader(config, **flags))
