#!/usr/bin/env python3
"""Writes the golden vectors that the embedding of the routing core is tested against.

    scripts/golden_embeddings.py SOURCE_DIR > node/routing/tests/golden/embeddings.in

SOURCE_DIR as for pack_embedding.py. Needs the packages model2vec and numpy: an implementation that shares
nothing with ours. The output is Rust text. A prompt without a known word has the neutral vector, all zeros.
"""

import json
import sys
from pathlib import Path

import numpy as np
from model2vec import StaticModel

PROMPTS = [
    "",
    "   \n\t ",
    "Hello, world!",
    "What is the capital of Australia?",
    "Write a Rust function that parses JSON into a struct and returns a Result<Config, Error>.",
    "```python\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n```\nWhy is this slow?",
    "Für die Straßenbahnhaltestelle überquert man die Brücke; können Sie mir das übersetzen?",
    "El niño comió muchísima piña en la montaña, ¿verdad?",
    "Explique-moi la différence entre « où » et « ou », s'il te plaît.",
    "请把下面的句子翻译成英文：我喜欢在北京吃烤鸭。",
    "東京の天気はどうですか？カタカナもテストします。",
    "한국어로 인사말을 써 주세요.",
    "Привет! Объясни, пожалуйста, что такое нейронная сеть.",
    "اكتب لي قصيدة قصيرة عن البحر",
    "Ship it 🚀🚀 the café is über-cool 🦀 lol",
    "∫ x² dx = x³/3 + C; prove that √2 ≠ p/q for integers p, q > 0.",
    "The patient shows acute symptoms of pneumonia. Which antibiotic would you prescribe?\nA. Amoxicillin\nB. Ibuprofen",
    "antidisestablishmentarianism supercalifragilisticexpialidocious " + "x" * 120 + " end",
    "a\u0301 e\u0300 \ufb01ne \u00a0non-breaking\u200bzero\u200dwidth \ufffd control\u0001char \uff21\uff22 \u0130stanbul \u2126 \uac01",
    " ".join(f"Paragraph {n}: the committee shall review item {n * 37} before the {n}th of May, notwithstanding clause {n}(b)."
             for n in range(40)),
]


def main(source: Path) -> None:
    model = StaticModel.from_pretrained(source)
    whiten = json.loads((source / "whiten.json").read_text())
    mean, deviation = np.array(whiten["mean"]), np.array(whiten["std"])
    known = [len(ids) > 0 for ids in model.tokenize(PROMPTS)]
    units = model.encode(PROMPTS, max_length=None, normalize=True).astype(np.float64)
    print('#[allow(clippy::approx_constant, reason = "a coordinate may look like a constant")]')
    print(f"static GOLDEN: [(&str, [f32; {units.shape[1]}]); {len(PROMPTS)}] = [")
    for prompt, is_known, unit in zip(PROMPTS, known, units):
        vector = (unit - mean) / deviation if is_known else np.zeros_like(unit)
        print(f"    ({literal(prompt)}, [{', '.join(f'{value:.5f}' for value in vector)}]),")
    print("];")


def literal(text: str) -> str:
    return '"' + "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\u{{{ord(c):x}}}" for c in text) + '"'


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
