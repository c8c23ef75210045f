#!/usr/bin/env python3
"""Packs a static token table of model2vec layout into the one file that the routing core embeds.

    scripts/pack_embedding.py SOURCE_DIR [node/routing/assets/embedding.bin]

SOURCE_DIR holds model.safetensors (int8 rows), tokenizer.json (BERT WordPiece) and whiten.json (mean and
deviation of each dimension of unit vectors). Standard library only; the same source gives the same bytes
(the Unicode tables are those of the Python that runs it: 14.0 for the file at hand).

Layout, little endian, each section right after the one before:

    magic "SHOALEMB", then u32: version, rows, dims, slots, token bytes, pages, folds, fold bytes
    mean f32[dims], deviation f32[dims]
    slots u32[slots]        open addressing; low half the row or 0xffff, high half the low half of the key's hash
    token ends u32[rows], token bytes
    page of each 256 code points u8[4352], pages u16[pages][256]: what becomes of a character (see FATES)
    fold ends u32[folds], fold bytes (UTF-8, blanks part words)
    rows i8[rows][dims]
"""

import json
import struct
import sys
import unicodedata
from pathlib import Path

MAGIC, VERSION = b"SHOALEMB", 1
EMPTY = 0xFFFF
# Seeds of the hash of a word's first piece and of a later one (FNV-1a, 32 bits).
SEED_FIRST, SEED_LATER, PRIME = 0x811C9DC5, 0x5BD1E995, 0x01000193
SPREAD = 0x9E3779B1
# FATES: what becomes of a character. From FOLD on: it is replaced by fold number fate - FOLD.
KEEP, DROP, BLANK, ALONE, HANGUL, FOLD = range(6)
PLANES = 0x110000
CJK = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
       (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]


def main(source: Path, target: Path) -> None:
    rows, count, dims = read_rows(source / "model.safetensors")
    tokens = read_vocabulary(source / "tokenizer.json", count)
    whiten = json.loads((source / "whiten.json").read_text())
    if len(whiten["mean"]) != dims or len(whiten["std"]) != dims:
        sys.exit("whiten.json and model.safetensors differ in dimensions")
    slots = index(tokens)
    page_of, pages, folds = characters()
    token_bytes, fold_bytes = b"".join(tokens), b"".join(folds)
    out = MAGIC + u32s([VERSION, count, dims, len(slots), len(token_bytes), len(pages), len(folds), len(fold_bytes)])
    out += struct.pack(f"<{2 * dims}f", *whiten["mean"], *whiten["std"])
    out += u32s(slots) + u32s(ends(tokens)) + token_bytes
    out += bytes(page_of) + b"".join(struct.pack("<256H", *page) for page in pages)
    out += u32s(ends(folds)) + fold_bytes + rows
    target.write_bytes(out)
    print(f"{target}: {len(out)} bytes, {count} rows of {dims}, {len(pages)} pages, {len(folds)} folds")


def read_rows(path: Path) -> tuple[bytes, int, int]:
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    table = header.pop("embeddings")
    if table["dtype"] != "I8" or any(name != "__metadata__" for name in header):
        sys.exit(f"{path}: expected nothing but int8 'embeddings', no mapping and no weights")
    (count, dims), (start, end) = table["shape"], table["data_offsets"]
    return raw[8 + length + start : 8 + length + end], count, dims


def read_vocabulary(path: Path, count: int) -> list[bytes]:
    tokenizer = json.loads(path.read_text())
    model = tokenizer["model"]
    expected = ("WordPiece", "##", 100, "BertNormalizer", "BertPreTokenizer")
    found = (model["type"], model["continuing_subword_prefix"], model["max_input_chars_per_word"],
             tokenizer["normalizer"]["type"], tokenizer["pre_tokenizer"]["type"])
    if found != expected:
        sys.exit(f"{path}: expected {expected}, found {found}")
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    if len(tokens) != count or len(tokens) >= EMPTY or sorted(model["vocab"].values()) != list(range(count)):
        sys.exit(f"{path}: the ids of the vocabulary are not those of the {count} rows")
    return [token.encode() for token in tokens]


def index(tokens: list[bytes]) -> list[int]:
    size = 1 << (2 * len(tokens) - 1).bit_length()
    slots = [EMPTY] * size
    for row, token in enumerate(tokens):
        later = token.startswith(b"##") and len(token) > 2
        hashed = SEED_LATER if later else SEED_FIRST
        for byte in token[2:] if later else token:
            hashed = ((hashed ^ byte) * PRIME) & 0xFFFFFFFF
        at = (hashed * SPREAD & 0xFFFFFFFF) >> 16 & (size - 1)
        while slots[at] & 0xFFFF != EMPTY:
            at = (at + 1) % size
        slots[at] = row | (hashed & 0xFFFF) << 16
    return slots


def characters() -> tuple[list[int], list[tuple[int, ...]], list[bytes]]:
    """Returns the page of each 256 code points, the pages, and the folds."""
    folds: dict[bytes, int] = {}
    pages: dict[tuple[int, ...], int] = {}
    page_of = []
    for start in range(0, PLANES, 256):
        page = tuple(fate(chr(code), folds) for code in range(start, start + 256))
        page_of.append(pages.setdefault(page, len(pages)))
    if len(pages) > 256 or len(folds) + FOLD > 0xFFFF:
        sys.exit("too many pages or folds for the layout")
    return page_of, list(pages), list(folds)


def fate(char: str, folds: dict[bytes, int]) -> int:
    """What BertNormalizer (clean, lowercase, strip accents, space CJK) and BertPreTokenizer make of a character."""
    code, category = ord(char), unicodedata.category(char)
    if char in "\t\n\r":
        return BLANK
    if code == 0xFFFD or category in ("Cc", "Cf", "Co", "Cs"):
        return DROP
    if char.isspace():
        return BLANK
    if 0xAC00 <= code <= 0xD7A3:
        return HANGUL
    bare = "".join(c for c in unicodedata.normalize("NFD", char) if unicodedata.category(c) != "Mn")
    folded = "".join(c.lower() for c in bare)
    alone = any(first <= code <= last for first, last in CJK)
    if folded == char:
        return ALONE if alone or is_punctuation(char) else KEEP
    if not folded:
        return DROP
    text = "".join(f" {c} " if alone or is_punctuation(c) else c for c in folded)
    return FOLD + folds.setdefault(text.encode(), len(folds))


def is_punctuation(char: str) -> bool:
    ascii_mark = "!" <= char <= "~" and not char.isalnum()
    return ascii_mark or unicodedata.category(char).startswith("P")


def u32s(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def ends(parts: list[bytes]) -> list[int]:
    total, out = 0, []
    for part in parts:
        total += len(part)
        out.append(total)
    return out


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    default = Path(__file__).parent.parent / "node/routing/assets/embedding.bin"
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else default)
