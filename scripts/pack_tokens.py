#!/usr/bin/env python3
"""Packs a token table of tiktoken into the one file that the routing core counts with.

    scripts/pack_tokens.py o200k_base.tiktoken[.gz] [node/routing/assets/o200k.bin]

Standard library only; the same source gives the same bytes (character classes are those of Unicode 14.0, of the
Python that made the file at hand). Layout, little endian, each section right after the one before:

    magic "SHOALBPE", then u32: version, tokens, slots, pages
    slots u64[slots]        open addressing; low 18 bits the rank or all ones, high 46 bits those of the token's hash
    page of each 256 code points u8[4352], pages u8[pages][256]: the class of a character (see CLASSES)
"""

import base64
import gzip
import struct
import sys
import unicodedata
from pathlib import Path

MAGIC, VERSION = b"SHOALBPE", 1
RANK_BITS = 18
EMPTY = (1 << RANK_BITS) - 1
SLOTS = 1 << RANK_BITS
MASK = (1 << 64) - 1
SPREAD, LENGTH_SPREAD = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
# CLASSES of the pattern that parts text before it is merged.
OTHER, UPPER, LOWER, LETTER, MARK, NUMBER, BLANK, LINE_END = range(8)
BY_CATEGORY = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": LETTER, "Lo": LETTER,
               "Mn": MARK, "Mc": MARK, "Me": MARK, "Nd": NUMBER, "Nl": NUMBER, "No": NUMBER}
# White_Space of Unicode; str.isspace knows four controls more.
BLANKS = set("\t\v\f \u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(code) for code in range(0x2000, 0x200B)}


def main(source: Path, target: Path) -> None:
    raw = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
    ranked = sorted((int(rank), base64.b64decode(token)) for token, rank in (line.split() for line in raw.splitlines() if line))
    if [rank for rank, _ in ranked] != list(range(len(ranked))) or len(ranked) >= EMPTY:
        sys.exit(f"{source}: ranks have gaps, or there are too many")
    tokens = [token for _, token in ranked]
    slots = index(tokens)
    page_of, pages = classes()
    out = MAGIC + struct.pack("<4I", VERSION, len(tokens), len(slots), len(pages))
    out += struct.pack(f"<{len(slots)}Q", *slots) + bytes(page_of) + b"".join(map(bytes, pages))
    target.write_bytes(out)
    print(f"{target}: {len(out)} bytes, {len(tokens)} tokens of up to {max(map(len, tokens))} bytes, {len(pages)} pages")


def hashed(token: bytes) -> int:
    value = len(token) * LENGTH_SPREAD & MASK
    for start in range(0, len(token), 8):
        chunk = int.from_bytes(token[start : start + 8], "little")
        value = ((value ^ chunk) * SPREAD) & MASK
        value ^= value >> 32
    return value


def index(tokens: list[bytes]) -> list[int]:
    slots = [EMPTY] * SLOTS
    if len(set(map(hashed, tokens))) != len(tokens):
        sys.exit("two tokens have the same hash: choose another spread")
    for rank, token in enumerate(tokens):
        value = hashed(token)
        at = value % SLOTS
        while slots[at] & EMPTY != EMPTY:
            at = (at + 1) % SLOTS
        slots[at] = rank | value >> RANK_BITS << RANK_BITS
    return slots


def classes() -> tuple[list[int], list[tuple[int, ...]]]:
    pages: dict[tuple[int, ...], int] = {}
    page_of = []
    for start in range(0, 0x110000, 256):
        page = tuple(class_of(chr(code)) for code in range(start, start + 256))
        page_of.append(pages.setdefault(page, len(pages)))
    if len(pages) > 256:
        sys.exit("too many pages for the layout")
    return page_of, list(pages)


def class_of(char: str) -> int:
    if char in "\r\n":
        return LINE_END
    if char in BLANKS:
        return BLANK
    return BY_CATEGORY.get(unicodedata.category(char), OTHER)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    default = Path(__file__).parent.parent / "node/routing/assets/o200k.bin"
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else default)
