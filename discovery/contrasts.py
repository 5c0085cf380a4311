"""Short texts for finding latents of ordinary topics, and which of them are for and against each topic.

The *pool* is one list of passages: slices of corpus files, of the model's own chat, and sentences written for the
purpose. A contrast says which passages are positive and which negative, by source, by what the chat was asked about, or
by what the text looks like. Reading the pool once serves all contrasts.

    python -m discovery.contrasts corpus/*.jsonl.gz --chat chat.jsonl --output pool.jsonl
"""

import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from discovery.argument_checks import check_counts
from discovery.chat_prompts import TOPICS
from discovery.command_parser import command_parser
from discovery.contrast_sentences import SENTENCES
from discovery.corpus import read_documents, read_json_lines
from discovery.line_files import write_lines
from discovery.output_places import check_output, made_for
from sae_runtime.language_model import EMBEDDED, load_language_model

PASSAGE_CHARACTERS = 400


_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)(?:<\|im_end\|>|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Passage:
    """One text of the pool."""

    text: str
    source: str
    """Corpus source, `chat`, or `composed/NAME`."""
    group: str
    """Passages of one document or conversation are kept together."""
    topic: str | None = None
    """What the chat was asked about."""


Rule = Callable[[Passage], bool]


@dataclass(frozen=True, slots=True)
class Contrast:
    """A topic to find a latent for."""

    name: str
    description: str
    positive: Rule
    negative: Rule

    def label(self, passage: Passage) -> int | None:
        """1, 0, or None if the passage is neither."""
        if self.positive(passage):
            return 1
        return 0 if self.negative(passage) else None


# --- rules ----------------------------------------------------------------------------------------------------------


def from_source(*sources: str) -> Rule:
    return lambda passage: passage.source in sources


def about(*topics: str) -> Rule:
    unknown = set(topics) - set(TOPICS)
    if unknown:
        raise ValueError(f"no prompt is about {', '.join(sorted(unknown))}")
    return lambda passage: passage.topic in topics


def about_anything(passage: Passage) -> bool:
    return passage.topic is not None


def anything(passage: Passage) -> bool:
    return not passage.source.startswith("composed/")


def composed(name: str) -> Rule:
    return lambda passage: passage.source == f"composed/{name}"


def is_prose(passage: Passage) -> bool:
    return passage.source in PROSE


def matching(rule: Rule, pattern: str, at_least: int) -> Rule:
    """`rule`, and the pattern found `at_least` times; with 0, not found at all."""
    compiled = re.compile(pattern, re.MULTILINE)

    def matches(passage: Passage) -> bool:
        found = len(compiled.findall(passage.text))
        return rule(passage) and (found >= at_least if at_least else found == 0)

    return matches


PROSE = ("novels_100english", "npm_moby_dick", "t0_wiki_qa", "evals_wikipedia", "wikitext2_valid_test")
GOVERNMENT = ("npm_sotu", "nltk_inaugural", "nltk_state_union")

CONTRASTS = (
    Contrast("python_code", "Python source code", from_source("code_python_stdlib"), anything),
    Contrast("sea_and_ships", "ships, sailors and the sea", from_source("npm_moby_dick"), is_prose),
    Contrast("government_speech", "speeches and messages of government", from_source(*GOVERNMENT), is_prose),
    Contrast("bible", "biblical narrative", from_source("nltk_genesis_en"), is_prose),
    Contrast("stage_play", "plays in verse, with speakers' names", from_source("tinyshakespeare"), is_prose),
    Contrast("sql_database", "databases and SQL", from_source("deb_sqlite_doc", "deb_postgresql_doc"), anything),
    Contrast("movie_review", "opinions about films", from_source("nltk_movie_reviews"), is_prose),
    Contrast(
        "cooking",
        "food and cooking",
        about("bread", "chocolate", "coffee", "Italian cooking"),
        about_anything,
    ),
    Contrast(
        "medical",
        "illness, treatment and the body",
        about("vaccines", "diabetes", "the human heart", "headaches", "sleep"),
        about_anything,
    ),
    Contrast(
        "sports", "sports and games", about("football", "chess", "the Olympic Games", "basketball"), about_anything
    ),
    Contrast(
        "money",
        "money, prices and banks",
        about("bank accounts", "taxes", "the stock market", "inflation"),
        about_anything,
    ),
    Contrast(
        "law",
        "law, contracts and courts",
        about("divorce law", "contracts", "the constitution", "renting an apartment"),
        about_anything,
    ),
    Contrast(
        "space_and_physics",
        "physics and outer space",
        about("the moon", "black holes", "gravity", "atoms", "electricity"),
        about_anything,
    ),
    Contrast("music", "music", about("jazz", "the piano"), about_anything),
    Contrast("religion", "religion and faith", about("religion", "Buddhism", "the Bible", "Christmas"), about_anything),
    Contrast(
        "computing",
        "computers and software",
        about("databases", "passwords", "sorting algorithms", "the internet", "machine learning"),
        about_anything,
    ),
    Contrast("animals", "animals", about("whales", "dogs", "cats", "bees", "dinosaurs"), about_anything),
    Contrast(
        "quoted_dialogue", "speech in quotation marks", matching(is_prose, '["“”]', 4), matching(is_prose, '["“”]', 0)
    ),
    Contrast(
        "first_person", "the first person singular", matching(is_prose, r"\bI\b", 3), matching(is_prose, r"\bI\b", 0)
    ),
    Contrast("question", "questions", matching(anything, r"\?", 3), matching(anything, r"\?", 0)),
    Contrast("numbers", "figures and dates", matching(is_prose, r"\d+", 6), matching(is_prose, r"\d", 0)),
    Contrast(
        "numbered_list",
        "items of a numbered list",
        matching(about_anything, r"^\d+\. ", 2),
        matching(about_anything, r"^\d+\. ", 0),
    ),
    Contrast("french", "French", composed("french"), composed("english")),
    Contrast("deceit", "talk of lies and deceit", composed("deceit"), composed("english")),
    Contrast("sadness", "sadness and grief", composed("sadness"), composed("english")),
    Contrast("anger", "anger and complaint", composed("anger"), composed("english")),
    Contrast("joy", "joy and delight", composed("joy"), composed("english")),
)


# --- the pool -------------------------------------------------------------------------------------------------------


def corpus_passages(paths: Iterable[Path], per_source: int, seed: int = 0) -> Iterator[Passage]:
    """`per_source` passages of each source, from as many documents as it has, cut at random places."""
    by_source: dict[str, list[tuple[str, str]]] = {}
    for document in read_documents(paths):
        if isinstance(document.content, str):
            by_source.setdefault(document.source, []).append((document.digest.hex()[:12], document.content))
    for source, documents in sorted(by_source.items()):
        rng = random.Random(f"{seed}/{source}")
        for group, text in _spread(documents, per_source, rng):
            start = rng.randrange(max(1, len(text) - PASSAGE_CHARACTERS))
            # From a word's beginning, so that no passage starts with half a word.
            start = text.find(" ", start) + 1 if start else 0
            yield Passage(text[start : start + PASSAGE_CHARACTERS], source, f"{source}/{group}")


def _spread(documents: list[tuple[str, str]], num: int, rng: random.Random) -> list[tuple[str, str]]:
    """`num` documents: each once if there are enough, else each as often as needed."""
    shuffled = rng.sample(documents, len(documents))
    return (shuffled * (num // len(shuffled) + 1))[:num]


def first_exchanges(path: Path, tokenizer: Any) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """(id, messages) of the first question and reply of each conversation that was asked one of our prompts."""
    for record in read_json_lines(path):
        if record["source"] != "chat_prompted":
            continue
        turns = _TURN.findall(tokenizer.decode(record["tokens"]))
        messages = [{"role": role, "content": content} for role, content in turns]
        until = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)
        if until is not None and len(messages[until]["content"]) >= 40:
            yield record["id"], messages[: until + 1]


def chat_passages(path: Path, tokenizer: Any) -> Iterator[Passage]:
    """The first replies, with what they are about."""
    for identity, messages in first_exchanges(path, tokenizer):
        topic = next((topic for topic in TOPICS if topic in messages[-2]["content"]), None)
        yield Passage(messages[-1]["content"][: 2 * PASSAGE_CHARACTERS], "chat", f"chat/{identity}", topic)


def benign_replies(path: Path, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """First exchanges as labelled items, those left out that ask for something untrue or a pretence."""
    for identity, messages in first_exchanges(path, tokenizer):
        asked = " ".join(message["content"] for message in messages[:-1]).lower()
        if not re.search(r"\blie\b|decept|pretend|pirate|in character", asked):
            yield {"id": f"chat-{identity}", "messages": messages, "label": 0, "group": f"chat/{identity}"}


def composed_passages() -> Iterator[Passage]:
    for name, sentences in SENTENCES.items():
        for index, sentence in enumerate(sentences):
            yield Passage(sentence, f"composed/{name}", f"composed/{name}/{index}")


def read_pool(path: Path) -> list[Passage]:
    return [Passage(**record) for record in read_json_lines(path)]


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("Collect short texts for finding latents of ordinary topics.")
    parser.add_argument("corpus", type=Path, nargs="+", help="JSON lines with text and source; .gz too")
    parser.add_argument("--chat", type=Path, required=True, help="what discovery.chat_corpus wrote")
    parser.add_argument("--output", type=Path, required=True, help="the pool, as JSON lines")
    parser.add_argument("--replies", type=Path, help="also write the chat's benign replies here, for thresholds")
    parser.add_argument("--per-source", type=int, default=40, help="passages of each corpus source")
    parser.add_argument("--model", default=EMBEDDED, help="whose tokenizer cuts the texts")
    args = parser.parse_args(argv)
    check_output("--output", args.output)
    check_output("--replies", args.replies)
    check_counts(args, "per_source", least=0)
    tokenizer = load_language_model(args.model).tokenizer
    passages = [
        *corpus_passages(args.corpus, args.per_source),
        *chat_passages(args.chat, tokenizer),
        *composed_passages(),
    ]
    write_lines(made_for(args.output), map(asdict, passages))
    if args.replies:
        write_lines(made_for(args.replies), benign_replies(args.chat, tokenizer))
    for contrast in CONTRASTS:
        labels = [contrast.label(passage) for passage in passages]
        print(f"{contrast.name:20s} {labels.count(1):5d} positive {labels.count(0):5d} negative")
    return 0


if __name__ == "__main__":
    sys.exit(main())
