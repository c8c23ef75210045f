"""Scores `shoal-loadtest replay` on outcomes that it cannot see: prints each figure beside its baselines.

    python tests/routing/score_replay.py BINARY frozen|stream|arms|mesh [--seeds N] [--set NAME] [--price P] [--full] [--cold]

frozen and stream play the two models of a set, arms all of its models, mesh several routers that share.
--full warms by every model's outcome, which no router ever sees: what the features could give at most.
--cold streams a whole set without warming.
"""

import argparse
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import tempfile

from splits import area_under_gain, best_mix, load, split, write_jsonl


def play(binary, models, arms, rows, extra, mean_cost, frozen=False, nodes=None):
    """Plays rows through a pipe; returns the answers."""
    command = [binary, "replay", "--models", str(models), "--arms", ",".join(map(str, arms)), *map(str, extra)]
    if frozen:
        command.append("--frozen")
    pipe = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    answers = []
    pipe.stdin.write(json.dumps({"mean_cost_uusd": {str(a): mean_cost[a] for a in arms}}) + "\n")
    for number, row in enumerate(rows):
        line = {"id": row["id"], "prompt": row["prompt"], "in_tok": row["in_tok"]}
        if nodes:
            line["node"] = number % nodes
        pipe.stdin.write(json.dumps(line) + "\n")
        pipe.stdin.flush()
        answer = json.loads(pipe.stdout.readline())
        assert answer["id"] == row["id"]
        answers.append(answer)
        known = {} if frozen else {"y": {str(a): row["y"][a] for a in [answer["arm"], *answer.get("shadow", [])]}}
        pipe.stdin.write(json.dumps({"id": row["id"], **known}) + "\n")
        pipe.stdin.flush()
    pipe.stdin.close()
    assert pipe.wait() == 0
    return answers


def mean_costs(rows):
    return [statistics.fmean(row["cost_uusd"][a] for row in rows) for a in range(len(rows[0]["y"]))]


def warm_file(train):
    path = pathlib.Path(tempfile.mkdtemp()) / "warm.jsonl"
    write_jsonl(path, train)
    return path


def figures(name, values):
    spread = " ".join(f"{v:.3f}" for v in values)
    print(f"{name:32s} mean {statistics.fmean(values):8.3f}  worst {min(values):8.3f}   [{spread}]", flush=True)


def frozen(binary, seeds, name="routellm_mmlu", full=False):
    """Area under the gain curve after one pass of bandit feedback."""
    rows, models = load(name)
    scored = {}
    for seed in seeds:
        train, held, out, _ = split(rows, seed)
        chance = random.Random(seed)
        for place, part in (("random part", held), ("unseen domains", out)):
            if not part:
                continue
            warm = ["--warm", warm_file(train), "--seed", seed, *(["--warm-full"] if full else [])]
            answers = play(binary, models, [0, 1], part, warm, mean_costs(train), frozen=True)
            for who, gain in (
                ("ours", [a["scores"][1] - a["scores"][0] for a in answers]),
                ("oracle", [r["y"][1] - r["y"][0] for r in part]),
                ("random", [chance.random() for _ in part]),
            ):
                area = area_under_gain(gain, [r["y"][0] for r in part], [r["y"][1] for r in part])
                scored.setdefault(f"APGR {place}, {who}", []).append(area)
    for what, values in scored.items():
        figures(what, values)
    return scored


def stream(binary, seeds, price=0.147, length=5370, name="routellm_mmlu", full=False, cold=False):
    """Utility above the best fixed arm over a stream of unseen rows, learning on."""
    rows, models = load(name)
    above = {"ours": [], "oracle": [], "random": []}
    for seed in seeds:
        train, held, out, _ = split(rows, seed)
        part = rows[:] if cold else held + out
        cost = mean_costs(train)
        relative = [c / max(cost) for c in cost]
        random.Random(seed).shuffle(part)
        warm = [] if cold else ["--warm", warm_file(train), *(["--warm-full"] if full else [])]
        answers = play(binary, models, [0, 1], part, [*warm, "--seed", seed, "--lambda", price], cost)
        worth = lambda row, arm: row["y"][arm] - price * relative[arm]
        fixed = max(sum(worth(r, arm) for r in part) for arm in (0, 1))
        for who, total in (
            ("ours", sum(worth(r, a["arm"]) for r, a in zip(part, answers))),
            ("oracle", sum(max(worth(r, arm) for arm in (0, 1)) for r in part)),
            ("random", sum(worth(r, arm) / 2 for r in part for arm in (0, 1))),
        ):
            above[who].append((total - fixed) / len(part) * length)
    for who, values in above.items():
        figures(f"above fixed in {length}, {who}", values)
    return above


