"""Faults under load: every acknowledged event is compared with every stored event.

The load is `kanalony simulate`. Its --acked file is the oracle: it has a key if and only if the 200 arrived.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.outcome import Outcome, workspace
from harness.server import KANALONY, Server, serving, started

MANY = 10_000_000  # more events than any round sends


class Simulation:
    """`kanalony simulate` in the background."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def end(self, *, stop: bool, seconds: float = 60) -> str:
        """Waits for the end of the simulation, and returns its output.

        Args:
            stop: Whether to stop it first.
            seconds: Time limit.
        """
        if stop:
            self._process.send_signal(signal.SIGINT)
        return self._process.communicate(timeout=seconds)[0]


@contextmanager
def simulating(
    server: Server, acked: Path, *, seed: int, events: int = MANY, rate: int | None = None
) -> Iterator[Simulation]:
    """Runs simulated viewers that send to a server.

    Args:
        server: The server.
        acked: File that gets a line for every acknowledged event.
        seed: Seed of the simulation.
        events: Events after which it ends.
        rate: Events per second; None: as fast as they are answered.
    """
    command = [*KANALONY, "simulate", "--url", f"http://127.0.0.1:{server.port}", "--seed", str(seed)]
    command += ["--events", str(events), "--acked", str(acked), "--viewers", "400"]
    command += ["--rate", str(rate)] if rate else []
    with started(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # What a shell starts in the background ignores SIGINT, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        yield Simulation(process)


def compare(outcome: Outcome, data: Path, acked: list[Path]) -> None:
    """Compares the acknowledged events with the output of `kanalony cat`, and runs `kanalony verify`."""
    acknowledged = {line for path in acked for line in path.read_text().splitlines()}
    stored: Counter[str] = Counter()
    process = subprocess.Popen([*KANALONY, "cat", "--data", str(data)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        parameters = json.loads(line)["params"]
        stored[f"{parameters.get('sessionId')} {parameters.get('eventIndex')}"] += 1
    process.wait()
    verified = subprocess.run([*KANALONY, "verify", "--data", str(data)], capture_output=True, text=True)
    outcome.figure("acknowledged", len(acknowledged))
    outcome.figure("stored", sum(stored.values()))
    outcome.figure("acknowledged but missing", len(acknowledged - set(stored)), 0)
    outcome.figure("stored twice", sum(times - 1 for times in stored.values()), 0)
    outcome.figure("exit status of verify", verified.returncode, 0)


def crash(rounds: int, directory: Path | None) -> Outcome:
    """Kills every process of the collector at a random moment under load, and starts again on its data, repeatedly."""
    outcome = Outcome()
    rng = random.Random(1)
    acked = []
    with workspace(directory) as work:
        for number in range(rounds):
            acked.append(work / f"acked-{number}")
            with (
                serving(work / "data", "--workers", "2") as server,
                simulating(server, acked[-1], seed=number) as simulation,
            ):
                time.sleep(rng.uniform(0.7, 2.0))
                server.kill()
                simulation.end(stop=True)
        with serving(work / "data") as server:
            server.wait_for(lambda: len(list((work / "data" / "journal").iterdir())) == 1)
            server.stop()
        outcome.figure("rounds of kill -9", rounds)
        compare(outcome, work / "data", acked)
    return outcome


def restart(rounds: int, directory: Path | None) -> Outcome:
    """Sends SIGHUP under load repeatedly; then SIGTERM under load and a new start repeatedly."""
    outcome = Outcome()
    with workspace(directory) as work:
        acked = [work / "acked-reload"]
        with (
            serving(work / "data", "--workers", "2") as server,
            simulating(server, acked[0], seed=1, rate=3000) as simulation,
        ):
            time.sleep(1)
            for _ in range(rounds):
                before = server.workers()
                server.process.send_signal(signal.SIGHUP)
                server.successors(before, 2)
            printed = simulation.end(stop=True)
            server.stop()
        lost = re.search(r"^lost +([\d,]+)(.*)$", printed, re.M)
        assert lost, printed
        outcome.figure("rounds of SIGHUP", rounds)
        outcome.figure("errors seen by clients" + lost[2], int(lost[1].replace(",", "")), 0)
        for number in range(rounds):
            acked.append(work / f"acked-{number}")
            with (
                serving(work / "data", "--workers", "2") as server,
                simulating(server, acked[-1], seed=2 + number) as simulation,
            ):
                time.sleep(1)
                assert server.stop() == 0
                simulation.end(stop=True)
        outcome.figure("rounds of SIGTERM", rounds)
        outcome.figure("journals left", len(list((work / "data" / "journal").iterdir())), 0)
        compare(outcome, work / "data", acked)
    return outcome


def full_disk(size_mb: int = 16) -> Outcome:
    """Fills a small tmpfs under load, empties it, and fills it again. Needs the right to mount."""
    outcome = Outcome()
    with workspace(None) as work:
        disk = work / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", disk], check=True)
        try:
            filler = disk / "filler"
            filler.write_bytes(bytes(6 << 20))
            with serving(disk / "data", "--journal-blocks", "4") as server:
                acked = []
                back = []
                for number in range(2):
                    acked.append(work / f"acked-{number}")
                    with simulating(server, acked[-1], seed=number) as simulation:
                        server.wait_for(lambda: _status(server) == 503, 120)
                        time.sleep(1)  # the server refuses for a while
                        free = shutil.disk_usage(disk).free
                        outcome.figure(f"free when it refused, round {number + 1}", f"{free:,} bytes")
                        if number == 0:
                            filler.unlink()
                        else:
                            subprocess.run(["mount", "-o", f"remount,size={size_mb * 2}m", disk], check=True)
                        start = time.monotonic()
                        server.wait_for(lambda: _status(server) == 200, 30)
                        back.append(time.monotonic() - start)
                        simulation.end(stop=True)
                outcome.figure("serving again after", ", ".join(f"{seconds:.2f} s" for seconds in back))
                if max(back) > 2:
                    outcome.missed.append("serving again within 2 s")
                outcome.figure("workers that died", server.log.read_text().count("was sent SIG"), 0)
                server.stop()
                compare(outcome, server.data, acked)
        finally:
            subprocess.run(["umount", disk], check=True)
    return outcome


def _status(server: Server) -> int:
    """Sends one more event with a key of its own, and returns the status; 0 when no answer comes."""
    try:
        return int(server.get(f"/collect?sessionId=probe&eventIndex={time.monotonic_ns()}")[9:12] or 0)
    except OSError:
        return 0


def soak(seconds: int, directory: Path | None) -> Outcome:
    """Sends half of the maximum rate for a while, and lists memory, file descriptors and latency over time."""
    outcome = Outcome()
    with workspace(directory) as work, serving(work / "data") as server:
        acked = [work / "acked-most"]
        with simulating(server, acked[0], seed=0, events=40_000) as simulation:
            printed = simulation.end(stop=False)
        rate = re.search(r"\(([\d,]+)/s\)", printed)
        assert rate, printed
        half = int(rate[1].replace(",", "")) // 2
        worker = server.worker()
        parts = 5
        outcome.figure("events per second", half)
        outcome.lines.append(f"{'part':<6}{'resident MiB':>14}{'descriptors':>13}   latency")
        for part in range(parts):
            acked.append(work / f"acked-{part}")
            events = max(half * seconds // parts, 1)
            with simulating(server, acked[-1], seed=part + 1, events=events, rate=half) as simulation:
                printed = simulation.end(stop=False, seconds=seconds + 60)
            latency = re.search(r"^latency +(.*)$", printed, re.M)
            status = Path(f"/proc/{worker}/status").read_text()
            resident = int(re.search(r"^RssAnon:\s+(\d+)", status, re.M)[1]) / 1024  # type: ignore[index]
            files = len(os.listdir(f"/proc/{worker}/fd"))
            outcome.lines.append(f"{part + 1:<6}{resident:>14.1f}{files:>13}   {latency[1] if latency else 'none'}")
        server.stop()
        compare(outcome, server.data, acked)
    return outcome
