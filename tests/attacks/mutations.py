"""Inputs near to what a reader takes: cut, doubled, overwritten, spliced, with words that readers trip over."""

import random
from collections.abc import Sequence

WORDS = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"[" * 2000,
    b"{" * 2000,
    b'{"a":' * 2000,
    b"9" * 5000,
    b"-1",
    b"0",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-0.0",
    b"null",
    b"true",
    b'""',
    b"''",
    b"\n",
    b"\r\n",
    b"\x1b[2J",
    b"../",
    b"/",
    b"~x/",
    b"a." * 1000,
    b"18446744073709551616",
    b"9223372036854775808",
    b"\xe2\x80\xae",
    b"=",
    b"#",
    b"@",
    b"%s",
    b"${x}",
    b"[[",
)
_LONGEST = 2**18


def mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One input, a few changes away from a seed, or of nothing but words."""
    data = bytearray(chance.choice(seeds) if seeds and chance.random() < 0.95 else b"")
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 1, 4, 64, 4096)))
        kind = chance.randrange(6)
        if kind == 0:
            del data[start:end]
        elif kind == 1:
            data[start:end] = chance.choice(WORDS)
        elif kind == 2:
            data[start:start] = data[start:end]
        elif kind == 3:
            data[start:end] = chance.randbytes(end - start)
        elif kind == 4 and start < len(data):
            data[start] ^= 1 << chance.randrange(8)
        else:
            other = chance.choice(seeds) if seeds else b""
            data = data[:start] + other[chance.randrange(len(other) + 1) :]
    return bytes(data[:_LONGEST])
