"""Between the engine and the journal: a step's alerts in, on disk when it returns, or named as lost."""

import logging
from collections.abc import Collection, Sequence

from monitors.alert_record import AlertRecord
from monitors.errors import JournalError
from service.alert_evidence import Raised
from service.alert_records import RecordMaker
from service.journal_keeper import JournalKeeper

logger = logging.getLogger(__name__)


class AlertKeeper:
    """Keeps what the engine raises."""

    def __init__(self, maker: RecordMaker, journal: JournalKeeper) -> None:
        self._maker, self._journal = maker, journal

    def keep(self, raised: Sequence[Raised]) -> Collection[str]:
        """Engine thread: keeps a step's alerts with one write. Ids of the requests that have one that is not kept.

        Whatever goes wrong is those requests' own, and never the engine's.
        """
        lost: set[str] = set()
        records: list[AlertRecord] = []
        for each in raised:
            try:
                records.append(self._maker.record(each))
            except Exception:
                logger.exception("no record could be made of an alert of request %s", each.event.request_id)
                lost.add(each.event.request_id)
        if not records:  # nothing is written, which says nothing of the journal
            return lost
        try:
            self._journal.append(records)
        except JournalError:  # which the journal's keeper has logged
            lost.update(record.request_id for record in records)
        except Exception:
            logger.exception("%d alerts could not be kept", len(records))
            lost.update(record.request_id for record in records)
        return lost
