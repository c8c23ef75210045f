"""Does the router find out by itself that two harmless symptoms together are none?

    python examples/triage/triage.py path/to/shoal-loadtest [--seeds N] [--price P] [--learn N]

A small model on a phone answers questions about one symptom well. When chest pain and shortness of breath come together
its advice is bad, and the strong model's is good. Nobody tells the router: no rule, no keyword, only which answer was
good, of the model that was asked. After 1,000 outcomes it is asked about new prompts, of which it is told nothing.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import tempfile

KINDS = ["both", "one", "none"]
HERE = pathlib.Path(__file__).resolve().parent
CHEST = ["chest pain"]
BREATH = ["shortness of breath"]
OTHER = ["a headache", "a sore throat", "back pain", "a fever", "an itchy rash", "a runny nose", "stomach cramps", "a swollen ankle", "tooth ache", "dizziness", "a dry cough", "nausea"]
WHO = ["I have", "My father has", "A patient reports", "My daughter complains about", "Since this morning I have", "A 54 year old man presents with", "I woke up with", "My colleague has"]
WHEN = ["since yesterday", "for two days", "after climbing the stairs", "since breakfast", "on and off this week", "after a long walk", "", "for an hour"]
ASK = ["What should I do?", "What could it be?", "Is that dangerous?", "Should we see a doctor?", "Please advise.", "What do you recommend?"]


def prompt(chance, kind):
    """A prompt with chest pain and breathlessness (both), one of them (one), or neither (none)."""
    symptoms = {
        "both": [chance.choice(CHEST), chance.choice(BREATH)],
        "one": [chance.choice(chance.choice([CHEST, BREATH]))],
        "none": [chance.choice(OTHER)],
    }[kind]
    if chance.random() < 0.5:
        symptoms.append(chance.choice(OTHER))
    chance.shuffle(symptoms)
    listed = symptoms[0] if len(symptoms) == 1 else ", ".join(symptoms[:-1]) + " and " + symptoms[-1]
    return f"{chance.choice(WHO)} {listed} {chance.choice(WHEN)}".strip() + f". {chance.choice(ASK)}"


def outcome(kind, arm, chance):
    """Whether an arm's answer is good; both err now and then."""
    good = 0.95 if arm == 1 or kind != "both" else 0.1
    return float(chance.random() < good)


class Router:
    """A replay, asked prompt by prompt."""

    def __init__(self, binary, seed, price, *extra):
        command = [binary, "replay", "--models", str(HERE / "triage.models.json"), "--lambda", str(price), "--seed", str(seed), *extra]
        self.pipe = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.asked = 0
        self.say({"mean_cost_uusd": {"0": 0.0, "1": 1000.0}})

    def say(self, line):
        self.pipe.stdin.write(json.dumps(line) + "\n")
        self.pipe.stdin.flush()

    def ask(self, text, judge=None):
        """Returns the arm that was chosen; `judge` gives the outcome of an arm, without one nothing is told."""
        self.asked += 1
        self.say({"id": str(self.asked), "prompt": text})
        arm = json.loads(self.pipe.stdout.readline())["arm"]
        told = {"y": {str(arm): judge(arm)}} if judge else {}
        self.say({"id": str(self.asked), **told})
        return arm

    def close(self):
        self.pipe.stdin.close()
        assert self.pipe.wait() == 0


def probed(router, chance, probe):
    """Returns the share of the strong arm by kind of prompt, over prompts of which no outcome is told."""
    strong = {kind: [] for kind in KINDS}
    for _ in range(probe):
        kind = chance.choice(KINDS)
        strong[kind].append(router.ask(prompt(chance, kind)) == 1)
    router.close()
    return {kind: statistics.fmean(picked) for kind, picked in strong.items()}


def run(binary, seed, price, learn=1000, probe=300):
    """Lets a router serve and learn, and goes on asking: it explores as it serves, so 2 in 100 choices are drawn by lot."""
    chance = random.Random(seed)
    router = Router(binary, seed, price)
    for _ in range(learn):
        kind = chance.choice(KINDS)
        router.ask(prompt(chance, kind), lambda arm, kind=kind: outcome(kind, arm, chance))
    return probed(router, chance, probe)


def run_frozen(binary, seed, price, learn=1000, probe=300):
    """Lets a router learn from a file, at prices of all kinds and from the chosen arm's outcome alone, and asks it frozen."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        warm = pathlib.Path(folder) / "warm.jsonl"
        with open(warm, "w", encoding="utf-8") as rows:
            for _ in range(learn):
                kind = chance.choice(KINDS)
                row = {"prompt": prompt(chance, kind), "y": [outcome(kind, arm, chance) for arm in (0, 1)]}
                rows.write(json.dumps(row) + "\n")
        return probed(Router(binary, seed, price, "--warm", str(warm), "--frozen"), chance, probe)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--price", type=float, default=0.3, help="of an answer of the strong model, in units of quality")
    parser.add_argument("--learn", type=int, default=1000, help="outcomes to learn from")
    given = parser.parse_args()
    for name, play in (("as it serves", run), ("learnt from a file, then frozen", run_frozen)):
        results = [play(given.binary, seed, given.price, given.learn) for seed in range(given.seeds)]
        print(f"share of prompts that go to the strong model after {given.learn:,} outcomes, {name}")
        for kind, words in (("both", "chest pain and shortness of breath"), ("one", "one of the two"), ("none", "neither")):
            shares = [result[kind] for result in results]
            print(f"  {words:36s} mean {statistics.fmean(shares):.3f}  least {min(shares):.3f}  most {max(shares):.3f}")
