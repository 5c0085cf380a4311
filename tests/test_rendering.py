"""Colours, legend and lines as pure functions, and that no text of the model reaches the terminal as a command."""

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style

from service.client_catalog import SaeInfo, WatchedFeature
from service.client_events import Alert, ComponentPart, Finished, MonitorSummary, SteeringReport, Timings, Token, Usage
from service.client_monitors import Monitor
from service.rendering import (
    PALETTE,
    Peak,
    Strongest,
    alert_line,
    blend,
    color_of,
    footer,
    legend,
    monitor_lines,
    raise_peaks,
    sanitize,
    scales,
    strongest,
    token_segments,
    token_style,
    unverified_warning,
)

LYING = WatchedFeature(feature=7, name="lying", reference_scale=4.0, validated=True)
NAMELESS = WatchedFeature(feature=30, name="", reference_scale=0.0, validated=False)


def token(*readings: float, index: int = 5, text: str = "word", is_prompt: bool = False) -> Token:
    return Token(
        index=index,
        id=1,
        text=text,
        special=False,
        is_prompt=is_prompt,
        is_first_position=index == 0,
        readings=readings,
        steered_readings=(),
        top_features=(),
        logprob=None,
        scores=(),
        fvu=0.0,
        l0=0,
    )


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(renderable)
    return console.file.getvalue()


