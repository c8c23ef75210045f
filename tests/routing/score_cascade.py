#!/usr/bin/env python3
"""Scores `shoal-loadtest cascade` on parts of a set that it was not warmed by.

Each split holds out a random fifth of the rows and, apart from it, whole domains. The program is warmed by the rest
and asked over its pipe; the truth stays here. Figures are pooled over the splits: areas and gaps are summed before
they are divided, since the gap between the models of a few domains can be next to nothing.

APGR = area under (accuracy - local) / (strong - local) over the share of strong calls, when ranked by gain; random
is 0.5. CPT50 and CPT80 = share of strong calls that reaches 50 and 80 % of the gap. ECE = expected calibration error of
the confidence against the local outcome, ten bins of equal width; `floor` is what chance alone gives a perfectly
calibrated confidence on as many rows. Standard library only.

    python tests/routing/score_cascade.py --bin target/release/shoal-loadtest --set mmlupro12 \\
        --local 4 --strong 11 --peers 0,1,2,3 --splits 20
    python tests/routing/score_cascade.py --bin target/release/shoal-loadtest --table confidence_cosmosqa \\
        --local Mistral-7B-v0.1 --strong Yi-34B
"""

import argparse
import csv
import gzip
import json
import pathlib
import random
import subprocess
import tempfile

import splits

BINS = 10


class Pipe:
    """The program under test, one question and one outcome at a time."""

    def __init__(self, command):
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request):
        self._write(request)
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"no answer to {request['id']}; exit {self.child.wait()}")
        return json.loads(line)

    def tell(self, outcome):
        self._write(outcome)

    def close(self):
        self.child.stdin.close()
        if self.child.wait() != 0:
            raise RuntimeError(f"exit {self.child.returncode}")

    def _write(self, value):
        self.child.stdin.write(json.dumps(value) + "\n")
        self.child.stdin.flush()


def area(rows, score):
    """Mean gain over all shares of strong calls, with ties taken in any order, and the gain of calling always."""
    levels = {}
    for row in rows:
        levels.setdefault(score(row), []).append(row["strong"] - row["local"])
    gained, total, steps = 0.0, 0.0, 1
    for level in sorted(levels, reverse=True):
        mean, count = sum(levels[level]) / len(levels[level]), len(levels[level])
        total += count * gained + mean * count * (count + 1) / 2
        gained += mean * count
        steps += count
    return total / steps / len(rows), gained / len(rows)


def calls_to_reach(rows, score, share):
    """Share of strong calls after which the gap is first closed so far."""
    ranked = sorted(rows, key=score, reverse=True)
    goal, gained = share * sum(row["strong"] - row["local"] for row in rows), 0.0
    for calls, row in enumerate(ranked, 1):
        gained += row["strong"] - row["local"]
        if gained >= goal:
            return calls / len(rows)
    return 1.0


def ece(rows, outcome):
    bins = [[0.0, 0.0] for _ in range(BINS)]
    for row in rows:
        at = min(int(row["confidence"] * BINS), BINS - 1)
        bins[at][0] += row["confidence"]
        bins[at][1] += outcome(row)
    return sum(abs(said - was) for said, was in bins) / len(rows)


def ece_floor(rows, rng, draws=20):
    return sum(ece(rows, lambda row: float(rng.random() < row["confidence"])) for _ in range(draws)) / draws


def signals_of(row, local, peers):
    choice = row["pred"][local]
    agreement = sum(row["pred"][peer] == choice for peer in peers) / len(peers) if peers else None
    signals = {"agreement": agreement, "out_tok": row["out_tok"][local], "valid": choice != "-"}
    return {name: value for name, value in signals.items() if value is not None}


def outcome_of(row, told, escalated):
    """What the program may learn of a row: both outcomes, what a node would see of it, or nothing."""
    match told:
        case "both":
            return {"y_local": row["local"], "y_strong": row["strong"]}
        case "escalated":
            return {"y_local": row["local"]} | ({"y_strong": row["strong"]} if escalated else {})
        case _:
            return {}


def play(command, rows, told):
    """Plays rows to the program and notes what it says of each."""
    pipe = Pipe(command)
    for row in rows:
        answer = pipe.ask(row["request"])
        row["confidence"], row["gain"] = answer["confidence"], answer["gain"]
        pipe.tell({"id": row["request"]["id"]} | outcome_of(row, told, answer["escalate"]))
    pipe.close()


def set_split(args, source, seed, folder):
    """Writes the warming rows of a set; returns the command, the held-out rows by part, and the unseen domains."""
    rows, models = source
    train, held, out, unseen = splits.split(rows, seed)
    splits.write_jsonl(folder / "warm.jsonl", train)
    peers = [int(peer) for peer in args.peers.split(",") if peer]
    local, strong = int(args.local), int(args.strong)

    def asked(row):
        request = {name: row[name] for name in ("id", "prompt", "in_tok")} | {"signals": signals_of(row, local, peers)}
        return {"request": request, "local": row["y"][local], "strong": row["y"][strong]}

    command = ["--models", models, "--local", local, "--strong", strong, "--peers", args.peers, "--warm", folder / "warm.jsonl"]
    return command, {"random": [asked(row) for row in held], "unseen": [asked(row) for row in out]}, unseen


