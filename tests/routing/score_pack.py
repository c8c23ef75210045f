"""Measures what a router pack brings to a cold start, on a set that the pack knows nothing of.

    python tests/routing/score_pack.py SHOAL_LOADTEST SHOAL [--seeds N] [--length N] [--set NAME]

For each evaluated set a pack is trained on the *other* sets: without the evaluated models, and without any prompt
that holds the beginning of an evaluated one. Then a stream is learnt from nothing, with and without that pack, and
the utility above the best fixed arm is printed, for the whole stream and for its beginning.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import tempfile

from score_replay import figures, mean_costs, play
from splits import area_under_gain, load, split, write_jsonl

SETS = ("llmrouter9", "mmlupro12", "routellm_gsm8k", "routellm_mmlu", "routerbench11")
# Evaluated set, arms, and words in the names of models that the pack must not have seen.
STREAMS = (
    ("routellm_mmlu", (0, 1), ("mixtral-8x7b", "gpt-4-1106")),
    ("mmlupro12", (4, 11), ("llama-3.1-8b", "gemini-1.5-pro")),
    ("mmlupro12", (0, 4, 8, 9, 11), ("phi-3", "llama-3.1", "gemini-1.5")),
    ("llmrouter9", (1, 2, 3, 8), ("gemma", "llama", "qwen2.5")),
    ("routerbench11", (8, 9), ()),
)
# Characters of letters and digits at a prompt's beginning by which it is known again.
WINDOW = 40


def plain(prompt):
    return "".join(c for c in prompt.lower() if c.isalnum())


def training_pack(shoal, folder, evaluated, foreign):
    """Trains a pack on the other sets; returns its file and the rows that were left out for their prompts."""
    rows, _ = load(evaluated)
    begins = {plain(row["prompt"])[:WINDOW] for row in rows}
    words, left_out = [], 0
    for name in SETS:
        if name == evaluated:
            continue
        others, models = load(name)
        names = json.loads(models.read_text())["models"]
        kept = [at for at, model in enumerate(names) if not any(word in model.lower() for word in foreign)]
        strange = []
        for row in others:
            text = plain(row["prompt"])
            if any(text[at:at + WINDOW] in begins for at in range(max(1, len(text) - WINDOW + 1))):
                left_out += 1
                continue
            strange.append({"prompt": row["prompt"], "in_tok": row["in_tok"], "y": [row["y"][at] for at in kept]})
        if not kept:
            continue
        write_jsonl(folder / f"{name}.jsonl", strange)
        (folder / f"{name}.models.json").write_text(json.dumps({"models": [names[at] for at in kept]}))
        words += ["--from", folder / f"{name}.jsonl"]
    out = folder / "other.pack"
    subprocess.run([shoal, "router", "train", *map(str, words), "--classes-only", "--unsigned", "--out", out,
                    "--data-dir", folder / "none"], check=True, stdout=subprocess.DEVNULL)
    return out, left_out


def cold(binary, shoal, evaluated, arms, foreign, seeds, length, price):
    rows, models = load(evaluated)
    names = json.loads(models.read_text())["models"]
    with tempfile.TemporaryDirectory() as folder:
        pack, left_out = training_pack(shoal, pathlib.Path(folder), evaluated, foreign)
        foreign_text = ", ".join(names[arm] for arm in arms)
        print(f"\n{evaluated}: {foreign_text}; price {price}; {left_out} rows of other sets left out", flush=True)
        cost = mean_costs(rows)
        if len(arms) == 2:
            answers = play(binary, models, list(arms), rows, ["--pack", pack], cost, frozen=True)
            gain = [answer["scores"][1] - answer["scores"][0] for answer in answers]
            outcomes = ([row["y"][arm] for row in rows] for arm in arms)
            print(f"APGR before anything is learnt: {area_under_gain(gain, *outcomes):.3f} (without a pack .5)", flush=True)
        above = {}
        for seed in seeds:
            order = rows[:]
            random.Random(seed).shuffle(order)
            order = order[:length]
            dearest = max(cost[arm] for arm in arms)
            worth = lambda row, arm: row["y"][arm] - price * cost[arm] / dearest
            for name, extra in (("without", []), ("with", ["--pack", pack])):
                answers = play(binary, models, list(arms), order, ["--seed", seed, "--lambda", price, *extra], cost)
                for part in (300, 1000, length):
                    head = order[:part]
                    fixed = max(sum(worth(r, arm) for r in head) for arm in arms)
                    ours = sum(worth(r, a["arm"]) for r, a in zip(head, answers))
                    above.setdefault((len(head), name), []).append(ours - fixed)
        for (part, name), values in sorted(above.items()):
            figures(f"first {part}, {name} pack", values)
        for part in sorted({part for part, _ in above}):
            gains = [b - a for a, b in zip(above[part, "without"], above[part, "with"])]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
            print(f"gain of the pack, first {part}: {statistics.fmean(gains):+.1f} (standard error {error:.1f})", flush=True)


def handed_over(binary, shoal, evaluated, arms, seeds, length, price):
    """What a pack of the *same* models brings on prompts and domains that its maker never saw."""
    rows, models = load(evaluated)
    print(f"\n{evaluated}: a pack of the same models, from other prompts; price {price}", flush=True)
    above = {"without": [], "with": []}
    for seed in seeds:
        train, held, out, _ = split(rows, seed)
        part = held + out
        random.Random(seed).shuffle(part)
        part = part[:length]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            write_jsonl(folder / "own.jsonl", [{k: row[k] for k in ("prompt", "in_tok", "y")} for row in train])
            (folder / "own.models.json").write_bytes(models.read_bytes())
            pack = folder / "own.pack"
            subprocess.run([shoal, "router", "train", "--from", folder / "own.jsonl", "--unsigned", "--out", pack,
                            "--data-dir", folder / "none"], check=True, stdout=subprocess.DEVNULL)
            cost = mean_costs(train)
            dearest = max(cost[arm] for arm in arms)
            worth = lambda row, arm: row["y"][arm] - price * cost[arm] / dearest
            fixed = max(sum(worth(r, arm) for r in part) for arm in arms)
            for name, extra in (("without", []), ("with", ["--pack", pack])):
                answers = play(binary, models, list(arms), part, ["--seed", seed, "--lambda", price, *extra], cost)
                above[name].append(sum(worth(r, a["arm"]) for r, a in zip(part, answers)) - fixed)
    for name, values in above.items():
        figures(f"first {length}, {name} pack", values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loadtest")
    parser.add_argument("shoal")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--length", type=int, default=5370)
    parser.add_argument("--price", type=float, default=0.147)
    parser.add_argument("--set", help="evaluate this set only")
    parser.add_argument("--same", action="store_true", help="a pack of the same models instead, from other prompts")
    given = parser.parse_args()
    if given.same:
        for evaluated, arms, _ in STREAMS[:3]:
            if given.set in (None, evaluated):
                handed_over(given.loadtest, given.shoal, evaluated, arms, range(given.seeds), given.length, given.price)
        raise SystemExit
    for evaluated, arms, foreign in STREAMS:
        if given.set in (None, evaluated):
            cold(given.loadtest, given.shoal, evaluated, arms, foreign, range(given.seeds), given.length, given.price)
