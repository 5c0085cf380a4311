"""What is kept of an alert: everything that a person needs to judge it, and that a replay needs to make it again.

`AlertRecord` is plain data, checked when it is made. Its text is kept in full (`KeptText`) or as hashes alone
(`HashedText`, see `text_key`); nothing else in it quotes the conversation but `label`, which is the client's own.
Positions count from the prompt's first token.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
    model_validator,
)

Level = Literal["info", "warning", "critical"]
AlertState = Literal["firing", "cleared"]

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TimeId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")]


def in_utf8(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which has no UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Text = Annotated[str, AfterValidator(in_utf8)]
"""Any text. Half of a surrogate pair becomes U+FFFD: an alert is not refused for it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(time: datetime) -> int:
    """Whole microseconds since 1970: exact, which `timestamp()` is not."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def time_of(time_us: int) -> datetime:
    """The time so many microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=time_us)


def _in_utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("must be a time with its offset from UTC")
    return time.astimezone(UTC)


Time = Annotated[datetime, AfterValidator(_in_utc)]


class Record(BaseModel):
    """Base of all that is kept: no unknown keys, no NaN, and no change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Timed(Record):
    """Base of what stands in the journal by itself."""

    id: TimeId
    """Of `time_ids.new_id`; nothing else in any journal has it."""
    time: Time
    """When it happened, to the microsecond."""

    @field_serializer("time", when_used="json")
    def _with_all_digits(self, time: datetime) -> str:
        return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Message(Record):
    """Part of a conversation."""

    role: str
    """`system`, `user`, `assistant`, or `text` for plain text without a chat template."""
    content: Text


class Spoken(Record):
    """Tokens of a prompt that monitors score as the words of one role."""

    role: str
    start: Count
    end: Count
    """Positions [start, end)."""


class Enclosure(Record):
    """What encloses a block of reasoning in a reply."""

    opening: Annotated[str, Field(min_length=1)]
    closing: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _differ(self) -> "Enclosure":
        if self.opening == self.closing:
            raise ValueError(f"closing must be another text than opening, got {self.closing!r} for both")
        return self


class KeptText(Record):
    """The conversation up to the token that raised the alert."""

    kind: Literal["text"] = "text"
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    """The last one is what the alert is in, and ends with the token at the alert's `position`."""
    span_from_char: Count
    span_to_char: Count
    """The alert's span, as a range [from, to) of the last message's content."""
    prompt_ids: tuple[Count, ...]
    """The whole prompt as the model read it, chat template included."""
    reply_ids: tuple[Count, ...]
    """Generated tokens up to `position`, that one included; none if the alert is in the prompt."""
    stop: tuple[Text, ...] = ()
    """Texts that would have ended the reply."""
    spoken: tuple[Spoken, ...] = ()
    """Whose words the prompt's tokens are, as far as a monitor scores them; the reply's are the assistant's."""
    reasoning: tuple[Enclosure, ...] | None = None
    """What enclosed reasoning in the reply; None where there is none, and in records from before it was kept."""

    @property
    def span(self) -> str:
        """The text that the alert is about."""
        return self.messages[-1].content[self.span_from_char : self.span_to_char]

    @model_validator(mode="after")
    def _lies_within(self) -> "KeptText":
        length = len(self.messages[-1].content)
        if not self.span_from_char <= self.span_to_char <= length:
            raise ValueError(
                f"span must lie within the last message's {length} characters, "
                f"got [{self.span_from_char}, {self.span_to_char})"
            )
        return self


class HashedText(Record):
    """What is left of the text if none is kept: keyed hashes, by which whoever has text and key can prove it the one.

    `text_key.TextKey.hide` makes it and says what is hashed.
    """

    kind: Literal["hashes"] = "hashes"
    key_id: str
    """Which key: the first hex digits of its own sha256."""
    messages_hmac: Sha256
    span_hmac: Sha256
    prompt_ids_hmac: Sha256
    reply_ids_hmac: Sha256
    num_prompt_tokens: Count
    num_reply_tokens: Count


class PackRef(Record):
    """The file that defines a monitor."""

    version: str
    sha256: Sha256


class ModelRef(Record):
    """The weights that were read."""

    name: str
    sha256: Sha256
    quantization: str
    dtype: str
    chat_template_sha256: Sha256 | None = None
    """None if the model has no chat template."""


class SaeRef(Record):
    """The dictionary that the latents belong to."""

    name: str
    sha256: Sha256
    hook_point: str


class Generation(Record):
    """How tokens were drawn; the seed is the one in use, whether or not the client gave it."""

    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float
    top_k: Count
    max_tokens: Count
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    ignore_eos: bool = False


