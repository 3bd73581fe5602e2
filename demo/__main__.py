"""`make demo`: a collector, viewers, the aggregator and the dashboard, on this machine alone.

It first writes a day of simulated traffic, so that reports are not empty; then the viewers continue, through the
collector. All files are in a temporary directory.
"""

import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import click
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from harness.server import KANALONY, Server, run, serving, started
from kanalony.segments.directory import DataDirectory
from kanalony.simulate.past import write_past
from kanalony.simulate.viewers import EXAMPLE_NETWORK, START, SimulatedEvent, simulate

PLACES = (
    ("Germany", "Berlin", "Berlin", 70),
    ("France", "Île-de-France", "Paris", 120),
    ("United States", "California", "Los Angeles", 190),
    ("Brazil", "São Paulo", "São Paulo", 220),
    ("Japan", "Tokyo", "Tokyo", 240),
)


def write_places(path: Path) -> None:
    """Writes a GeoIP database of invented places for the addresses of the viewers."""
    database = MMDBWriter(4, "Demo", languages=["en"])
    first = 0
    for country, region, city, end in PLACES:
        place = {"country": country, "city": city}
        record: dict[str, object] = {name: {"names": {"en": value}} for name, value in place.items()}
        record["subdivisions"] = [{"names": {"en": region}}]
        database.insert_network(IPSet([f"{EXAMPLE_NETWORK}.{last}/32" for last in range(first, end)]), record)
        first = end
    database.to_db_file(str(path))


@click.command()
@click.option("--viewers", type=click.IntRange(1), default=25, show_default=True, help="Concurrent viewers.")
@click.option(
    "--hours", type=click.FloatRange(0, 24 * 7), default=24, show_default=True, help="Hours of traffic before now."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="Port of the dashboard.")
def main(viewers: int, hours: float, port: int) -> None:
    """Run a collector with simulated viewers and a dashboard. Open the printed address; Ctrl-C ends the demo."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kanalony-demo-")))
        places = root / "places.mmdb"
        write_places(places)
        data = DataDirectory.writable(root / "data")
        click.echo(f"simulating {hours:g} hours of traffic ...")
        end = START + hours * 3600
        traffic = simulate(viewers, "demo")
        past = [next(traffic)]
        while past[-1].time < end and not stop.is_set():
            past.append(next(traffic))
        shift = time.time() - end
        count = write_past(data, (replace(event, time=event.time + shift) for event in past))
        options = ("--trusted-proxy", "127.0.0.1/32", "--config", str(_settings(root)))
        server = stack.enter_context(serving(data.root, *options))
        watching = threading.Thread(target=_go_on, args=(traffic, shift, server, stop))
        watching.start()
        stack.callback(watching.join)
        stack.callback(stop.set)
        click.echo(f"{count:,} events; compacting ...")
        compacting: list[str | Path] = ["compact", "--data", data.root, "--geoip", places]
        first = run(*compacting, timeout=600)
        if first.returncode:
            raise click.ClickException(first.stderr)
        _start(stack, root / "compact.log", *compacting, "--every", "5s")
        dashboard = _start(stack, root / "dashboard.log", "dashboard", "--data", data.root, "--port", str(port))
        while "dashboard on " not in (root / "dashboard.log").read_text():
            if dashboard.poll() is not None:
                raise click.ClickException((root / "dashboard.log").read_text().strip())
            stop.wait(0.1)
        click.echo(f"collector  http://{server.host}:{server.port}/collect")
        click.echo(f"dashboard  {(root / 'dashboard.log').read_text().split('dashboard on ')[1].split()[0]}")
        click.echo("Ctrl-C ends it.")
        stop.wait()


def _go_on(traffic: Iterator[SimulatedEvent], shift: float, server: Server, stop: threading.Event) -> None:
    """Sends the further events of the same viewers, in real time, until `stop` is set."""
    connection = HTTPConnection(server.host, server.port, timeout=5)
    for event in traffic:
        if stop.wait(max(0.0, event.time + shift - time.time())):
            break
        headers = {"User-Agent": event.user_agent, "X-Forwarded-For": event.address}
        try:
            connection.request("GET", f"/collect?{event.query}", headers=headers)
            connection.getresponse().read()
        except OSError:  # players do not retry
            connection.close()
    connection.close()


def _settings(root: Path) -> Path:
    path = root / "kanalony.toml"
    path.write_text("segment_age = 5.0  # seconds: so that the dashboard follows soon\n")
    return path


def _start(stack: ExitStack, log: Path, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    file = stack.enter_context(log.open("wb"))
    return stack.enter_context(started([*KANALONY, *map(str, arguments)], stdout=file, stderr=file))


if __name__ == "__main__":
    main(prog_name="python -m demo")
