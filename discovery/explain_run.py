"""Explains and scores many latents at once, and puts down each result as soon as it is there.

For each latent: the token rule is fitted and scored, which costs nothing; then the model explains it, the explanation
is committed, is scored, and is committed again with its numbers. What a run finds done it leaves alone: a latent
explained but not scored is only scored, if the windows are divided as they were when it was explained: else its author
may have seen what it would be judged by, and the run is refused before the first call. So a run that was killed, ran
out of money or lost its endpoint is finished by the same command.

One answer of no use costs its latent, which is left for another run. A fault of the endpoint, the end of the budget or
a full disk ends the run after the calls in flight; ten latents lost in a row end it too, because then something else is
wrong.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from discovery.chat_model import ChatModel
from discovery.errors import ExplainError, ReplyError
from discovery.example_split import ExampleSplit, LatentExamples
from discovery.explanation import explain_latent
from discovery.explanation_book import ExplanationBook, with_scores
from discovery.explanation_score import Judge, Score, detection_questions, fuzzing_questions, model_judge, score
from discovery.latent_record import Explanation
from discovery.token_rule import TOKEN_RULE, fit_tokens, rule_explanation, rule_judge

MAX_LOST_IN_A_ROW = 10


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How latents are explained and scored."""

    concurrency: int = 4
    """Latents at a time, each with one call in flight."""
    batch_size: int = 5
    """Questions to a prompt."""
    answer_tokens: int = 800
    """Longest answer with an explanation."""
    label_tokens: int = 200
    """Longest answer with labels. Models that think before they answer need more."""
    replace: bool = False
    """Also explain latents that another model has explained, and anew what was explained by another division of the
    windows and not scored. The token rule's titles always make way."""
    with_scores: bool = True

    def __post_init__(self) -> None:
        for name in ("concurrency", "batch_size", "answer_tokens", "label_tokens"):
            if getattr(self, name) < 1:
                raise ExplainError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(slots=True)
class Outcome:
    """What a run did."""

    explained: int = 0
    scored: int = 0
    kept: int = 0
    """Found done."""
    silent: int = 0
    """Without an example to show."""
    unparseable: int = 0
    """Questions whose answer could not be read."""
    lost: dict[int, str] = field(default_factory=dict)
    """Why a latent has no explanation."""
    stopped: ExplainError | None = None
    """What ended the run early."""
    lost_in_a_row: int = 0


