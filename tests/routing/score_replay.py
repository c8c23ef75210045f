"""Scores `shoal-loadtest replay` on outcomes that it cannot see: prints each figure beside its baselines.

    python tests/routing/score_replay.py BINARY frozen|stream|arms|mesh [--seeds N]
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


def frozen(binary, seeds):
    """Area under the gain curve after one pass of bandit feedback."""
    rows, models = load("routellm_mmlu")
    random_part, unseen_part = [], []
    for seed in seeds:
        train, held, out, _ = split(rows, seed)
        for part, result in ((held, random_part), (out, unseen_part)):
            answers = play(binary, models, [0, 1], part, ["--warm", warm_file(train), "--seed", seed], mean_costs(train), frozen=True)
            gain = [a["scores"][1] - a["scores"][0] for a in answers]
            result.append(area_under_gain(gain, [r["y"][0] for r in part], [r["y"][1] for r in part]))
    figures("APGR random", random_part)
    figures("APGR unseen domains", unseen_part)
    return random_part, unseen_part


def stream(binary, seeds, price=0.147, length=5370):
    """Utility above the best fixed arm over a stream of unseen rows, learning on."""
    rows, models = load("routellm_mmlu")
    above = []
    for seed in seeds:
        train, held, out, _ = split(rows, seed)
        cost = mean_costs(train)
        relative = [c / max(cost) for c in cost]
        part = held + out
        random.Random(seed).shuffle(part)
        answers = play(binary, models, [0, 1], part, ["--warm", warm_file(train), "--seed", seed, "--lambda", price], cost)
        worth = lambda row, arm: row["y"][arm] - price * relative[arm]
        ours = sum(worth(r, a["arm"]) for r, a in zip(part, answers))
        fixed = max(sum(worth(r, arm) for r in part) for arm in (0, 1))
        above.append((ours - fixed) / len(part) * length)
    figures(f"utility above fixed, {length}", above)
    return above


def arms(binary, seeds, share=0.16, name="mmlupro12"):
    """Points of accuracy above the best fixed mix at a share of the dearest arm's cost."""
    rows, models = load(name)
    every = list(range(len(rows[0]["y"])))
    above = []
    for seed in seeds:
        train, held, out, _ = split(rows, seed)
        cost = mean_costs(train)
        relative = [c / max(cost) for c in cost]
        part = held + out
        answers = play(binary, models, every, part, ["--warm", warm_file(train), "--seed", seed], cost, frozen=True)
        points = []
        for step in range(-60, 61):
            price = 10 ** (step / 24)
            chosen = [max(every, key=lambda a: answer["scores"][a] - price * relative[a]) for answer in answers]
            points.append((statistics.fmean(relative[a] for a in chosen), statistics.fmean(r["y"][a] for r, a in zip(part, chosen))))
        mix = best_mix([(relative[a], statistics.fmean(r["y"][a] for r in part)) for a in every], share)
        above.append(100 * (best_mix(points, share) - mix))
    figures(f"points above mix, {name}", above)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("what", choices=["frozen", "stream", "arms", "mesh"])
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args()
    {"frozen": frozen, "stream": stream, "arms": arms, "mesh": mesh}[given.what](given.binary, range(given.seeds))
