"""When silence is no chance any more."""

import math
import random

import pytest

from monitors.silence import (
    CLUMP_TOKENS,
    MAX_SAME,
    SILENT_BELOW,
    InputActivity,
    InputState,
    silence_probability,
)


def test_the_bound_holds_for_runs_of_any_length_up_to_the_one_assumed():
    """Simulated: runs of c tokens that begin at random, so that a share p of tokens is active."""
    generator = random.Random(0)
    density, num_tokens, num_trials = 0.02, 4000, 4000
    for run in (1, 10, CLUMP_TOKENS):
        # Of runs that come at a rate p / c a token, the first begins after an exponential time.
        silent = sum(generator.expovariate(density / run) > num_tokens for _ in range(num_trials)) / num_trials
        bound = silence_probability(num_tokens, density)
        assert silent <= bound + 4 * math.sqrt(bound / num_trials)
    assert (1 - density) ** num_tokens <= bound


def test_the_tokens_that_it_takes():
    density = 0.001
    needed = math.ceil(-math.log(SILENT_BELOW) * CLUMP_TOKENS / density)
    latent = InputActivity("f3", 3, density)
    latent.add(needed - 1, 0, 0)
    assert latent.state is InputState.UNTESTED
    latent.add(1, 0, 0)
    assert (latent.state, latent.num_silent) == (InputState.SILENT, needed)
    latent.add(10, 1, 4)
    assert (latent.state, latent.num_silent, latent.num_tokens) == (InputState.ALIVE, 4, needed + 10)
    latent.add(needed, 0, 0)  # one that fired once and stopped
    assert latent.state is InputState.SILENT


def test_without_a_density_silence_is_never_told_from_rarity():
    latent = InputActivity("f3", 3, None)
    latent.add(10**9, 0, 0)
    assert (latent.state, latent.probability) == (InputState.UNKNOWN, None)
    latent.add(5, 2, 0)
    assert latent.state is InputState.ALIVE


@pytest.mark.parametrize(("num_same", "state"), [(MAX_SAME - 1, InputState.ALIVE), (MAX_SAME, InputState.SILENT)])
def test_a_probe_that_says_the_same_is_silent(num_same, state):
    probe = InputActivity("deception.stance", None, None)
    assert probe.state is InputState.UNTESTED
    probe.add(1, 1, 0)
    probe.add(num_same, 0, 0)
    assert probe.state is state