class ExplainRun:
    """One run over a book. `model` None: the token rule alone, whose titles then stand where there is no other."""

    def __init__(
        self,
        book: ExplanationBook,
        split: ExampleSplit,
        model: ChatModel | None,
        settings: RunSettings,
        *,
        on_done: Callable[[Outcome], None] = lambda _outcome: None,
    ) -> None:
        self.book, self.split, self.model, self.settings = book, split, model, settings
        self.outcome = Outcome()
        self._on_done = on_done

    async def run(self, latents: Sequence[int]) -> Outcome:
        """Do what is left of `latents`, in order. Faults that end the run are in the outcome; nothing is lost.

        ExplainError before anything is done if an explanation would be scored on windows that its author was shown.
        """
        if not self.settings.replace:
            for latent in latents:
                self._check_unseen(self.book.store.explanation(latent))
        waiting = iter(latents)
        await asyncio.gather(*(self._work(waiting) for _ in range(self.settings.concurrency)))
        return self.outcome

    async def _work(self, waiting: Iterator[int]) -> None:
        for latent in waiting:
            if self.outcome.stopped is not None:
                return
            try:
                await self._do(latent)
                self.outcome.lost_in_a_row = 0
            except ReplyError as error:
                self._lose(latent, error)
            except ExplainError as error:  # raised further, it would cancel the others' calls, which are paid for
                self.outcome.stopped = self.outcome.stopped or error
            self._on_done(self.outcome)

    def _lose(self, latent: int, error: ReplyError) -> None:
        self.outcome.lost[latent] = str(error)
        self.outcome.lost_in_a_row += 1
        if self.outcome.lost_in_a_row >= MAX_LOST_IN_A_ROW:
            self.outcome.stopped = ExplainError(f"{MAX_LOST_IN_A_ROW} latents lost in a row, the last one: {error}")

    async def _do(self, latent: int) -> None:
        before = self.book.store.explanation(latent)
        rule = self.book.scores(latent)
        # Scores by another division of the windows are of other questions than the model's will be.
        ruled = rule is not None and rule.settings.items() >= self.split.settings.as_dict().items()
        done = self._is_done(before, ruled)
        self.outcome.kept += done
        if done and rule is not None:
            return
        examples = self.split(latent)
        if not examples.shown:
            self.outcome.silent += 1
            return
        if not ruled or before is None:
            await self._apply_rule(examples, put_in_force=before is None or before.model == TOKEN_RULE)
        if self.model is not None and not done:
            await self._apply_model(self.model, examples, before)

    def _is_done(self, before: Explanation | None, ruled: bool) -> bool:
        if self.model is None:
            return before is not None and (ruled or before.model != TOKEN_RULE)
        if before is None or before.model == TOKEN_RULE:
            return False
        if before.model != self.model.name:
            return not self.settings.replace
        return self._is_scored(before) or not self.settings.with_scores

    def _is_scored(self, explanation: Explanation) -> bool:
        scores = self.book.scores(explanation.latent, explanation.model)
        # Those of an older explanation by the same model don't count.
        return scores is not None and scores.created == explanation.created

    def _is_unseen(self, explanation: Explanation) -> bool:
        """Whether the windows that would be held out now are none that the explanation's author was shown."""
        return self.book.split_of(explanation) == self.split.settings.shown_by()

    def _check_unseen(self, before: Explanation | None) -> None:
        if self.model is None or before is None or before.model != self.model.name:
            return
        if not self.settings.with_scores or self._is_scored(before) or self._is_unseen(before):
            return
        split = self.book.split_of(before)
        was = f"with --seed {split['seed']} --shown {split['num_shown']}" if split else "with a seed that is not known"
        now = self.split.settings
        raise ExplainError(
            f"latent {before.latent} was explained {was}: scored with --seed {now.seed} --shown {now.num_shown}, "
            "it could be on texts that its author was shown; score it as it was explained, or explain it anew with "
            "--replace"
        )

    async def _apply_rule(self, examples: LatentExamples, *, put_in_force: bool) -> None:
        tokens = fit_tokens(examples)
        explanation = rule_explanation(examples.latent, tokens, _now())
        detection, fuzzing = await self._scores(examples, rule_judge(tokens), batch_size=len(examples.held_out) * 2 + 1)
        self.book.save_scores(explanation, detection, fuzzing, self._settings())
        if put_in_force:
            self.book.save_explanation(with_scores(explanation, detection, fuzzing))
            if self.model is None:
                self.outcome.explained += 1
                self.outcome.scored += detection is not None

    async def _apply_model(self, model: ChatModel, examples: LatentExamples, before: Explanation | None) -> None:
        if before is None or before.model != model.name or not self._is_unseen(before):
            account = await explain_latent(model, examples, max_tokens=self.settings.answer_tokens)
            explanation = account.as_explanation(examples.latent, model.name, _now())
            self.book.save_explanation(explanation, self.split.settings.shown_by())
            self.outcome.explained += 1
        else:
            explanation = before
        if self.settings.with_scores:
            judge = model_judge(model, explanation, max_tokens=self.settings.label_tokens)
            detection, fuzzing = await self._scores(examples, judge, batch_size=self.settings.batch_size)
            self.book.save_explanation(with_scores(explanation, detection, fuzzing))
            self.book.save_scores(explanation, detection, fuzzing, self._settings())
            self.outcome.scored += detection is not None
            self.outcome.unparseable += sum(part.unparseable for part in (detection, fuzzing) if part)

    async def _scores(
        self, examples: LatentExamples, judge: Judge, *, batch_size: int
    ) -> tuple[Score | None, Score | None]:
        seed = self.split.settings.seed
        detection = await score(detection_questions(examples, seed), judge, batch_size)
        return detection, await score(fuzzing_questions(examples, seed), judge, batch_size)

    def _settings(self) -> dict[str, Any]:
        return self.split.settings.as_dict() | {"batch_size": self.settings.batch_size}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
