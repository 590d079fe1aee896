"""Results that were worth their price, kept across runs: a content-addressed store in one SQLite file."""

import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from concordant.core.errors import DataError
from concordant.scoring.outcome import Outcome

VERSION = 1
_APPLICATION = 0x636F6E63  # "conc", in the header of the file
_CHUNK = 500  # keys in one statement, under the limit of variables of every SQLite
_PATIENCE = 60.0  # seconds to wait for another process
_MEMO = 4096
_SCHEMA = (
    "CREATE TABLE outcomes (key BLOB PRIMARY KEY, value REAL, reason TEXT, confidence REAL, kind TEXT, detail TEXT,"
    " sandbox TEXT) WITHOUT ROWID"
)
_GET = "SELECT key, value, reason, confidence, kind, detail, sandbox FROM outcomes WHERE key IN ({})"
_PUT = "INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?)"
_Row = tuple[Any, ...]
_T = TypeVar("_T")


class Cache:
    """Outcomes by key, in a file that several processes may use at once (write-ahead log).

    A crash of the process loses nothing that `put_many` returned from; a power cut may lose the last few calls, never
    the file. No pickle: numbers and JSON only. The first outcome stored for a key stays.

    Args:
        path: the file; made if it is not there. Its folder must exist.

    Raises:
        DataError: if the file is something else, or of another version of this store; it is left as it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._memo: dict[_Row, Outcome] = {}
        self._open = self._connect()

    def _connect(self) -> sqlite3.Connection:
        self._check_file()
        try:
            made = sqlite3.connect(
                self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise DataError(f"cannot open the cache {self.path}: {error}") from None
        try:
            self._prepare(made)
        except BaseException:
            made.close()
            raise
        return made

    def _check_file(self) -> None:
        """Refuse what SQLite should not even open for writing."""
        if not self.path.parent.is_dir():
            raise DataError(f"cannot make the cache {self.path}: there is no folder {self.path.parent}")
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as file:
                start = file.read(16)
        except OSError as error:
            raise DataError(f"cannot open the cache {self.path}: {error.strerror}") from None
        if start and start != b"SQLite format 3\0":
            raise DataError(f"{self.path} is not a cache (not an SQLite file); give --cache another name")

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._guard(lambda: self._is_new(connection)):
            self._guard(lambda: self._create(connection))
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "cache_size = -4096",
            "wal_autocheckpoint = 8000",
        ):
            self._guard(partial(_rows_of, connection, f"PRAGMA {pragma}"))

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """Return whether the file is empty; refuse another program's, and another version's."""
        tables, application, version = self._header(connection)
        if not tables and not application:
            return True
        if application != _APPLICATION:
            raise DataError(f"{self.path} is an SQLite file of another program; give --cache another name")
        if version != VERSION:
            raise DataError(
                f"{self.path} is a cache of version {version}, this program reads version {VERSION}; "
                "delete it or give --cache another name"
            )
        return False

    def _header(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """Return the number of tables, application id and version as of one moment: others may just make the file."""
        alone = not connection.in_transaction
        if alone:
            connection.execute("BEGIN")
        try:
            asked = ("SELECT count(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
            tables, application, version = (connection.execute(each).fetchone()[0] for each in asked)
        finally:
            if alone:
                connection.execute("ROLLBACK")
        return tables, application, version

    def _create(self, connection: sqlite3.Connection) -> None:
        """Make the table, unless another process was quicker."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._is_new(connection):
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _guard(self, work: Callable[[], _T]) -> _T:
        """Do something with the file; wait for other processes, and say what is wrong with it otherwise.

        SQLite waits by itself except where waiting might deadlock (a change of journal, a reader that turns writer).
        """
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                busy = "locked" in str(error) or "busy" in str(error)
                if not busy or time.monotonic() > end:
                    raise DataError(f"the cache {self.path} cannot be used: {error}") from None
                time.sleep(0.01)
            except sqlite3.DatabaseError as error:
                raise DataError(f"the cache {self.path} is damaged ({error}); delete it") from None

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Outcome]:
        """Return the outcomes that are stored, with `cached=True` and no attempts; the others are left out."""
        found: dict[bytes, Outcome] = {}
        with self._lock:
            for chunk in _chunks(keys):
                statement = _GET.format(",".join("?" * len(chunk)))
                rows = self._guard(partial(_rows_of, self._open, statement, chunk))
                for row in rows:
                    found[row[0]] = self._outcome(row[1:])
        return found

    def _outcome(self, row: _Row) -> Outcome:
        """Many rows say the same, and outcomes are immutable: equal rows share one."""
        known = self._memo.get(row)
        if known is None:
            known = _read(row)
            if len(self._memo) < _MEMO:
                self._memo[row] = known
        return known

    def put_many(self, outcomes: Iterable[tuple[bytes, Outcome]]) -> int:
        """Store outcomes, in one transaction; return how many of them were fit to be stored.

        Fit are values, and what a reward said on purpose: "returned None" and "abstained". Time limits, crashes and
        errors are not: they may not happen again.
        """
        rows = [row for key, outcome in outcomes if (row := _row(key, outcome)) is not None]
        if rows:
            with self._lock:
                self._guard(lambda: self._write(rows))
        return len(rows)

    def _write(self, rows: list[_Row]) -> None:
        self._open.execute("BEGIN IMMEDIATE")
        try:
            self._open.executemany(_PUT, rows)
            self._open.execute("COMMIT")
        except BaseException:
            if self._open.in_transaction:  # a full disk has rolled back already
                self._open.execute("ROLLBACK")
            raise

    def __len__(self) -> int:
        with self._lock:
            (count,) = self._guard(lambda: self._open.execute("SELECT count(*) FROM outcomes").fetchone())
        return int(count)

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        with self._lock:
            self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rows_of(connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()) -> list[_Row]:
    return connection.execute(statement, values).fetchall()


def fit(outcome: Outcome) -> bool:
    """Return whether an outcome may be kept: a value, or what the reward said on purpose."""
    return (
        outcome.value is not None
        or outcome.reason == "returned None"
        or outcome.reason.startswith("abstained")
    )


def _chunks(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Sorted, so that neighbours in the file are read together."""
    ordered = sorted(set(keys))
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]


def _row(key: bytes, outcome: Outcome) -> _Row | None:
    """Return what is stored of an outcome (empty texts as NULL); None if it is not to be stored."""
    if not fit(outcome):
        return None
    value: Any = outcome.value
    if isinstance(value, tuple):
        value = json.dumps([None if math.isnan(each) else each for each in value])
    try:
        detail = json.dumps(dict(outcome.detail)) if outcome.detail else None
    except (
        TypeError,
        ValueError,
    ):  # not plain data, which is the reward's fault: it is asked again next time
        return None
    return (
        key,
        value,
        outcome.reason or None,
        outcome.confidence,
        outcome.kind or None,
        detail,
        outcome.sandbox or None,
    )


def _read(row: _Row) -> Outcome:
    value, reason, confidence, kind, detail, sandbox = row
    if isinstance(value, str):
        value = tuple(math.nan if each is None else float(each) for each in json.loads(value))
    return Outcome(
        value=value,
        reason=reason or "",
        confidence=confidence,
        kind=kind or "",
        detail=json.loads(detail) if detail else {},
        cached=True,
        sandbox=sandbox or "",
    )
