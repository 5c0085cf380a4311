"""elicitation_plan: what is asked in which round."""

import pytest

from discovery.elicitation_arms import ARM_BY_NAME, ARMS
from discovery.elicitation_plan import ElicitSettings, knowledge_cells, other_cells, sampled_cells
from discovery.errors import ElicitError
from discovery.question_set import shipped_questions

QUESTIONS = [q for q in shipped_questions() if q.id in ("capitals-001", "arithmetic-001", "explanations-001")]
KNOWN = {question.id: "known" for question in QUESTIONS}


def test_knowledge_is_asked_in_the_first_format_and_sampled():
    settings = ElicitSettings(num_samples=2)
    cells = [*knowledge_cells(QUESTIONS), *sampled_cells(QUESTIONS, KNOWN, settings)]
    assert all(cell.shows_knowledge for cell in cells)
    assert {cell.form for cell in cells} == {"short", "explanation"}
    assert len(cells) == 3 * 3 * sum(arm.asks_knowledge for arm in ARMS)
    sampled = [cell.inquiry(settings).sampling for cell in cells]
    assert {sampling.temperature for sampling in sampled} == {0.0, 0.7}
    seeds = [sampling.seed for sampling in sampled if sampling.temperature]
    assert len(set(seeds)) == len(seeds) == len(cells) * 2 // 3
    # No sample makes known what a greedy reply has wrong.
    knowledge = KNOWN | {"capitals-001": "mistaken", "arithmetic-001": "unsure"}
    assert {cell.question.id for cell in sampled_cells(QUESTIONS, knowledge, settings)} == {"explanations-001"}


def test_no_cell_is_asked_twice():
    settings = ElicitSettings(num_samples=1)
    cells = [
        *knowledge_cells(QUESTIONS),
        *sampled_cells(QUESTIONS, KNOWN, settings),
        *other_cells(QUESTIONS, KNOWN, settings),
    ]
    assert len({cell.id for cell in cells}) == len(cells)
    assert len({cell.inquiry(settings).key for cell in cells}) == len(cells)


@pytest.mark.parametrize("knowledge", ["mistaken", "unsure"])
def test_who_does_not_know_is_not_told_to_lie(knowledge):
    cells = list(other_cells(QUESTIONS, KNOWN | {"capitals-001": knowledge}, ElicitSettings()))
    told = {cell.question.id for cell in cells if cell.arm.instruction in ("lying", "incentive")}
    assert told == {"arithmetic-001", "explanations-001"}
    assert {cell.question.id for cell in cells if cell.arm.instruction == "honest"} == set(KNOWN)


def test_arms_and_formats_are_chosen():
    settings = ElicitSettings(arms=("lying-must", "neutral"), formats=("sentence",))
    cells = list(other_cells(QUESTIONS, KNOWN, settings))
    assert {(cell.arm.name, cell.form) for cell in cells} == {("lying-must", "sentence"), ("neutral", "sentence")}


def test_a_larger_share_contains_a_smaller_one():
    asked = [
        {cell.id for cell in other_cells(QUESTIONS, KNOWN, ElicitSettings(share=share))} for share in (0.2, 0.6, 1.0)
    ]
    assert asked[0] < asked[1] < asked[2]
    assert 0.05 < len(asked[0]) / len(asked[2]) < 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ("lying",)}, "arms must be among neutral, .*, got lying"),
        ({"formats": ("long",)}, "formats must be among short, sentence, passage, explanation, got long"),
        ({"num_samples": -1}, "samples must be 0 or more, got -1"),
        ({"temperature": 0.0}, r"temperature must lie in \(0, 100\], got 0"),
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0"),
        ({"share": float("nan")}, r"share must lie in \(0, 1\], got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ElicitError, match=message):
        ElicitSettings(**settings)


def test_names_are_those_of_arms():
    assert ElicitSettings().arms == tuple(ARM_BY_NAME)
