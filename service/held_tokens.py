"""Tokens that the model has read and the client has not got: held back until a policy has seen the tokens after them.

A token leaves once as many tokens as the hold have been read behind it; alerts leave with the token that raised them.
What a policy withholds never leaves, but for the alerts: those always do.
"""

from collections import deque
from typing import NamedTuple

from service.request import AlertEvent, Event, TokenEvent


class _Held(NamedTuple):
    token: TokenEvent
    alerts: list[AlertEvent]


class Dropped(NamedTuple):
    """Tokens that will not leave."""

    tokens: list[TokenEvent]
    alerts: list[AlertEvent]
    """Those that they raised; these still have to be told."""

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


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
            token, alerts = self._held.popleft()
            events += [token, *alerts]
        return events

    def drop(self) -> Dropped:
        """All of them."""
        held = list(self._held)
        self._held.clear()
        return Dropped([each.token for each in held], [alert for each in held for alert in each.alerts])
