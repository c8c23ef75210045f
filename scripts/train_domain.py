#!/usr/bin/env python3
"""Trains the domain classifier of the routing core and reports its accuracy.

    scripts/train_domain.py ROUTING_DIR [node/routing/assets/domain.bin]

ROUTING_DIR holds mmlupro12.jsonl, routellm_mmlu.jsonl and routellm_gsm8k.jsonl. Needs numpy and scikit-learn, and
cargo: the inputs are computed by `cargo run -p shoal-routing --example domain_inputs`, the code that runs in
production. Writes f32, little endian: for each domain (code, math, medical, legal, finance, general) its constant,
then its weights. The same data gives the same weights.
"""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import GroupKFold, StratifiedKFold

import domain_seeds

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ["code", "math", "medical", "legal", "finance", "general"]
DIMS = 64
# Labels of the sets; what is missing here is general.
BY_LABEL = {"code": "code", "math": "math", "medical": "medical", "law": "legal", "economics": "finance"}
# A set files these under another label than what they are about.
BY_SUBJECT = {"econometrics": "finance", "professional_accounting": "finance", "stemez-Business": "finance",
              "theoremQA-Finance": "finance", "human_sexuality": "general", "formal_logic": "general"}
# Inverse regularisation, of inputs of unit scale: flat between 0.02 and 0.3.
STRENGTH = 0.1
# A seed weighs as much as this many exam questions of its domain: traffic is talk, and exams are many.
SEED_WEIGHT = 3


def main(source: Path, target: Path) -> None:
    prompts, labels, raw, groups, is_seed = read(source)
    inputs = inputs_of(prompts)
    print(f"{len(prompts)} prompts, {is_seed.sum()} of them seeds; by domain: "
          + ", ".join(f"{name} {np.sum(labels == at)}" for at, name in enumerate(DOMAINS)))
    exams = ~is_seed
    print("\nall inputs, six domains          accuracy  mean recall")
    for name, splits in [("random rows (5 folds)", StratifiedKFold(5, shuffle=True, random_state=1).split(inputs, labels)),
                         ("unseen subjects (10 folds)", GroupKFold(10, shuffle=True, random_state=1).split(inputs, labels, groups))]:
        guess = np.empty_like(labels)
        for train, test in splits:
            guess[test] = fit(inputs[train], labels[train], is_seed[train]).predict(inputs[test])
        for part, rows in [("exams", exams), ("seeds", is_seed)]:
            print(f"{name:26} {part}  {np.mean(guess[rows] == labels[rows]):.3f}     "
                  f"{recall_score(labels[rows], guess[rows], average='macro', zero_division=0):.3f}   "
                  + " ".join(f"{d} {np.mean(guess[rows & (labels == i)] == i):.2f}" for i, d in enumerate(DOMAINS) if np.any(rows & (labels == i))))
    print(f"\nembedding alone, the {len(set(raw[exams]))} labels of the sets, random rows (5 folds)")
    for dims in (16, 32, 64):
        guess = np.empty_like(raw[exams])
        x, y = inputs[exams][:, :dims], raw[exams]
        for train, test in StratifiedKFold(5, shuffle=True, random_state=1).split(x, y):
            guess[test] = LogisticRegression(C=1.0, max_iter=500).fit(x[train], y[train]).predict(x[test])
        print(f"{dims} dimensions: {np.mean(guess == y):.3f}")
    model = fit(inputs, labels, is_seed)
    weights = np.hstack([model.intercept_[:, None], model.coef_]).astype("<f4")
    target.write_bytes(weights.tobytes())
    print(f"\n{target}: {weights.shape[0]} domains of {weights.shape[1]} weights")


def fit(inputs, labels, is_seed):
    """Weighs a domain by the square root of its prompts: alike would call history law, by number hides the small."""
    weights = np.ones(len(labels))
    for label in set(labels):
        for seed in (False, True):
            rows = (labels == label) & (is_seed == seed)
            if rows.any():
                weights[rows] = (SEED_WEIGHT if seed else 1) / np.sqrt(rows.sum())
    weights *= 5000 / weights.sum()
    return LogisticRegression(C=STRENGTH, max_iter=1000, tol=1e-3).fit(inputs, labels, sample_weight=weights)


def read(source: Path):
    rows = []
    for name in ("mmlupro12", "routellm_mmlu", "routellm_gsm8k"):
        for line in (source / f"{name}.jsonl").read_text().rstrip("\n").split("\n"):
            row = json.loads(line)
            subject = row["subject"].removeprefix("ori_mmlu-")
            domain = BY_SUBJECT.get(subject, BY_LABEL.get(row["domain"], "general"))
            rows.append((row["prompt"], DOMAINS.index(domain), row["domain"], subject, False))
    for domain, topic, prompt in domain_seeds.prompts():
        rows.append((prompt, DOMAINS.index(domain), domain, topic, True))
    prompts, labels, raw, groups, seeds = zip(*dict((row[0], row) for row in rows).values())
    return list(prompts), np.array(labels), np.array(raw), np.array(groups), np.array(seeds)


def inputs_of(prompts):
    command = ["cargo", "run", "-q", "--locked", "--release", "-p", "shoal-routing", "--example", "domain_inputs"]
    run = subprocess.run(command, cwd=ROOT, input="\x1e".join(prompts), stdout=subprocess.PIPE, text=True, check=True)
    return np.array([[float(value) for value in line.split()] for line in run.stdout.splitlines()])


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    default = ROOT / "node/routing/assets/domain.bin"
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else default)