def arms(binary, seeds, share=0.16, name="mmlupro12", full=False):
    """Points of accuracy above the best fixed mix at a share of the dearest arm's cost."""
    rows, models = load(name)
    every = list(range(len(rows[0]["y"])))
    above, oracle = [], []
    for seed in seeds:
        train, held, out, _ = split(rows, seed)
        cost = mean_costs(train)
        relative = [c / max(cost) for c in cost]
        part = held + out
        warm = ["--warm", warm_file(train), "--seed", seed, *(["--warm-full"] if full else [])]
        answers = play(binary, models, every, part, warm, cost, frozen=True)
        points = []
        for step in range(-60, 61):
            price = 10 ** (step / 24)
            chosen = [max(every, key=lambda a: answer["scores"][a] - price * relative[a]) for answer in answers]
            points.append((statistics.fmean(relative[a] for a in chosen), statistics.fmean(r["y"][a] for r, a in zip(part, chosen))))
        mix = best_mix([(relative[a], statistics.fmean(r["y"][a] for r in part)) for a in every], share)
        above.append(100 * (best_mix(points, share) - mix))
        # The cheapest right answer of each row, which costs less than the share.
        oracle.append(100 * (statistics.fmean(max(r["y"]) for r in part) - mix))
    figures(f"points above mix, {name}", above)
    figures("  oracle", oracle)
    return above


def mesh(binary, seeds):
    """Share of what isolated routers lose to one central learner that sharing recovers (MMLU, from cold)."""
    rows, models = load("routellm_mmlu")
    cost = mean_costs(rows)
    relative = [c / max(cost) for c in cost]
    gap = statistics.fmean(r["y"][1] for r in rows) - statistics.fmean(r["y"][0] for r in rows)
    price = gap + 0.03
    for nodes in (8, 16):
        worth = {}
        for seed in seeds:
            order = rows[:]
            random.Random(seed).shuffle(order)
            for name, extra in (
                ("central", ["--nodes", 1]),
                ("isolated", ["--nodes", nodes, "--sync", 0]),
                ("all50", ["--nodes", nodes, "--sync", 50, "--mode", "all"]),
                ("push10", ["--nodes", nodes, "--sync", 10, "--mode", "push"]),
                ("random", ["--policy", "random"]),
            ):
                answers = play(binary, models, [0, 1], order, ["--seed", seed, "--lambda", price, *extra], cost)
                total = sum(r["y"][a["arm"]] - price * relative[a["arm"]] for r, a in zip(order, answers))
                worth.setdefault(name, []).append(total)
        mean = {name: statistics.fmean(values) for name, values in worth.items()}
        lost = mean["central"] - mean["isolated"]
        print(f"{nodes} nodes: central {mean['central']:.0f}, isolated loses {lost:.0f}, random loses {mean['central'] - mean['random']:.0f}")
        for name in ("all50", "push10", "random"):
            print(f"  {name}: recovers {100 * (mean[name] - mean['isolated']) / lost:.0f} %", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("what", choices=["frozen", "stream", "arms", "mesh"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--set", dest="name")
    parser.add_argument("--price", type=float)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--cold", action="store_true")
    given = parser.parse_args()
    wishes = {key: value for key in ("name", "price", "full", "cold") if (value := getattr(given, key))}
    {"frozen": frozen, "stream": stream, "arms": arms, "mesh": mesh}[given.what](given.binary, range(given.seeds), **wishes)
