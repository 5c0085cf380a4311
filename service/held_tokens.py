"""Tokens that the model has read and the client has not got: held back until a policy has seen the tokens after them.

A token leaves once as many tokens as the hold have been read behind it; alerts leave with the token that raised them.
What a policy withholds never leaves and stays in its place as a gap: its alerts leave in their turn, and what is held
before it comes no later.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.request import AlertEvent, Event, TokenEvent


@dataclass(slots=True)
class _Held:
    token: TokenEvent | None
    """None once it was withheld."""
    alerts: list[AlertEvent]


class HeldTokens:
    """One reply's, oldest first."""

    def __init__(self) -> None:
        self._held: deque[_Held] = deque()

    @property
    def last(self) -> TokenEvent | None:
        """The token read last, if it is still here."""
        return self._held[-1].token if self._held else None

    def put(self, token: TokenEvent, alerts: list[AlertEvent]) -> None:
        """A token that was read, and what it raised."""
        self._held.append(_Held(token, alerts))

    def release(self, keep: int) -> list[Event]:
        """All but the last `keep` tokens, each followed by its alerts."""
        events: list[Event] = []
        while len(self._held) > keep:
            held = self._held.popleft()
            events += [*([] if held.token is None else [held.token]), *held.alerts]
        return events

    def withhold(self, num_last: int) -> list[TokenEvent]:
        """Take so many of the last tokens away, as far as they are here and were not taken before; these tokens."""
        taken = []
        for held in list(self._held)[-num_last:]:
            if held.token is not None:
                taken.append(held.token)
                held.token = None
        return taken

    def tell(self, of: Callable[[AlertEvent], AlertEvent]) -> None:
        """Put `of` them in the place of the alerts that the token read last raised."""
        self._held[-1].alerts = [of(alert) for alert in self._held[-1].alerts]

    def abandon(self) -> list[AlertEvent]:
        """Drop all of them; the alerts that they raised, which still have to be told."""
        alerts = [alert for held in self._held for alert in held.alerts]
        self._held.clear()
        return alerts
