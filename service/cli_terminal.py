"""Where the command line writes: the reply to stdout, everything about it beside.

On a terminal both go to the same place, so that an alert stands where it happened. Elsewhere (a pipe, a file) stdout
holds the reply alone, and notes go to stderr.
"""

import os
import sys
from typing import Any

from google.protobuf.json_format import MessageToJson
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments

from service import monitor_view, rendering, twin_view
from service.client_events import Alert, Baseline, Event, Finished, Started, Token
from service.rendering import Peak

_FILE_WIDTH = 150


class Terminal:
    """stdout and stderr of one command."""

    def __init__(self, color: str = "auto") -> None:
        """`color` is auto, always or never. rich itself honours NO_COLOR and TERM for auto."""
        self._out = _console(sys.stdout, color)
        self._notes = self._out if sys.stdout.isatty() else _console(sys.stderr, color)
        self._at_line_start = True

    @property
    def shows_color(self) -> bool:
        """Whether what goes to stdout is coloured."""
        return self._out.color_system is not None and not self._out.no_color

    def write(self, segments: list[Segment]) -> None:
        """Write part of the reply, as it is: no wrapping, no tabs expanded."""
        if not segments:
            return
        self._out.print(Segments(segments), end="", soft_wrap=True)
        self._at_line_start = segments[-1].text.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line, if the reply stands in the middle of one."""
        if not self._at_line_start:
            self.write([Segment("\n")])

    def note(self, renderable: RenderableType | None) -> None:
        """Write something about the reply, on lines of its own. None is nothing."""
        if renderable is None:
            return
        if self._notes is self._out:
            self.end_line()
        self._notes.print(renderable, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Write an answer that is not a reply: a table, a description."""
        self._out.print(renderable, soft_wrap=True)

    def json(self, message: Any) -> None:
        """Write a wire message as one line of JSON, all its fields present, named as in the contract."""
        line = MessageToJson(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
        )
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


class ReplyView:
    """Shows the events of one request as they come."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._started: Started | None = None
        self.peaks: list[Peak] = []

    def show(self, event: Event) -> None:
        """Show one event. A Started comes before anything else."""
        match event:
            case Started():
                self._started = event
                self.peaks = [Peak()] * len(event.watched)
                self._terminal.note(rendering.unverified_warning(event.sae))
                self._terminal.note(monitor_view.cautions(event.monitors))
            case Token():
                self.show_token(event)
            case Alert():
                self._terminal.note(rendering.alert_line(event))
            case Baseline(Alert() as alert):
                self._terminal.note(twin_view.baseline_alert(alert))
            case Baseline():
                pass  # its text is shown beside the reply, at the end
            case Finished():
                self._show_end(event)

    def show_token(self, token: Token) -> None:
        """Show a token, of a reply or of a text that was scored."""
        if not self.peaks:
            self.peaks = [Peak()] * len(token.watched)
        self.peaks = rendering.raise_peaks(self.peaks, token)
        self._terminal.write(rendering.token_segments(token, rendering.scales(token.watched, self.peaks)))

    def _show_end(self, finished: Finished) -> None:
        assert self._started is not None, "the client lets no stream begin without Started"
        self._terminal.end_line()
        if self._started.watched:
            self._terminal.note(rendering.legend(self._started.watched, self.peaks))
        for line in rendering.monitor_lines(finished.monitors, self._started.monitors):
            self._terminal.note(line)
        self._terminal.note(rendering.footer(finished, seed=self._started.seed))
        if finished.twin is not None:
            for part in twin_view.comparison(finished.twin, self._started):
                self._terminal.note(part)


def _console(file: Any, color: str) -> Console:
    force = {"auto": None, "always": True, "never": False}[color]
    no_color = {"auto": None, "always": False, "never": True}[color]
    # A file has no width to ask for, and in the 80 columns that rich assumes, tables lose their last ones.
    is_told = file.isatty() or os.environ.get("COLUMNS", "").isdigit()
    width = None if is_told else _FILE_WIDTH
    return Console(
        file=file, width=width, force_terminal=force, no_color=no_color, highlight=False, markup=False, emoji=False
    )
