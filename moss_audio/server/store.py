"""What batches keep: uploaded files, jobs, and the result of every line, each written as soon as it is known.

SQLite in one file, so that neither a restart nor kill -9 loses anything. Knows no models and no HTTP.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moss_audio.server.refusals import Refusal
from moss_audio.server.settings import Settings, SettingsError

_TABLES = """
create table if not exists files (
    id text primary key, owner text not null, created real not null, name text not null, n_bytes int not null,
    content blob not null);
create table if not exists batches (
    id text primary key, owner text not null, created real not null, ended real, endpoint text not null,
    file text not null, status text not null, metadata text not null);
create table if not exists lines (
    batch text not null references batches(id) on delete cascade, number int not null, custom_id text not null,
    body text not null, attempts int not null default 0, status int, result text, primary key (batch, number));
create index if not exists pending on lines (batch) where status is null;
"""

ENDED = ("completed", "cancelled", "expired")


@dataclass(frozen=True)
class StoredFile:
    id: str
    created: int
    name: str
    n_bytes: int


@dataclass(frozen=True)
class Batch:
    """A job. `done` lines have a result, of which `failed` are refusals."""

    id: str
    created: int
    expires: int
    ended: int | None
    endpoint: str
    file: str
    status: str
    metadata: dict[str, str]
    total: int
    done: int
    failed: int


@dataclass(frozen=True)
class Line:
    """One request of a batch."""

    batch: str
    owner: str
    endpoint: str
    number: int
    custom_id: str
    body: dict[str, Any]
    attempts: int


class Store:
    """All calls may come from any thread, one at a time inside."""

    def __init__(self, settings: Settings) -> None:
        """Opens the file of `settings.store`, or memory. Raises `SettingsError` where it cannot be."""
        self._settings, self._lock = settings, threading.Lock()
        try:
            if settings.store:  # made here, so that nobody else may read it
                os.close(os.open(settings.store, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(settings.store or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.executescript("pragma journal_mode=wal; pragma synchronous=full; pragma foreign_keys=on;")
            self._db.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"store is {settings.store!r}, which cannot be opened: {error}") from error
        self._last = ""

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add_file(self, file_id: str, owner: str, name: str, content: bytes) -> StoredFile:
        """Keep a file. Raises `Refusal` where the store is full."""
        self._check_room(len(content))
        row = (file_id, owner, time.time(), name, len(content), content)
        self._run("insert into files values (?, ?, ?, ?, ?, ?)", *row)
        return self.file(file_id, owner)

    def file(self, file_id: str, owner: str) -> StoredFile:
        """Raises `Refusal` for a file that is not the owner's."""
        query = "select id, created, name, n_bytes from files where id = ? and owner = ?"
        return _file(self._own(query, file_id, owner))

    def files(self, owner: str) -> list[StoredFile]:
        query = "select id, created, name, n_bytes from files where owner = ? order by created desc, rowid desc"
        return [_file(row) for row in self._all(query, owner)]

    def content(self, file_id: str, owner: str) -> bytes:
        return bytes(self._own("select content from files where id = ? and owner = ?", file_id, owner)[0])

    def delete_file(self, file_id: str, owner: str) -> None:
        self.file(file_id, owner)
        self._run("delete from files where id = ?", file_id)

    def add_batch(
        self, batch_id: str, owner: str, endpoint: str, file_id: str, metadata: dict[str, str],
        lines: Sequence[tuple[str, str]],
    ) -> Batch:  # fmt: skip
        """Start a job of `lines`, pairs of `custom_id` and the body as JSON, all or nothing.

        Raises `Refusal` where the store is full or the owner has as many batches as may be open.
        """
        self._check_room(sum(len(body) for _, body in lines))
        most = self._settings.max_batches_per_key
        if self._one("select count(*) from batches where owner = ? and ended is null", owner)[0] >= most:
            message = f"{most} of your batches have not ended; wait for one, or cancel it"
            raise Refusal(429, "too_many_batches", message, retry_after=60)
        rows = [(batch_id, number, custom_id, body) for number, (custom_id, body) in enumerate(lines, 1)]
        job = (batch_id, owner, time.time(), endpoint, file_id, "in_progress", json.dumps(metadata))
        with self._lock:
            self._db.execute("begin immediate")
            try:
                self._db.execute("insert into batches values (?, ?, ?, null, ?, ?, ?, ?)", job)
                self._db.executemany("insert into lines (batch, number, custom_id, body) values (?, ?, ?, ?)", rows)
                self._db.execute("commit")
            except BaseException:
                self._db.execute("rollback")
                raise
        return self.batch(batch_id, owner)

    def batch(self, batch_id: str, owner: str) -> Batch:
        """Raises `Refusal` for a batch that is not the owner's."""
        return self._batch(self._own(f"{_BATCH} where b.id = ? and b.owner = ? group by b.id", batch_id, owner))

    def batches(self, owner: str, limit: int) -> list[Batch]:
        query = f"{_BATCH} where b.owner = ? group by b.id order by b.created desc, b.rowid desc limit ?"
        return [self._batch(row) for row in self._all(query, owner, limit)]

    def cancel(self, batch_id: str, owner: str) -> Batch:
        """No further line is started; results stay."""
        if self.batch(batch_id, owner).status not in ENDED:
            self._run("update batches set status = 'cancelled', ended = ? where id = ?", time.time(), batch_id)
        return self.batch(batch_id, owner)

    def next_line(self) -> Line | None:
        """A line that has no result, of another batch than the last one if there is any; counts the attempt."""
        query = (
            "select l.batch, b.owner, b.endpoint, l.number, l.custom_id, l.body, l.attempts from lines l "
            "join batches b on b.id = l.batch where l.status is null and b.status = 'in_progress' "
            "order by l.batch <= ?, l.batch, l.number limit 1"
        )
        found = self._all(query, self._last)
        if not found:
            return None
        batch, owner, endpoint, number, custom_id, body, attempts = found[0]
        self._last = batch
        self._run("update lines set attempts = attempts + 1 where batch = ? and number = ?", batch, number)
        return Line(batch, owner, endpoint, number, custom_id, json.loads(body), attempts)

    def give_back(self, line: Line) -> None:
        """The line was not to blame: the attempt does not count."""
        query = "update lines set attempts = ? where batch = ? and number = ?"
        self._run(query, line.attempts, line.batch, line.number)

    def finish_line(self, line: Line, status: int, result: str) -> None:
        """Keep a result; the batch ends with its last one."""
        self._run("update lines set status = ?, result = ? where batch = ? and number = ?", status, result, line.batch,
                  line.number)  # fmt: skip
        self._run(
            "update batches set status = 'completed', ended = ? where id = ? and status = 'in_progress' and not exists "
            "(select 1 from lines where batch = ? and status is null)", time.time(), line.batch, line.batch,
        )  # fmt: skip

    def results(self, batch_id: str, owner: str, *, failed: bool) -> Iterator[str]:
        """The results of a batch in the order of its lines, those that succeeded or those that did not."""
        self.batch(batch_id, owner)
        number, is_failed = 0, "<>" if failed else "="
        query = f"select number, result from lines where batch = ? and number > ? and status {is_failed} 200 "
        while rows := self._all(query + "order by number limit 100", batch_id, number):
            yield from (result for _, result in rows)
            number = rows[-1][0]

    def expire(self) -> None:
        """End batches that took too long, with the results that there are, and delete what is older than is kept."""
        now = time.time()
        before = now - self._settings.batch_seconds
        self._run("delete from batches where ended < ?", before)
        self._run("update batches set status = 'expired', ended = ? where ended is null and created < ?", now, before)
        self._run("delete from files where created < ?", before)

    def _batch(self, row: Any) -> Batch:
        name, created, ended, endpoint, file, status, metadata, total, done, failed = row
        expires, when = int(created + self._settings.batch_seconds), int(ended) if ended is not None else None
        return Batch(
            name, int(created), expires, when, endpoint, file, status, json.loads(metadata), total, done, failed
        )

    def _check_room(self, n_bytes: int) -> None:
        pages, free, size = (self._one(f"pragma {name}")[0] for name in ("page_count", "freelist_count", "page_size"))
        if (pages - free) * size + n_bytes > self._settings.max_store_bytes:
            raise Refusal(413, "store_full", "the server keeps as much as it can; delete some of your files")

    def _run(self, query: str, *values: Any) -> None:
        with self._lock:
            self._db.execute(query, values)

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _one(self, query: str, *values: Any) -> Any:
        return self._all(query, *values)[0]

    def _own(self, query: str, name: str, owner: str) -> Any:
        found = self._all(query, name, owner)
        if not found:
            raise Refusal(404, "not_found", f"there is no {name[:80]!r} of yours")
        return found[0]


_BATCH = (
    "select b.id, b.created, b.ended, b.endpoint, b.file, b.status, b.metadata, count(l.number), count(l.status), "
    "coalesce(sum(l.status <> 200), 0) from batches b left join lines l on l.batch = b.id"
)


def _file(row: Any) -> StoredFile:
    return StoredFile(row[0], int(row[1]), row[2], row[3])
