"""Every request of a data directory or of named files, once: what `kanalony cat` shows."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kanalony.errors import FormatError, UsageError
from kanalony.segments.coverage import Coverage
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import is_in_use, read_journal
from kanalony.segments.names import is_sealed
from kanalony.segments.reader import Request, Segment, decode_records


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields the segments and journals that paths name; a directory stands for every one below it.

    Raises:
        UsageError: A path is missing, or a directory holds no segments and no journals.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in (".lz4", ".journal"))
            if not found:
                raise UsageError(f"no segments or journals in {path}", "name files or directories that kanalony wrote")
            yield from found
        elif path.exists():
            yield path
        else:
            raise UsageError(f"no file {path}", "name files or directories that kanalony wrote")


def read_files(paths: Iterable[Path], on_damage: Callable[[Damage], object]) -> Iterator[Request]:
    """Yields the requests of files, in the order of the files.

    Args:
        paths: Segments, journals, or directories that hold some.
        on_damage: Called with each damaged range.

    Raises:
        UsageError: As `files_of`.
        FormatError: A file is neither a segment nor a journal, or of a later version.
        OSError: A file cannot be read.
    """
    for path in files_of(paths):
        if path.suffix == ".journal":
            contents = read_journal(path)
            for records in contents.pending:
                yield from decode_records(records.content, contents.worker_id, records.first_sequence) or []
            damaged = contents.damaged
        else:
            with Segment(path, is_sealed(path)) as segment:
                yield from segment.requests()
            damaged = segment.damaged
        for damage in damaged:
            on_damage(damage)


def read_data(data: DataDirectory, on_damage: Callable[[Damage], object]) -> Iterator[Request]:
    """Yields every request that was acknowledged before the call, once.

    Requests in segments come first, in order of the start of their segments, then those in journals.

    Args:
        data: The data directory. Collectors and recovery may be writing to it.
        on_damage: Called with each damaged range, and each file that is of a later version or no segment or journal.

    Raises:
        StorageError: A spool directory is missing, or this user may not list a directory.
    """
    # Journals first: what leaves a journal after this is in a segment by then.
    journals = []
    for path in data.journals():
        try:
            in_use = is_in_use(path)
            journals.append((read_journal(path), in_use))
        except FileNotFoundError:
            continue  # its worker has ended; all its requests are in segments
        except FormatError as error:
            on_damage(Damage(path, 0, 0, str(error)))
    covered = Coverage()
    for segment in each_segment(data, on_damage):
        yield from _read_uncovered(segment, covered, on_damage)
    for contents, in_use in journals:
        for records in covered.missing_records(contents.worker_id, contents.pending):
            yield from decode_records(records.content, contents.worker_id, records.first_sequence) or []
        for damage in contents.damaged if not in_use else []:
            on_damage(damage)


def each_segment(data: DataDirectory, on_damage: Callable[[Damage], object]) -> Iterator[Segment]:
    """Yields every segment of a data directory, opened, in order of names.

    Segments that recovery makes of others meanwhile are included, so a frame may come twice. The caller finishes with
    one before it asks for the next.

    Args:
        data: The data directory.
        on_damage: Called with each file that is of a later version, no segment, or cannot be read.

    Raises:
        StorageError: A spool directory is missing, or this user may not list a directory.
    """
    seen: set[Path] = set()
    while True:
        vanished = False
        for path in data.segments():
            if path in seen:
                continue
            seen.add(path)
            try:
                segment = Segment(path, is_sealed(path))
                segment.__enter__()
            except FileNotFoundError:
                vanished = True  # sealed, maybe under another name; or deleted
                continue
            except (FormatError, OSError) as error:
                on_damage(Damage(path, 0, 0, str(error)))
                continue
            try:
                yield segment
            finally:
                segment.__exit__()
        if not vanished:
            return


def _read_uncovered(segment: Segment, covered: Coverage, on_damage: Callable[[Damage], object]) -> Iterator[Request]:
    """Yields the segment's requests that are not covered yet.

    A crash between two steps of recovery leaves a frame in two files.
    """
    for frame in segment.frames():
        worker, first = frame.prefix.worker_id, frame.prefix.first_sequence
        parts = covered.missing(worker, first, first + frame.prefix.request_count)
        if not parts:
            continue
        requests = frame.requests()
        if requests is None:
            segment.note_bad_content(frame)
            continue
        covered.add(worker, first, first + frame.prefix.request_count)
        for begin, end in parts:
            yield from requests[begin - first : end - first]
    for damage in segment.damaged:
        on_damage(damage)
