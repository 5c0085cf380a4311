"""Collects all that is wrong with a message, so that its sender learns it at once."""

from typing import Any

from service.errors import FieldViolation, InvalidRequest

# Of a message that is wrong all over, nobody reads more.
MAX_VIOLATIONS = 64


class Violations:
    """Collects what is wrong with a message, up to a bound."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        if len(self.found) < MAX_VIOLATIONS:
            self.found.append(FieldViolation(field, description))

    def require(self, condition: bool, field: str, wanted: str, got: object) -> None:
        if not condition:
            self.add(field, f"must {wanted}. Got {got}.")

    def choice(self, field: str, choices: dict[int, Any], value: int, enum: Any) -> Any:
        if value in choices:
            return choices[value]
        names = ", ".join(enum.Name(key) for key in choices)
        got = enum.Name(value) if value in enum.values() else value
        self.add(field, f"must be one of {names}. Got {got}.")
        return None

    def raise_if_any(self) -> None:
        if self.found:
            raise InvalidRequest(self.found)
