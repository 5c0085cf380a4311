"""One latent's entry as bytes. Tokens are ranks in the catalogue's own table, sources places in its list of names.

Only what is not 0 is stored of an example's readings, and only the filled middle of a histogram.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from monitors.byte_stream import ByteReader, ByteWriter, deflate, inflate
from monitors.latent_entry import SILENT, Effect, LatentEntry, QuotedExample, Said, Score
from monitors.token_pieces import pieces_of


class TokenTable:
    """The tokens that a catalogue quotes, most frequent first, so that most of them take a byte or two."""

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        """Bytes by id, in the order of the ranks."""
        self.ids = tuple(tokens)
        self._bytes = tuple(tokens.values())
        self._ranks = {token_id: rank for rank, token_id in enumerate(self.ids)}

    def rank(self, token_id: int) -> int:
        return self._ranks[token_id]

    def text(self, rank: int) -> str:
        """One token by itself."""
        return self._bytes[rank].decode("utf-8", "replace")

    def pieces(self, ranks: Sequence[int]) -> tuple[str, ...]:
        """Texts of tokens that follow each other."""
        return pieces_of([self._bytes[rank] for rank in ranks])

    def pack(self) -> bytes:
        stream = ByteWriter()
        stream.count(len(self.ids))
        for token_id in self.ids:
            stream.count(token_id)
        for token in self._bytes:
            stream.block(token)
        return deflate(stream.bytes)

    @classmethod
    def unpack(cls, data: bytes) -> "TokenTable":
        stream = ByteReader(inflate(data))
        ids = stream.counts(stream.count())
        return cls({token_id: stream.block() for token_id in ids})


class EntryCodec:
    """Packs and unpacks entries of one catalogue."""

    def __init__(self, tokens: TokenTable, sources: Sequence[str], num_bins: int) -> None:
        self._tokens, self._sources, self._num_bins = tokens, tuple(sources), num_bins

    def pack(self, entry: LatentEntry) -> bytes:
        stream = ByteWriter()
        stream.single(entry.mean_active)
        stream.count(entry.said is not None)
        if entry.said is not None:
            _pack_said(stream, entry.said)
        stream.count(len(entry.sources))
        for source, share in entry.sources:
            stream.count(self._sources.index(source))
            stream.half(share)
        self._pack_histogram(stream, entry.histogram)
        for effects in (entry.promoted, entry.suppressed):
            stream.count(len(effects))
            for effect in effects:
                stream.count(self._tokens.rank(effect.token_id))
                stream.half(effect.logit)
        stream.count(len(entry.examples))
        for example in entry.examples:
            self._pack_example(stream, example)
        return deflate(stream.bytes)

    def unpack(self, data: bytes) -> LatentEntry:
        """ValueError or LookupError and the like if `data` is no entry of this catalogue."""
        stream = ByteReader(inflate(data))
        entry = LatentEntry(
            mean_active=stream.single(),
            said=_unpack_said(stream),
            sources=tuple((self._sources[stream.count()], stream.half()) for _ in range(stream.count())),
            histogram=self._unpack_histogram(stream),
            promoted=self._unpack_effects(stream),
            suppressed=self._unpack_effects(stream),
            examples=tuple(self._unpack_example(stream) for _ in range(stream.count())),
        )
        if not stream.is_at_end:
            raise ValueError("bytes are left over behind an entry")
        return entry

    @staticmethod
    def unpack_head(data: bytes) -> LatentEntry:
        """An entry of mean and explanation alone, which stand first: what a long list can afford."""
        stream = ByteReader(inflate(data))
        return replace(SILENT, mean_active=stream.single(), said=_unpack_said(stream))

    def _pack_histogram(self, stream: ByteWriter, counts: Sequence[int]) -> None:
        filled = [i for i, number in enumerate(counts) if number]
        first, end = (filled[0], filled[-1] + 1) if filled else (0, 0)
        stream.count(end - first)
        stream.count(first)
        for number in counts[first:end]:
            stream.count(number)

    def _unpack_histogram(self, stream: ByteReader) -> tuple[int, ...]:
        number, first = stream.counts(2)
        if not number:
            return ()
        if first + number > self._num_bins:  # before as many zeros are made
            raise ValueError(f"histogram must have {self._num_bins} bins, got {number} behind {first}")
        counts = stream.counts(number)
        return (0,) * first + counts + (0,) * (self._num_bins - first - number)

    def _unpack_effects(self, stream: ByteReader) -> tuple[Effect, ...]:
        effects = []
        for _ in range(stream.count()):
            rank = stream.count()
            effects.append(Effect(self._tokens.ids[rank], self._tokens.text(rank), stream.half()))
        return tuple(effects)

    def _pack_example(self, stream: ByteWriter, example: QuotedExample) -> None:
        stream.single(example.reading)
        stream.count(self._sources.index(example.source))
        stream.count(example.focus)
        stream.count(len(example.token_ids))
        for token_id in example.token_ids:
            stream.count(self._tokens.rank(token_id))
        active = [i for i, reading in enumerate(example.readings) if reading]
        stream.count(len(active))
        for i in active:
            stream.count(i)
        for i in active:
            stream.half(example.readings[i])

    def _unpack_example(self, stream: ByteReader) -> QuotedExample:
        reading, source, focus = stream.single(), self._sources[stream.count()], stream.count()
        ranks = stream.counts(stream.count())
        readings = [0.0] * len(ranks)
        for i in stream.counts(stream.count()):
            readings[i] = stream.half()
        ids = tuple(self._tokens.ids[rank] for rank in ranks)
        return QuotedExample(reading, source, focus, ids, self._tokens.pieces(ranks), tuple(readings))


def _pack_said(stream: ByteWriter, said: Said) -> None:
    for text in (said.title, said.summary, said.explainer):
        stream.text(text)
    stream.count(len(said.dominant_tokens))
    for token in said.dominant_tokens:
        stream.text(token)
    for score in (said.detection, said.fuzzing):
        stream.count(score.num_windows if score else 0)
        if score:
            stream.single(score.balanced_accuracy)


def _unpack_said(stream: ByteReader) -> Said | None:
    if not stream.count():
        return None
    title, summary, explainer = stream.text(), stream.text(), stream.text()
    tokens = tuple(stream.text() for _ in range(stream.count()))
    return Said(title, summary, tokens, explainer, _unpack_score(stream), _unpack_score(stream))


def _unpack_score(stream: ByteReader) -> Score | None:
    num_windows = stream.count()
    return Score(stream.single(), num_windows) if num_windows else None
