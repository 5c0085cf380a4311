"""A process that writes to a journal as fast as it can, says what it was told is kept, and is killed."""

import multiprocessing
import random
import threading
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from alerts import alert, text

from monitors.errors import JournalError
from monitors.journal import Journal
from monitors.journal_retention import Keep

THREADS = 3
MAX_ALERTS = 200
"""Retention, which is at work meanwhile, keeps so many of the newest."""
LONGEST_SECONDS = 0.25


class Writer:
    """The process's side."""

    def __init__(self, journal: Journal, said: Connection) -> None:
        self._journal, self._said = journal, said
        self._turn = threading.Lock()

    def write(self, seed: int) -> None:
        """Appends steps of one to four alerts, with a review or retention now and then."""
        rng = random.Random(seed)
        for number in count():
            step = [alert(number, text=text("x" * rng.randrange(4, 3000))) for _ in range(rng.randrange(1, 5))]
            self._journal.append(step)
            self.say([record.id for record in step])  # once append has returned; nothing before
            if rng.random() < 0.1:
                with suppress(JournalError):  # another thread's retention may have been faster
                    self._journal.review(step[0].id, verdict="true", reviewer="ann")
            if rng.random() < 0.1:
                self._journal.retain(Keep(max_alerts=MAX_ALERTS))

    def say(self, ids: list[str]) -> None:
        with self._turn:
            self._said.send(ids)


def main(path: Path, url: str | None, seed: int, said: Connection) -> None:
    with Journal.open(path) as journal:
        if url is not None:
            from monitors.forwarder import Forwarder

            Forwarder(journal, url).start()
        writer = Writer(journal, said)
        writer.say([])  # ready
        threads = [threading.Thread(target=writer.write, args=(seed + i,), daemon=True) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def killed_writer(path: Path, rng: random.Random, url: str | None = None) -> list[str]:
    """Ids of the alerts that a writer said are kept before it was killed, at a moment of `rng`'s choice.

    A server process imports all there is once and forks: importing takes longer than running here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_journal"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=main, args=(path, url, rng.randrange(10**9), sender))
    process.start()
    sender.close()
    said = [*receiver.recv()]
    process.join(rng.uniform(0, LONGEST_SECONDS))
    assert process.exitcode is None, "the writer failed"
    process.kill()
    with suppress(EOFError, OSError):  # OSError: killed while it was saying something
        while True:
            said += receiver.recv()
    process.join()
    process.close()
    receiver.close()
    return said
