"""Serving: opens the address and the data directory, then starts the server."""

import logging
import multiprocessing
import os
import resource
import shutil
import socket
from collections.abc import Callable

from kanalony.errors import StorageError, UsageError
from kanalony.segments.directory import DataDirectory
from kanalony.settings.serving import ServeSettings, check_meinheld

log = logging.getLogger(__name__)

_BACKLOG = 4096  # connections waiting for a worker; the kernel's net.core.somaxconn caps it
_MAX_OPEN_FILES = 1 << 16  # per worker; meinheld allocates a slot for each at its start


def _listen(settings: ServeSettings) -> socket.socket:
    """Returns a listening socket. Raises UsageError when the address cannot be used."""
    host, port = settings.host, settings.port
    # meinheld gives accept() room for an IPv4 address only (accept_callback in server.c): the second connection that it
    # takes from an IPv6 socket at a time overwrites its stack. It crashes.
    family = socket.AF_INET if settings.server == "meinheld" else socket.AF_UNSPEC
    if settings.server == "meinheld" and ":" in host:
        raise UsageError(
            f"meinheld cannot listen on IPv6 ({host})",
            "take --server granian, or a proxy in front that listens on IPv6",
        )
    try:
        family = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=host == "::")
    except OSError as error:
        reason = "no such address" if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UsageError(
            f"cannot listen on {host} port {port}: {reason}", "choose another with --host or --port"
        ) from error


def _has_room(data: DataDirectory, needed: int) -> bool:
    return any(shutil.disk_usage(place.root).free >= needed for place in data.places())


def _make_room(data: DataDirectory, needed: int) -> None:
    """Adopts journals of dead workers: when they are too many, and all of them when they leave too little room."""
    from kanalony.segments.store import make_room

    make_room(data)
    if not _has_room(data, needed):
        make_room(data, leave=0)


def serve(reload_settings: Callable[[], ServeSettings]) -> None:
    """Serves until SIGTERM or SIGINT; does not return.

    Args:
        reload_settings: Reads the settings: now, and again at each SIGHUP.

    Raises:
        UsageError: The server, the address or the data directory cannot be used. No worker is started yet.
        StorageError: The data directory cannot be written, or lacks room for the journals. No worker is started yet.
    """
    settings = reload_settings()
    if settings.server == "meinheld":
        check_meinheld()
    listener = _listen(settings)
    data = DataDirectory.for_collector(settings.data, settings.spool, settings.group)
    needed = settings.workers * settings.journal_block_size * settings.journal_blocks
    if data.journals():
        # In a process of its own: a reload brings no new code for modules that this process has imported.
        adopter = multiprocessing.get_context("fork").Process(target=_make_room, args=(data, needed))
        adopter.start()
        adopter.join()
    if not _has_room(data, needed):
        raise StorageError(
            f"{data.root} has less than {needed / 2**20:,.0f} MiB free for the journals of {settings.workers} workers",
            "free some disk space, or make journals smaller with --journal-blocks",
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft > _MAX_OPEN_FILES or soft == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, hard))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    port = listener.getsockname()[1]
    log.info(
        "collecting on http://%s:%d into %s (server: %s, workers: %d, ack: %s)",
        host,
        port,
        data.root,
        settings.server,
        settings.workers,
        settings.ack,
    )
    if settings.server == "granian":
        from kanalony.collector import granian_server

        listener.close()
        granian_server.serve(settings, port, backlog=_BACKLOG, connections=_MAX_OPEN_FILES)
    else:
        from kanalony.collector import meinheld_server

        meinheld_server.serve(settings, reload_settings, listener, backlog=_BACKLOG)