class SteeringRef(Record):
    """One operation on the residual that was in force, as asked for. Operations stand in the order they are done."""

    feature: Count | None = None
    vector: str | None = None
    """Base64 of little-endian 32-bit floats; this or `feature`."""
    op: str
    strength: float
    unit: str
    scope: str
    window: tuple[Count, Count] | None = None
    """Positions [start, end)."""
    source: str = "request"
    """`request`, or `policy:NAME` if that monitor's alert turned it on."""
    active_from: Count = 0
    """First position at which it was in force."""

    @model_validator(mode="after")
    def _has_one_direction(self) -> "SteeringRef":
        if (self.feature is None) == (self.vector is None):
            raise ValueError("steering must have a feature or a vector, got both or none")
        return self


class Component(Record):
    """A component's part in the score."""

    name: str
    score: float | None = None
    """Its rolling mean, standardised; None in records from before it was kept."""
    contribution: float
    """What it gave to the alert's score; those of all components sum to it. Where one component decides (min, max, a
    closed gate) it gave all of it and the others 0, whatever they read."""

    @model_serializer(mode="wrap")
    def _as_it_was(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a score where none was kept, so that lines from before then are spelt as they were."""
        fields: dict[str, Any] = dumped(self)
        return {name: value for name, value in fields.items() if (name, value) != ("score", None)}


class FeatureShare(Record):
    """A latent's part in a component's score; one that has none is left out."""

    feature: Count
    contribution: float


class Series(Record):
    """Values of one feature, probe or monitor at each position of the span."""

    name: str
    """The feature's name, or its index in digits; the probe's or the monitor's name."""
    kind: Literal["feature", "probe", "score"]
    feature: Count | None = None
    values: tuple[float | None, ...]
    """One per position from `span_start` to `position`; None where there is none: off-scale tokens have no score."""
    steered_values: tuple[float | None, ...] = ()
    """The same after steering, for steered requests; None where no steering was in force."""


BASELINE_SUFFIX = "-baseline"
"""Behind a request's id, for its unsteered twin's. Of ids that the server makes no other ends so."""


class AlertRecord(Timed):
    """An alert, as the journal keeps it."""

    request_id: Text
    """Empty for an alert about no request; an unsteered twin's ends in `BASELINE_SUFFIX`."""
    label: Text = ""
    """The client's own mark for the request."""
    monitor: Annotated[str, Field(min_length=1)]
    pack: PackRef | None = None
    """None for a monitor that no pack defines."""
    validated: bool
    """Whether held-out evidence supported the monitor's name."""
    state: AlertState
    level: Level
    cleared_id: TimeId | None = None
    """For a cleared alert, the id of the firing one that it ends."""
    role: str = "assistant"
    """Whose text the alert is in."""
    span_start: Count
    position: Count
    """The alert is about tokens `span_start` to `position`; the last one's reading raised it."""
    score: float
    threshold: float
    """The one crossed."""
    beyond_calibration: bool = False
    """Whether more tokens had been scored than the thresholds stand for: no rate is known there."""
    action: str = "annotate"
    """What the request's policy made of it."""
    components: tuple[Component, ...] = ()
    features: tuple[FeatureShare, ...] = ()
    readings: tuple[Series, ...] = ()
    """Whatever was watched, over the span."""
    text: Annotated[KeptText | HashedText, Field(discriminator="kind")] | None = None
    """None for an alert about no text, such as one about drift."""
    generated: bool
    """Whether the served model wrote the text. False for text that a client gave: to be read, or as a prompt."""
    generation: Generation | None = None
    """None if nothing was generated."""
    steering: tuple[SteeringRef, ...] = ()
    model: ModelRef
    sae: SaeRef | None = None
    server_version: str
    passes: str = ""
    """How the model's passes were run, in the server's words, since each way rounds otherwise: native kernels,
    transformers, or CUDA graphs. Empty in records from before it was kept."""

    @model_serializer(mode="wrap")
    def _as_it_was(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `passes` where it was not kept, so that lines from before then are spelt as they were."""
        fields: dict[str, Any] = dumped(self)
        return {name: value for name, value in fields.items() if (name, value) != ("passes", "")}

    @model_validator(mode="after")
    def _spans_agree(self) -> "AlertRecord":
        if self.span_start > self.position:
            raise ValueError(f"span_start must be at most position, {self.position}, got {self.span_start}")
        length = self.position - self.span_start + 1
        for series in self.readings:
            for values in (series.values, series.steered_values or series.values):
                if len(values) != length:
                    raise ValueError(f"readings of {series.name!r} must have {length} values, got {len(values)}")
        return self


def plain(record: Record) -> dict[str, Any]:
    """A record as JSON's own types."""
    return record.model_dump(mode="json")
