"""How the command line shows what a journal holds. Pure functions from journal's types to rich's.

What a model or a client wrote passes `sanitize`: a terminal would obey what is in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from monitors.alert_record import AlertRecord, Component, KeptText, Series
from monitors.journal_chain import Verification
from monitors.journal_precision import Precision
from monitors.journal_reader import KeptAlert
from service.client_alerts import AlertReplay, JournalAlert, ReplayComparison
from service.rendering import sanitize

CONTEXT_CHARS = 400
"""Of the text before the span, so much is shown."""
LEVEL_STYLES = {"info": "", "warning": "yellow", "critical": "bold red"}


def _alert_table() -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("time", "id", "monitor", "level", "score", "threshold", "tokens", "label", "review", "taken"):
        table.add_column(name, justify="right" if name in ("score", "threshold", "tokens") else "left", no_wrap=True)
    return table


def alert_table(alerts: Iterable[KeptAlert]) -> Table:
    """One line for each."""
    table = _alert_table()
    for kept in alerts:
        record = kept.record
        firing = record.state == "firing"
        table.add_row(
            _time(record.time),
            record.id,
            Text(sanitize(record.monitor)),
            Text(record.level if firing else "cleared", style=LEVEL_STYLES[record.level] if firing else "dim"),
            f"{record.score:.3g}",
            f"{record.threshold:.3g}",
            f"{record.span_start}-{record.position}",
            Text(sanitize(record.label)),
            kept.review.verdict if kept.review else "",
            "yes" if kept.acknowledgements else "",
        )
    return table


def told_alert_table(alerts: Iterable[JournalAlert]) -> Table:
    """The same of a server's alerts."""
    table = _alert_table()
    for told in alerts:
        alert = told.alert
        firing = alert.state == "firing"
        table.add_row(
            _time(datetime.fromtimestamp(alert.time_seconds, UTC)),
            Text(sanitize(alert.alert_id)),
            Text(sanitize(alert.monitor)),
            Text(
                alert.severity if firing else "cleared", style=LEVEL_STYLES.get(alert.severity, "") if firing else "dim"
            ),
            f"{alert.score:.3g}",
            f"{alert.threshold:.3g}",
            f"{alert.span_start}-{alert.position}",
            Text(sanitize(alert.label)),
            told.review.verdict if told.review else "",
            "yes" if told.acknowledgements else "",
        )
    return table


def replay_lines(replay: AlertReplay) -> Iterator[RenderableType]:
    """What came of a replay, and what is not as it was."""
    for difference in replay.differences:
        yield Text(sanitize(f"not as it was: {difference}"), style="yellow")
    yield from _comparison("read again", replay.read)
    if replay.generated is None:
        yield Text("written again: nothing to write, the alert is not in a generated reply", style="dim")
    else:
        yield from _comparison("written again", replay.generated)


def _comparison(title: str, of: ReplayComparison) -> Iterator[RenderableType]:
    verdict = "reproduced" if of.reproduced else "NOT REPRODUCED"
    tokens = f"{of.num_tokens} tokens of the reply the same"
    if of.first_difference is not None:
        tokens = f"another token at {of.first_difference}"
    raised = "alert raised again" if of.raised_again else "alert not raised again"
    style = "" if of.reproduced else "bold red"
    yield Text(f"{title}: {verdict} within {of.tolerance:g}; {tokens}; {raised}", style=style)
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("series", "kind", "tokens", "missing", "largest difference", "of at most", "within"):
        table.add_column(name, justify="left" if name in ("series", "kind") else "right", no_wrap=True)
    for each in of.series:
        figures = str(each.num_compared), str(each.num_missing), f"{each.largest_difference:.3g}", f"{each.scale:.3g}"
        table.add_row(Text(sanitize(each.name)), each.kind, *figures, "yes" if each.within_tolerance else "NO")
    yield table


def alert_parts(kept: KeptAlert) -> Iterator[RenderableType]:
    """Everything that is kept of one."""
    yield _facts(kept)
    yield from _text(kept.record)
    if kept.record.readings:
        yield Text("\nreadings", style="bold")
        yield _readings(kept.record.span_start, kept.record.readings)
    for said in kept.acknowledgements:
        yield Text(sanitize(f"{_time(said.time)} taken by {said.by}{_note(said.note)}"))
    for review in kept.reviews:
        yield Text(sanitize(f"{_time(review.time)} {review.verdict}, says {review.reviewer}{_note(review.note)}"))