# Text of the model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, Zoë ✓ 日本 👩‍🚀", "plain, Zoë ✓ 日本 👩‍🚀"),
        ("a\tb\n", "a\tb\n"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("over\rwrite\x08", "over\\x0dwrite\\x08"),
        ("\x7f\x9b31m", "\\x7f\\x9b31m"),
        ("abc\u202edcba\u2066", "abc\\u202edcba\\u2066"),
        ("line\u2028end", "line\\u2028end"),
        ("hid\U000e0041den", "hid\\U000e0041den"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_would_act_on_is_spelt_out(text, expected):
    assert sanitize(text) == expected


@given(st.text(st.characters()))
def test_sanitized_text_holds_no_control_character(text):
    safe = sanitize(text)
    assert all(char in "\n\t" or char.isprintable() or not char.isascii() for char in safe)
    assert not any(0x7F <= ord(char) < 0xA0 or 0x202A <= ord(char) <= 0x202E for char in safe)
    assert sanitize(safe) == safe


def test_names_and_messages_of_the_server_are_sanitized_too():
    evil = "\x1b[31m"
    feature = WatchedFeature(feature=1, name=evil, reference_scale=1.0, validated=True)
    sae = SaeInfo(
        name="", sha256="", hook_point="", num_latents=1, activation="", verified=False, mismatches=(evil,),
        resid_norm_mean=0.0,
    )  # fmt: skip
    summary = MonitorSummary(
        monitor=evil, max_score=1.0, mean_score=1.0, scored_tokens=1, fired=False, first_fired_position=None
    )
    lines = [legend([feature], [Peak(1.0, token(1.0, text=evil))]), alert_line(alert(monitor=evil))]
    lines += [unverified_warning(sae), footer(finished(matched_stop=evil)), *monitor_lines([summary])]
    assert all("\\x1b[31m" in shown(line) and "\x1b" not in shown(line) for line in lines)


# Colours


def test_colours_go_from_white_to_full_and_no_further():
    assert blend((200, 100, 0), 0.0) == (255, 255, 255)
    assert blend((200, 100, 0), 0.5) == (228, 178, 128)
    assert blend((200, 100, 0), 1.0) == blend((200, 100, 0), 9.0) == (200, 100, 0)


def test_each_feature_has_its_own_colour():
    assert len({color_of(position) for position in range(len(PALETTE))}) == len(PALETTE)
    assert color_of(len(PALETTE)) == color_of(0)


def test_the_strongest_is_measured_against_its_scale():
    assert strongest(token(2.0, 3.0), [4.0, 30.0]) == Strongest(position=0, ratio=0.5)
    assert strongest(token(2.0, 30.0), [4.0, 30.0]) == Strongest(position=1, ratio=1.0)


@pytest.mark.parametrize(
    ("readings", "full"),
    [((0.0, 0.0), [4.0, 4.0]), ((-1.0, 0.0), [4.0, 4.0]), ((3.0, 0.0), [0.0, 4.0]), ((), [])],
)
def test_nothing_stands_out_where_nothing_was_read(readings, full):
    assert strongest(token(*readings), full) is None


def test_the_first_position_is_off_scale_and_stays_plain():
    assert strongest(token(400.0, index=0), [4.0]) is None
    assert raise_peaks([Peak()], token(400.0, index=0)) == [Peak()]


def test_a_token_is_coloured_by_its_strongest_feature():
    style = token_style(token(0.0, 2.0), [4.0, 4.0])
    assert style.bgcolor.triplet == blend(PALETTE[1], 0.5)
    assert style.color is not None


def test_faint_readings_stay_plain():
    assert token_style(token(0.1), [4.0]) == Style()


def test_prompt_tokens_are_told_from_the_reply():
    assert token_style(token(0.0, is_prompt=True), [4.0]).italic


def test_line_ends_are_not_coloured():
    segments = token_segments(token(4.0, text="a\n\nb"), [4.0])
    assert [segment.text for segment in segments] == ["a", "\n", "\n", "b"]
    assert [bool(segment.style) for segment in segments] == [True, False, False, True]
    assert token_segments(token(4.0, text=""), [4.0]) == []


@given(st.text())
def test_segments_hold_the_whole_text(text):
    assert "".join(segment.text for segment in token_segments(token(1.0, text=text), [2.0])) == sanitize(text)


def test_a_feature_without_scale_is_measured_against_twice_its_own_peak():
    peaks = [Peak()] * 2
    for reading in (1.0, 8.0, 2.0):
        peaks = raise_peaks(peaks, token(0.5, reading))
    assert [peak.value for peak in peaks] == [0.5, 8.0]
    assert scales([LYING, NAMELESS], peaks) == [4.0, 16.0]


# Lines


def test_a_long_legend_lists_what_read_most_and_counts_the_rest():
    features = [replace(LYING, feature=i, name=f"name{i}", reference_scale=2.0) for i in range(12)]
    peaks = [Peak(float(i), token(float(i), index=i)) for i in range(12)]
    text = shown(legend(features, peaks))
    assert [f"name{i} " in text for i in range(12)] == [False] * 4 + [True] * 8
    assert "and 4 more that read less" in text


def test_the_legend_names_each_feature_with_its_peak():
    text = shown(legend([LYING, NAMELESS], [Peak(3.0, token(3.0, index=9, text="no\n")), Peak()]))
    assert "lying" in text and "75%" in text and "9 'no\\n'" in text
    assert "30 (not validated)" in text and "unknown" in text


def alert(**changes: object) -> Alert:
    values: dict = {
        "request_id": "r1", "label": "", "monitor": "lying", "state": "firing", "severity": "warning", "position": 9,
        "span_start": 2, "score": 0.75, "threshold": 0.5, "contributions": (), "validated": False, "time_seconds": 0.0,
    }  # fmt: skip
    return Alert(**(values | changes))


def test_an_alert_says_what_fired_where_and_whether_it_is_proven():
    assert alert_line(alert()).plain == (
        "[ALERT warning: lying 0.75 (threshold 0.5) at 9, from 2, not validated]"
    )  # fmt: skip
    assert alert_line(alert(state="cleared", validated=True)).plain == (
        "[cleared: lying 0.75 (threshold 0.5) at 9, from 2]"
    )


def test_an_alert_of_several_components_says_what_each_reads():
    parts = (
        ComponentPart(component="disbelief", score=0.75, contribution=0.75),
        ComponentPart(component="stance", score=1.5, contribution=0.0),
    )
    assert alert_line(alert(components=parts, role="user", beyond_calibration=True)).plain == (
        "[ALERT warning: lying 0.75 (threshold 0.5) at 9, from 2 (user), disbelief 0.75, stance 1.5, "
        "beyond calibrated lengths, not validated]"
    )
    assert "stance" not in alert_line(alert(components=parts[1:])).plain


def finished(**changes: object) -> Finished:
    values: dict = {
        "reason": "eos", "matched_stop": "", "matched_token_id": None, "steering": None, "monitors": (),
        "usage": Usage(prompt_tokens=3, completion_tokens=10), "tapped_tokens": 13,
        "timings": Timings(
            queue_seconds=0.0, prefill_seconds=0.1, decode_seconds=0.5, time_to_first_token_seconds=0.125,
            total_seconds=0.6,
        ),
    }  # fmt: skip
    return Finished(**(values | changes))


def test_the_footer_says_why_and_how_fast():
    assert footer(finished(), seed=4).plain == (
        "eos · 3 prompt tokens · 10 tokens · 20.0 tokens/s · first after 0.12 s · seed 4"
    )
    assert footer(finished(reason="stop_sequence", matched_stop="END")).plain.startswith("stop_sequence 'END' · ")


def test_the_footer_proves_the_steering():
    report = SteeringReport(positions_changed=8, mean_relative_norm=0.05, max_relative_norm=0.125)
    assert footer(finished(steering=report)).plain.endswith(
        "\nsteering changed 8 positions, by 0.05 of the residual's norm on average and 0.125 at most"
    )


def test_the_footer_leaves_out_what_did_not_happen():
    nothing = Timings(
        queue_seconds=None, prefill_seconds=None, decode_seconds=None, time_to_first_token_seconds=None,
        total_seconds=None,
    )  # fmt: skip
    usage = Usage(prompt_tokens=3, completion_tokens=0)
    assert footer(finished(timings=nothing, usage=usage)).plain == "eos · 3 prompt tokens · 0 tokens"


def monitor(name, *, threshold, validated):
    return Monitor(
        name=name, description="", threshold=threshold, clear_threshold=0.2, window=1, min_tokens=1, cooldown_tokens=0,
        severity="info", threshold_source="", validated=validated, features=(7,), scores_prompt=False,
    )  # fmt: skip


def test_monitors_stand_with_their_threshold():
    definition = monitor("lying", threshold=0.5, validated=False)
    fired = MonitorSummary(
        monitor="lying", max_score=0.75, mean_score=0.5, scored_tokens=10, fired=True, first_fired_position=9
    )
    short = MonitorSummary(
        monitor="other", max_score=None, mean_score=None, scored_tokens=2, fired=False, first_fired_position=None
    )
    assert [line.plain for line in monitor_lines([fired, short], [definition])] == [
        "lying: max score 0.75 (threshold 0.5) over 10 scored tokens, fired first at 9, not validated",
        "other: no score yet after 2 scored tokens, too few",
    ]
    worst = replace(fired, level="critical", role="user", beyond_calibration=True)
    assert [line.plain for line in monitor_lines([worst], [definition])] == [
        "lying (user): max score 0.75 (threshold 0.5) over 10 scored tokens, fired first at 9, rose to critical, "
        "beyond calibrated lengths, not validated"
    ]


def test_what_the_length_of_a_reply_explains_is_no_part_of_what_its_threshold_is_for():
    definition = monitor("stance", threshold=1.25, validated=True)
    long = MonitorSummary(
        monitor="stance", max_score=2.9, max_statistic=0.98, mean_score=0.5, scored_tokens=120, fired=False,
        first_fired_position=None,
    )  # fmt: skip
    told = ["2.9, 0.98 beyond what its length explains (threshold 1.25)", "2.9 (threshold 1.25)"]
    assert [line.plain for line in monitor_lines([long, replace(long, max_statistic=2.9)], [definition])] == [
        f"stance: max score {score} over 120 scored tokens, did not fire" for score in told
    ]


def test_a_verified_dictionary_needs_no_warning():
    sae = SaeInfo(
        name="", sha256="", hook_point="", num_latents=1, activation="", verified=True, mismatches=(),
        resid_norm_mean=0.0,
    )  # fmt: skip
    assert unverified_warning(sae) is None
