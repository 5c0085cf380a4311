"""Events to wire messages: nothing lost, nothing doubled, nothing too large."""

import pytest
import tiny
from serving import catalog

from monitors.track import Alert
from service.reconstruction_guard import ReconstructionGuard
from service.request import (
    AlertEvent,
    FinishedEvent,
    FinishReason,
    Request,
    SamplingParams,
    StartedEvent,
    Timings,
    TokenEvent,
)
from service.wire_responses import MAX_TOKENS_PER_CHUNK, ResponseWriter

MODEL = tiny.language_model()
WRITER = ResponseWriter(catalog(MODEL), MODEL.tokenizer.all_special_ids, ReconstructionGuard(None, "No figures."))
REQUEST = Request(request_id="r", prompt_ids=(5, 6), sampling=SamplingParams(max_tokens=4), watched=(3,))


def token(index: int, *, off_scale: bool = False) -> TokenEvent:
    return TokenEvent(
        index=index, id=5, text="x", is_prompt=True, readings=[0.5], steered_readings=[], top_features=[], logprob=None,
        scores=[], fvu=0.25, l0=2, role="user", off_scale=off_scale,
    )  # fmt: skip


def alert() -> AlertEvent:
    raised = Alert(
        monitor="m", state="firing", level="warning", position=3, span_start=3, score=1.0, threshold=0.5, components=()
    )
    return AlertEvent("r", "", raised, 0.0)


def finished() -> FinishedEvent:
    return FinishedEvent(FinishReason.LENGTH, 1, Timings(0, None, None, None, 0), [], 1)


def kinds_and_indices(responses):
    return [(r.WhichOneof("event"), [t.index for t in r.tokens.tokens]) for r in responses]


@pytest.mark.parametrize("num_tokens", [1, MAX_TOKENS_PER_CHUNK, MAX_TOKENS_PER_CHUNK + 1, 3 * MAX_TOKENS_PER_CHUNK])
def test_tokens_share_chunks_of_bounded_size(num_tokens):
    events = [StartedEvent(token(0)), *map(token, range(num_tokens)), finished()]
    responses = WRITER.responses(events, REQUEST)
    starts = range(0, num_tokens, MAX_TOKENS_PER_CHUNK)
    chunks = [list(range(start, min(start + MAX_TOKENS_PER_CHUNK, num_tokens))) for start in starts]
    assert kinds_and_indices(responses) == [("started", []), *(("tokens", chunk) for chunk in chunks), ("finished", [])]


def test_an_alert_parts_the_tokens_around_it():
    responses = WRITER.responses([token(2), token(3), alert(), token(4)], REQUEST)
    assert kinds_and_indices(responses) == [("tokens", [2, 3]), ("alert", []), ("tokens", [4])]


def test_the_largest_chunk_is_a_message_that_clients_take():
    """gRPC's clients refuse more than 4 MiB unless told otherwise."""
    full = token(2**31)
    full.text, full.readings, full.steered_readings = "x" * 64, [0.1] * 256, [0.1] * 256
    full.top_features = [(2**31, 0.1)] * 64
    [chunk] = WRITER.responses([full] * MAX_TOKENS_PER_CHUNK, REQUEST)
    assert chunk.ByteSize() < 4 * 2**20


@pytest.mark.parametrize("off_scale", [False, True])
def test_massive_activations_are_flagged_wherever_tokens_are_told(off_scale):
    first, second = token(1, off_scale=off_scale), token(2, off_scale=off_scale)
    started, told = WRITER.responses([StartedEvent(first), second], REQUEST)
    assert told.tokens.tokens[0].off_scale == started.started.last_prompt_token.off_scale == off_scale
    assert not told.tokens.tokens[0].is_first_position
    scored = WRITER.score([second, finished()], REQUEST)
    assert scored.tokens[0].off_scale == off_scale