def precision_table(found: Sequence[Precision]) -> Table:
    """One line for each monitor and pack."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("monitor", "pack", "true", "false", "unsure", "precision", "95 %"):
        table.add_column(name, justify="left" if name in ("monitor", "pack") else "right", no_wrap=True)
    for each in found:
        low, high = each.interval
        share = "" if each.precision is None else f"{each.precision:.3f}"
        counts = str(each.num_true), str(each.num_false), str(each.num_unsure)
        pack = (each.pack_sha256 or "")[:12]
        table.add_row(Text(sanitize(each.monitor)), pack, *counts, share, f"{low:.3f} to {high:.3f}" if share else "")
    return table


def verification_line(result: Verification) -> Text:
    """What was found, and the head to note down."""
    first = f", from {result.first_seq}" if result.first_seq not in (None, 1) else ""
    head = f"head {result.head.seq}:{result.head.hash}"
    if result.finding is None:
        line = f"journal {result.journal} holds: {result.num_rows} entries{first}, {head}"
        # What a copy that was made of the file alone looks like.
        empty = "; an empty journal shows nothing" if not result.num_rows else ""
        return Text(sanitize(line + empty))
    where = f"journal {result.journal} is BROKEN: {result.finding}"
    return Text(sanitize(where), style="bold red")


def _facts(kept: KeptAlert) -> Table:
    record = kept.record
    pack = "none" if record.pack is None else f"{record.pack.version}, sha256 {record.pack.sha256[:12]}"
    validated = "validated" if record.validated else "NOT VALIDATED"
    rows = {
        "alert": f"{record.id}, entry {kept.seq} of journal {kept.journal}",
        "time": record.time.isoformat(timespec="milliseconds"),
        "monitor": f"{record.monitor} ({validated}), pack {pack}",
        "state": f"{record.state}, {record.level}, score {record.score:.4g} against {record.threshold:.4g}",
        "tokens": f"{record.span_start} to {record.position}, {record.role}",
        "request": f"{record.request_id} {record.label!r}" if record.label else record.request_id,
        "action": record.action,
        "parts": _parts(record),
        "steering": "; ".join(f"{s.op} {s.strength:g} {s.unit}, {s.scope}, by {s.source}" for s in record.steering),
        "seed": ""
        if record.generation is None
        else f"{record.generation.seed}, temperature "
        f"{record.generation.temperature:g}, at most {record.generation.max_tokens} tokens",
        "model": f"{record.model.name} ({record.model.quantization}, {record.model.dtype}), {record.model.sha256[:12]}",
        "dictionary": ""
        if record.sae is None
        else f"{record.sae.name} at {record.sae.hook_point}, {record.sae.sha256[:12]}",
        "server": f"{record.server_version}, passes: {record.passes}" if record.passes else record.server_version,
    }
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows.items():
        if value:
            grid.add_row(Text(name, style="dim"), Text(sanitize(value)))
    return grid


def _parts(record: AlertRecord) -> str:
    components = [f"{part.name} {part.contribution:.3g}{_scored(part)}" for part in record.components]
    return ", ".join([*components, *(f"latent {part.feature} {part.contribution:.3g}" for part in record.features)])


def _scored(part: Component) -> str:
    return "" if part.score is None else f" (score {part.score:.3g})"


def _text(record: AlertRecord) -> Iterator[RenderableType]:
    text = record.text
    if not isinstance(text, KeptText):
        yield Text("\nthe text was not kept" if text is not None else "\nabout no text", style="dim")
        return
    for message in text.messages[:-1]:
        yield Text(f"\n{sanitize(message.role)}", style="bold")
        yield Text(sanitize(_end_of(message.content)))
    last = text.messages[-1]
    yield Text(f"\n{sanitize(last.role)}", style="bold")
    before = _end_of(last.content[: text.span_from_char])
    after = last.content[text.span_to_char :]
    marked = Text(sanitize(before)).append(f"»{sanitize(text.span)}«", style="reverse").append(sanitize(after))
    yield marked


def _end_of(text: str) -> str:
    return text if len(text) <= CONTEXT_CHARS else f"[...]{text[-CONTEXT_CHARS:]}"


def _readings(start: int, readings: Sequence[Series]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("at", justify="right")
    for series in readings:
        table.add_column(Text(sanitize(series.name)), justify="right")
    for offset, values in enumerate(zip(*(series.values for series in readings), strict=True)):
        table.add_row(str(start + offset), *("" if value is None else f"{value:.3g}" for value in values))
    return table


def _note(note: str) -> str:
    return f": {note}" if note else ""


def _time(time: datetime) -> str:
    """In UTC, to the second: `2026-03-01 12:00:00Z`."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ")
