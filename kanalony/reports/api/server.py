"""Runs the application: the address, signals, uvicorn."""

import logging
import os
import signal
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import uvicorn

from kanalony.errors import StorageError, UsageError
from kanalony.reports.api.app import create_app
from kanalony.reports.api.limits import Limits
from kanalony.reports.execution import Reports
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.directory import DataDirectory

log = logging.getLogger(__name__)


def serve(data: DataDirectory, vocabulary: Vocabulary, host: str, port: int, keys: Sequence[str]) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        data: The data directory.
        vocabulary: Metrics and dimensions.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        keys: Keys of partners, PARTNER=KEY; required unless the address is a loopback one.

    Raises:
        UsageError: The host is unknown, or other machines reach the address and there is no key.
        StorageError: The address cannot be listened on.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"unknown host {host!r}", "name an address of this machine with --host") from error
    is_local = ip_address(address[0]).is_loopback
    if not is_local and not keys:
        raise UsageError(
            f"anyone who reaches {host} would see all reports",
            "set keys with --api-key PARTNER_ID=KEY, or *=KEY for all partners",
        )
    try:
        listening = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise StorageError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
            "is another dashboard running? Choose another --port",
        ) from error
    limits = Limits()
    reports = Reports(
        data,
        vocabulary,
        memory=limits.memory // limits.running,
        seconds=limits.seconds,
        text_bytes=limits.answer_bytes,
    )
    app = create_app(data, reports, keys, local=is_local and not keys, limits=limits)
    log.info("dashboard on http://%s:%d", f"[{host}]" if ":" in host else host, listening.getsockname()[1])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on these signals, and then raises them again with the handlers of before.
        signal.signal(number, lambda *_: None)
    # Not what else happens to be installed (uvloop, httptools): these two are tested.
    config = uvicorn.Config(app, loop="asyncio", http="h11", log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listening])
