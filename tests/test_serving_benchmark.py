"""benchmarks.serving: what is measured in a round and on whom, what it makes of rounds, and one small run."""

import asyncio
import fcntl
import json

import native_models as native
import pytest

from benchmarks import serving, serving_peers, serving_rounds
from benchmarks.serving_client import UNREAD, arrivals, rate
from benchmarks.serving_peers import PlainPass
from benchmarks.serving_rounds import (
    NUM_NEIGHBOURS,
    Compared,
    Sizes,
    beside_long_prompt,
    by_turns,
    percentile,
    prompt_of,
    unsteadiness,
)
from benchmarks.serving_summary import cost, median, ratio, ratio_of_medians, summarize
from benchmarks.timing_lock import turn
from service.client_events import Token


def test_the_rate_of_streams_leaves_out_their_first_tokens():
    # From the mean time of the first tokens, 1, to the last of all, 5: four tokens besides the first ones.
    assert rate([[0.5, 2.0, 4.0], [1.5, 3.0, 5.0]]) == pytest.approx(1.0)


def test_a_percentile_is_one_of_the_values():
    values = [float(each) for each in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0], 0.99) == percentile([3.0], 0.001) == 3.0


def test_gaps_count_as_read_in_if_they_overlap_the_reading():
    # Read from 2.5 to 4: gaps 2-3 and 3-6 overlap it; those before and behind don't.
    found = unsteadiness([[0.0, 1.0, 2.0, 3.0, 6.0, 6.5]], (2.5, 4.0))
    assert found == {"p99": 3.0, "median_otherwise": 1.0}


def test_gaps_that_touch_the_reading_are_not_in_it():
    found = unsteadiness([[0.0, 1.0, 9.0, 11.0]], (1.0, 9.0))
    assert found == {"p99": 8.0, "median_otherwise": 1.0}


def test_a_stream_has_no_gap_to_another():
    found = unsteadiness([[0.0, 1.0], [0.5, 2.0], [100.0, 101.0]], (0.6, 0.7))
    assert found == {"p99": 1.5, "median_otherwise": 1.0}


def test_a_prompt_is_as_long_as_asked():
    assert prompt_of([7, 8, 9], 7) == [7, 8, 9, 7, 8, 9, 7]


# --- a round ----------------------------------------------------------------------------------------------------------


async def test_things_that_are_compared_take_turns_each_time_the_other_way_round():
    taken = []

    def run(name):
        async def value():
            taken.append(name)
            return float(len(taken))

        return value

    found = await by_turns(3, a=run("a"), b=run("b"), c=run("c"))
    assert "".join(taken) == "abccbaabc"
    assert found == {"a": [1.0, 6.0, 7.0], "b": [2.0, 5.0, 8.0], "c": [3.0, 4.0, 9.0]}


WATCHING = {"no_defaults": True, "watch": [5, 6], "monitors": ["lying"]}


class Model:
    """In place of transformers' and of the plain pass: what is asked of it."""

    def __init__(self):
        self.prompts = []

    def generate(self, prompts_BT, **_options):
        self.prompts.append(prompts_BT)

    def __call__(self, ids_BT, **_options):
        self.prompts.append(ids_BT)

    def seconds(self, ids):
        self.prompts.append(ids)
        return 0.25


def seconds_of(client, options):
    """Between two tokens of a stream: each way of being served has a time of its own."""
    options = dict(options)
    steering = options.pop("steering", None)
    seconds = {("monitored", True): 0.1, ("unmonitored", False): 0.08}[client, options == WATCHING]
    assert options in (WATCHING, UNREAD)
    return seconds * (2 if steering else 1)


@pytest.fixture
def compared(monkeypatch):
    """Clients are names, whose streams tell by their times who was asked for what, and how many there were."""
    asked = []

    async def streams(client, num_tokens, options, **_options):
        asked.append((client, num_tokens, list(options)))
        return [[seconds_of(client, each) * number for number in range(num_tokens)] for each in options]

    monkeypatch.setattr(serving_rounds, "streams", streams)
    monkeypatch.setattr(serving_rounds, "read_bandwidth", lambda: 4e9)
    monkeypatch.setattr(serving_rounds, "generate_rate", lambda _model, _ids, n, _tokens: 50.0 * n)
    made = Compared("monitored", "unmonitored", WATCHING, Model(), Model(), [1, 2, 3], Sizes(tokens=9))
    return made, asked


async def test_monitored_streams_are_those_of_the_monitored_server(compared):
    found = await serving_rounds.decode_speed(compared[0])
    for n in (1, 4, 16):
        assert found[f"monitored_{n}"] == pytest.approx([10 * n] * (8 if n == 1 else 4))
        assert found[f"unmonitored_{n}"] == pytest.approx([12.5 * n] * (8 if n == 1 else 4))
    assert found["generate_16"] == [800.0] and found["read_bandwidth"] == [4e9] * 8
    assert {(client, tokens) for client, tokens, _ in compared[1]} == {("monitored", 9), ("unmonitored", 9)}