def table_split(args, source, seed, folder):
    """The same for a table of option probabilities; it has no domains."""
    rows = [row | {"domain": "all"} for row in source]
    train, held, _, _ = splits.split(rows, seed)
    with open(folder / "warm.csv", "w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, source[0].keys(), extrasaction="ignore")
        table.writeheader()
        table.writerows(train)

    def asked(row):
        signals = {name: float(row[f"{args.local}:{name}"]) for name in ("margin", "pmax", "entropy")}
        outcomes = {"local": float(row[f"{args.local}:ok"]), "strong": float(row[f"{args.strong}:ok"])}
        return {"request": {"id": row["id"], "signals": signals}} | outcomes

    command = ["--local", args.local, "--strong", args.strong, "--signals", folder / "warm.csv"]
    return command, {"random": [asked(row) for row in held], "unseen": []}, []


def load_table(name):
    with gzip.open(splits.DATA / "confidence" / f"{name}.csv.gz", "rt", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def measures(rows, rng):
    """Figures of one part of one split."""
    gap = lambda row: row["strong"] - row["local"]
    scores = {
        "ours": lambda row: row["gain"],
        "confidence": lambda row: -row["confidence"],
        "votes": lambda row: -row["request"]["signals"].get("agreement", row["request"]["signals"].get("margin", 0.0)),
        "oracle": gap,
    }
    figures = {name: area(rows, score) for name, score in scores.items()}
    figures["cpt"] = [calls_to_reach(rows, scores["ours"], share) for share in (0.5, 0.8)]
    figures["ece"] = (ece(rows, lambda row: row["local"]), ece_floor(rows, rng))
    return figures


def pooled(parts):
    """Figures of one part over all splits."""
    apgr = {
        name: sum(part[name][0] for part in parts) / sum(part[name][1] for part in parts)
        for name in ("ours", "confidence", "votes", "oracle")
    }
    mean = lambda values: sum(values) / len(parts)
    cpt = [mean(part["cpt"][at] for part in parts) for at in (0, 1)]
    error, floor = (mean(part["ece"][at] for part in parts) for at in (0, 1))
    worst = min(part["ours"][0] / part["ours"][1] for part in parts)
    return {"apgr": apgr | {"random": 0.5}, "cpt50": cpt[0], "cpt80": cpt[1], "ece": error, "ece_floor": floor, "worst": worst}


def score(args):
    """Runs all splits; returns the figures by part."""
    source = load_table(args.table) if args.table else splits.load(args.set)
    make = table_split if args.table else set_split
    found = {"random": [], "unseen": []}
    for seed in range(args.first_seed, args.first_seed + args.splits):
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            command, held, unseen = make(args, source, seed, pathlib.Path(folder))
            for part in held.values():
                rng.shuffle(part)
            command = [str(word) for word in [args.bin, "cascade", *command, "--seed", seed]]
            if args.order == "mixed":
                both = held["random"] + held["unseen"]
                rng.shuffle(both)
                play(command, both, args.told)
            for part, part_rows in held.items():
                if part_rows and args.order != "mixed":
                    play(command, part_rows, args.told)
                if part_rows:
                    found[part].append(measures(part_rows, rng))
        if args.verbose:
            print(seed, unseen, {part: round(f[-1]["ours"][0] / f[-1]["ours"][1], 3) for part, f in found.items() if f}, flush=True)
    return {part: pooled(figures) for part, figures in found.items() if figures}


def parser():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--bin", required=True, help="the program shoal-loadtest")
    args.add_argument("--set", help="name of a set of outcomes in data/routing")
    args.add_argument("--table", help="name of a table of option probabilities in data/confidence")
    args.add_argument("--local", required=True)
    args.add_argument("--strong", required=True)
    args.add_argument("--peers", default="")
    args.add_argument("--splits", type=int, default=10)
    args.add_argument("--first-seed", type=int, default=0)
    args.add_argument("--told", choices=["both", "escalated", "none"], default="both")
    args.add_argument("--order", choices=["apart", "mixed"], default="apart")
    args.add_argument("--verbose", action="store_true", help="print every split")
    args.add_argument("--json", action="store_true")
    return args


def main():
    args = parser().parse_args()
    figures = score(args)
    if args.json:
        print(json.dumps(figures))
        return
    print("part    APGR ours  confidence  votes  oracle  random   CPT50  CPT80   ECE   (floor)  worst split")
    for part, f in figures.items():
        a = f["apgr"]
        print(
            f"{part:7} {a['ours']:9.3f} {a['confidence']:11.3f} {a['votes']:6.3f} {a['oracle']:7.3f} {a['random']:7.3f} "
            f"{f['cpt50']:7.3f} {f['cpt80']:6.3f} {f['ece']:6.3f} ({f['ece_floor']:.3f}) {f['worst']:9.3f}"
        )


if __name__ == "__main__":
    main()
