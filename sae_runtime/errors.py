"""The exceptions of `sae_runtime`.

    RuntimeFault
    ├── ModelError        a language model that can't be found, verified or fitted into memory
    ├── CheckpointError   a dictionary that can't be read as what it says it is
    ├── ConversationError a conversation that the model's chat template can't render as it is
    ├── SteeringError     a steering spec that can't be carried out
    ├── ProbeError        a probe that can't be computed on this model
    └── TapError          the tap saw something else than the tokens of the step

Messages name the thing, the value wanted and the value got, in one line.
"""


class RuntimeFault(Exception):
    """Base of everything `sae_runtime` raises on purpose."""


class ModelError(RuntimeFault):
    """The language model can't be loaded as asked."""


class CheckpointError(RuntimeFault):
    """The dictionary is missing, damaged, or does not belong to the served model."""


class ConversationError(RuntimeFault, ValueError):
    """A conversation that the model's chat template refuses, or doesn't render as it is."""

    def __init__(self, field: str, description: str) -> None:
        """`field` is a path from the conversation on, `chat.messages[1].content`; `description` what it must be."""
        super().__init__(f"{field} {description}")
        self.field, self.description = field, description


class SteeringError(RuntimeFault, ValueError):
    """A steering spec that makes no sense for this dictionary or model."""


class ProbeError(RuntimeFault):
    """A linear probe of another width, or with numbers that are none."""


class TapError(RuntimeFault):
    """The tap did not see exactly the tokens of the step. Never ignored: it means unmonitored tokens."""

    def __init__(self, message: str, *, num_wanted: int = 0, num_seen: int = 0) -> None:
        """The counts are those of a step whose tokens the tap missed, in whole or in part."""
        super().__init__(message)
        self.num_wanted, self.num_seen = num_wanted, num_seen


def one_line(error: BaseException) -> str:
    """An error of somebody else's as a part of our messages."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def plain_reason(error: BaseException) -> str:
    """Why something could not be done, where the message names the file already: the system's words, or the error's."""
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