async def test_one_stream_is_steered_and_none_of_its_neighbours_is_it(compared):
    found = await serving_rounds.steering_cost(compared[0])
    assert found["unsteered_alone"] == pytest.approx([10.0] * 8)
    assert found["steered_alone"] == pytest.approx([5.0] * 8)
    # The steered stream is half as fast: were it among its neighbours, they would be slower.
    assert found["neighbour_of_unsteered"] == pytest.approx([10.0] * 4)
    assert found["neighbour_of_steered"] == pytest.approx([10.0] * 4)
    together = [options for _, _, options in compared[1] if len(options) == NUM_NEIGHBOURS]
    assert sorted(sum("steering" in each for each in options) for options in together) == [0] * 4 + [1] * 4
    (steering,) = next(each["steering"] for _, _, options in compared[1] for each in options if "steering" in each)
    assert steering.direction == WATCHING["watch"][0] and steering.strength > 0


async def test_first_tokens_are_those_of_both_servers_and_of_plain_passes_over_the_same_prompt(compared, monkeypatch):
    asked, clock = [], iter(range(10**6))

    async def stream(client, prompt, num_tokens, **options):
        asked.append((client, prompt, num_tokens, options))
        return [next(clock) + {"monitored": 0.5, "unmonitored": 0.4}[client]]

    monkeypatch.setattr(serving_rounds, "stream", stream)
    monkeypatch.setattr(serving_rounds.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(serving_rounds, "prefill_seconds", lambda _model, ids: len(ids) / 1024)
    found = await serving_rounds.first_token(compared[0])
    assert found["first_token_seconds"] == pytest.approx([1.5] * 8)
    assert found["unmonitored_first_token_seconds"] == pytest.approx([1.4] * 8)
    assert found["plain_pass_seconds"] == [0.25] * 8 and found["transformers_pass_seconds"] == [0.5] * 8
    prompts = [prompt for _, prompt, _, _ in asked] + compared[0].plain_pass.prompts
    assert len(prompts) == 24 and all(prompt == prompt_of([1, 2, 3], 512) for prompt in prompts)
    ways = [(client, options) for client, _, _, options in asked]
    assert ways.count(("monitored", WATCHING)) == ways.count(("unmonitored", UNREAD)) == 8


def token():
    return Token(
        index=0, id=0, text="", special=False, is_prompt=False, is_first_position=False, readings=(),
        steered_readings=(), top_features=(), logprob=None, scores=(), fvu=0.0, l0=0,
    )  # fmt: skip


class Client:
    """A server whose streams take turns, a token at a time. A prompt is read once they have so many more."""

    def __init__(self, num_while_read):
        self.num_while_read, self.num_tokens, self.num_streams, self.num_closed = num_while_read, 0, 0, 0

    async def generate(self, _prompt, *, max_tokens, **_options):
        if max_tokens == 1:
            until = self.num_tokens + self.num_while_read * NUM_NEIGHBOURS
            while self.num_tokens < until and self.num_streams:
                await asyncio.sleep(0)
            yield token()
            return
        self.num_streams += 1
        try:
            for _ in range(max_tokens):
                self.num_tokens += 1
                yield token()
                await asyncio.sleep(0)
        except GeneratorExit:
            self.num_closed += 1
            raise
        finally:
            self.num_streams -= 1


async def test_streams_go_on_until_the_prompt_beside_them_has_been_read_and_a_little_more():
    client = Client(num_while_read=20)
    sizes = Sizes(tokens_around=5, most_tokens=200)
    compared = Compared(client, client, WATCHING, None, None, [1, 2], sizes)
    found = await beside_long_prompt(compared, [1] * 50)
    assert found["p99"] > 0 and found["median_otherwise"] > 0 and found["beside_seconds"] > 0
    assert 30 * NUM_NEIGHBOURS <= client.num_tokens < 40 * NUM_NEIGHBOURS
    assert client.num_closed == NUM_NEIGHBOURS


@pytest.mark.parametrize("most_tokens", [20, 27])
async def test_streams_that_end_before_the_prompt_beside_them_or_too_soon_after_are_no_figure(most_tokens):
    client = Client(num_while_read=20)
    compared = Compared(client, client, WATCHING, None, None, [1], Sizes(tokens_around=5, most_tokens=most_tokens))
    with pytest.raises(RuntimeError, match="must outlast the prompt"):
        await beside_long_prompt(compared, [1] * 50)


async def test_a_stream_that_is_left_ends_on_the_server():
    client = Client(num_while_read=1)
    arriving = arrivals(client, "text", 100)
    assert isinstance(await anext(arriving), float)
    await arriving.aclose()
    assert client.num_closed == 1


# --- what is said of rounds -------------------------------------------------------------------------------------------


ROUNDS = [
    {"a": [1.0, 8.0, 3.0], "b": [2.0, 10.0, 10.0]},
    {"a": [30.0], "b": [100.0]},
    {"a": [9.0], "b": [10.0]},
]


def test_ratios_are_those_of_pairs():
    # Of the first round 0.5, 0.8 and 0.3; of the others 0.3 and 0.9.
    assert ratio(ROUNDS, "a", "b") == {"ratio": 0.5, "of_rounds": [0.3, 0.9]}
    assert cost(ROUNDS, "a", "b") == {"ratio": 0.5, "of_rounds": [0.1, 0.7]}
    assert ratio_of_medians(ROUNDS, "a", "b") == {"ratio": 0.3, "of_rounds": [0.3, 0.9]}
    assert median(ROUNDS, "a") == 9.0


def test_what_did_not_take_turns_has_no_pairs():
    with pytest.raises(ValueError, match="shorter"):
        ratio([{"a": [1.0, 2.0], "b": [1.0]}], "a", "b")


def figures():
    """Of a round, no two alike."""
    found = {"read_bandwidth": 4e10, "monitored_1": 100.0, "unmonitored_1": 125.0}
    found |= {"monitored_4": 350.0, "unmonitored_4": 400.0, "monitored_16": 700.0, "unmonitored_16": 800.0}
    found |= {"generate_16": 200.0, "unsteered_alone": 100.0, "steered_alone": 90.0}
    found |= {"neighbour_of_unsteered": 50.0, "neighbour_of_steered": 49.0}
    found |= {"first_token_seconds": 0.44, "plain_pass_seconds": 0.4, "unmonitored_first_token_seconds": 0.42}
    found |= {"transformers_pass_seconds": 0.55, "long_prompt_p99": 0.05, "long_prompt_median_otherwise": 0.02}
    found |= {"long_prompt_beside_seconds": 6.0, "long_prompt_alone_seconds": 2.4}
    return {name: [value] for name, value in found.items()}


def test_what_is_said_of_rounds():
    found = summarize([figures()], packed_bytes=10**8)

    def once(value):
        return {"ratio": pytest.approx(value), "of_rounds": pytest.approx([value, value])}

    assert found["one_stream"]["to_read_limit"] == once(0.25)
    assert found["one_stream"]["unmonitored_to_read_limit"] == once(0.3125)
    assert found["sixteen_streams"]["to_one_stream"] == once(7.0)
    assert found["sixteen_streams"]["to_generate"] == once(3.5)
    assert found["monitoring_cost"] == {1: once(0.2), 4: once(0.125), 16: once(0.125)}
    assert found["steering_cost"] == {"itself": once(0.1), "neighbours": once(0.02)}
    first = found["first_token"]
    assert first["to_plain_pass"] == once(1.1) and first["to_transformers_pass"] == once(0.8)
    assert first["to_unmonitored"] == once(1.048)
    beside = found["beside_long_prompt"]
    assert beside == {"p99_to_median_otherwise": once(2.5), "prompt_to_alone": once(2.5)}
    assert found["medians"]["read_limit_1"] == 400.0
    json.dumps(found)


def test_memory_that_is_summed_has_been_written_to():
    # Pages that never were are one and the same, which the processor has at hand.
    assert serving_peers._numbers(2**20).sum() == 2**18
    assert serving_peers.read_bandwidth(2**20) > 0


def test_a_turn_keeps_others_out_until_it_ends(tmp_path):
    with (tmp_path / "lock").open("a") as other:
        with turn(tmp_path / "lock"), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_is_not_said_is_as_sizes_have_it():
    assert serving.parse([]).tokens == Sizes().tokens == 128


@pytest.mark.slow
async def test_a_small_run(monkeypatch):
    native.library()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = serving.parse(["--rounds", "1", "--threads", "1"])
    sizes = Sizes(
        tokens=4, pairs=1, short_pairs=2, prompt_tokens=32, long_prompt_tokens=64, tokens_around=8, most_tokens=200
    )
    found = await serving.measure(args, sizes)
    assert found["rounds"] == 1 and 0 < found["one_stream"]["to_read_limit"]["ratio"] < 1
    assert found["sixteen_streams"]["to_generate"]["ratio"] > 0
    assert found["first_token"]["to_plain_pass"]["ratio"] > 0.5
    assert found["beside_long_prompt"]["prompt_to_alone"]["ratio"] > 0
    json.dumps(found)


@pytest.mark.slow
def test_a_plain_pass_reads_the_whole_prompt():
    native.library()
    plain, seen = PlainPass(40), []
    logits = plain.blocks.logits
    plain.blocks.logits = lambda ids_BT, *args: seen.append(logits(ids_BT, *args)) or seen[-1]
    assert plain.seconds(range(1000, 1040)) > 0
    [logits_BTV] = seen
    assert logits_BTV.shape[:2] == (1, 1)
    plain.seconds([*range(1000, 1039), 7])
    assert not logits_BTV.equal(seen[1])
