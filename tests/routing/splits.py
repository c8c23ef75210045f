"""Sets of outcomes, split as routing must be judged: a random fifth, and whole domains that training never saw."""

import gzip
import json
import pathlib
import random

DATA = pathlib.Path(__file__).resolve().parents[2] / "data"


def load(name):
    """Returns the rows of a set and the models file's path."""
    folder = DATA / "routing"
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return rows, folder / f"{name}.models.json"


def split(rows, seed, domains_out=3):
    """Deals rows into training, a random fifth of the seen domains, and the domains left out."""
    chance = random.Random(seed)
    domains = sorted({row["domain"] for row in rows})
    unseen = set(chance.sample(domains, domains_out)) if len(domains) > domains_out + 1 else set()
    train, held, out = [], [], []
    for row in rows:
        if row["domain"] in unseen:
            out.append(row)
        else:
            (held if chance.random() < 0.2 else train).append(row)
    return train, held, out, sorted(unseen)


def write_jsonl(path, rows):
    """Writes rows as JSON lines."""
    with open(path, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def area_under_gain(score, weak, strong):
    """APGR: area under the share of the gap that is recovered, over the share of calls to the strong model."""
    order = sorted(range(len(score)), key=lambda i: -score[i])
    gap = sum(strong) - sum(weak)
    area, recovered = 0.0, 0.0
    for i in order:
        gain = (strong[i] - weak[i]) / gap
        area += recovered + gain / 2
        recovered += gain
    return area / len(score)


def best_mix(points, cost):
    """Accuracy of the best random mix of (cost, accuracy) points that costs `cost` on average."""
    best = max((accuracy for price, accuracy in points if price <= cost), default=0.0)
    for low, below in points:
        for high, above in points:
            if low <= cost < high:
                share = (cost - low) / (high - low)
                best = max(best, below * (1 - share) + above * share)
    return best
