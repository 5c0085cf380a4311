"""Numbers and texts as few bytes: what the latent catalogue's blobs are made of.

A count is 7 bits to the byte, lowest first, the top bit saying that more follow. Floats are little-endian IEEE 754.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator

_RAW_DEFLATE = -15
_LEVEL = 9
MOST_INFLATED_BYTES = 2**24
"""More is no blob of a catalogue: a few bytes can be made to inflate to any number."""


def deflate(data: bytes | bytearray) -> bytes:
    """Compressed, without header and checksum."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW_DEFLATE)
    return packer.compress(data) + packer.flush()


def inflate(data: bytes) -> bytes:
    """What `deflate` compressed; zlib.error if it is nothing of the kind, ValueError if it is too much."""
    unpacker = zlib.decompressobj(_RAW_DEFLATE)
    inflated = unpacker.decompress(data, MOST_INFLATED_BYTES + 1)
    if len(inflated) > MOST_INFLATED_BYTES:
        raise ValueError(f"deflated data must have at most {MOST_INFLATED_BYTES} bytes, got more")
    if not unpacker.eof:
        raise zlib.error("deflated data ends in the middle")
    return inflated


class ByteWriter:
    """Bytes that grow."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def count(self, value: int) -> None:
        """A whole number of 0 or more."""
        assert value >= 0
        while value > 0x7F:
            self.bytes.append(value & 0x7F | 0x80)
            value >>= 7
        self.bytes.append(value)

    def single(self, value: float) -> None:
        """In 4 bytes."""
        self.bytes += struct.pack("<f", value)

    def half(self, value: float) -> None:
        """In 2 bytes."""
        self.bytes += struct.pack("<e", value)

    def block(self, value: bytes) -> None:
        """Bytes, their number first."""
        self.count(len(value))
        self.bytes += value

    def text(self, value: str) -> None:
        self.block(value.encode("utf-8", "replace"))


class ByteReader:
    """Reads what a `ByteWriter` wrote, in the same order. IndexError, struct.error or ValueError if it can't."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def count(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def counts(self, number: int) -> tuple[int, ...]:
        """`number` of them."""
        return tuple([self.count() for _ in range(number)])

    def single(self) -> float:
        return float(self._unpack("<f", 4))

    def half(self) -> float:
        return float(self._unpack("<e", 2))

    def block(self) -> bytes:
        number = self.count()
        block = self._data[self._at : self._at + number]
        if len(block) < number:
            raise IndexError(f"wanted {number} more bytes, got {len(block)}")
        self._at += number
        return block

    def text(self) -> str:
        return self.block().decode("utf-8")

    def _unpack(self, form: str, num_bytes: int) -> float:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += num_bytes
        return value


def pack_postings(weights: Iterable[tuple[int, int]]) -> bytes:
    """(latent, weight) in order of latents: the weights' bytes behind the gaps between latents."""
    stream, tail, before = ByteWriter(), bytearray(), -1
    for latent, weight in weights:
        stream.count(latent - before - 1)
        tail.append(weight)
        before = latent
    return bytes(stream.bytes + tail)


def unpack_postings(data: bytes, number: int) -> Iterator[tuple[int, int]]:
    """What `pack_postings` packed; `number` of them."""
    stream, latent = ByteReader(data), -1
    for weight in data[len(data) - number :]:
        latent += stream.count() + 1
        yield latent, weight
