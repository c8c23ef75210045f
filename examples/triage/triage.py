"""Does the router find out by itself that two harmless symptoms together are none?

    python examples/triage/triage.py path/to/shoal-loadtest [--seeds N] [--price P]

A small model on a phone answers questions about one symptom well. When chest pain and shortness of breath come together
its advice is bad, and the strong model's is good. Nobody tells the router: no rule, no keyword, only which answer was
good, of the model that was asked. After 1,000 outcomes the router is frozen and asked about new prompts.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess

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


def run(binary, seed, price, learn=1000, probe=300):
    """Returns the share of the strong arm by kind of prompt, after learning."""
    chance = random.Random(seed)
    command = [binary, "replay", "--models", str(HERE / "triage.models.json"), "--lambda", str(price), "--seed", str(seed)]
    pipe = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(number, text):
        pipe.stdin.write(json.dumps({"id": str(number), "prompt": text}) + "\n")
        pipe.stdin.flush()
        return json.loads(pipe.stdout.readline())

    pipe.stdin.write(json.dumps({"mean_cost_uusd": {"0": 0.0, "1": 1000.0}}) + "\n")
    for number in range(learn):
        kind = chance.choice(["both", "one", "none"])
        answer = ask(number, prompt(chance, kind))
        pipe.stdin.write(json.dumps({"id": str(number), "y": {str(answer["arm"]): outcome(kind, answer["arm"], chance)}}) + "\n")
    strong = {"both": [], "one": [], "none": []}
    for number in range(learn, learn + probe):
        kind = chance.choice(["both", "one", "none"])
        answer = ask(number, prompt(chance, kind))
        pipe.stdin.write(json.dumps({"id": str(number)}) + "\n")
        strong[kind].append(answer["arm"] == 1)
    pipe.stdin.close()
    assert pipe.wait() == 0
    return {kind: statistics.fmean(picked) for kind, picked in strong.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--price", type=float, default=0.3, help="of an answer of the strong model, in units of quality")
    given = parser.parse_args()
    results = [run(given.binary, seed, given.price) for seed in range(given.seeds)]
    print("share of prompts that go to the strong model after 1,000 outcomes")
    for kind, words in (("both", "chest pain and shortness of breath"), ("one", "one of the two"), ("none", "neither")):
        shares = [result[kind] for result in results]
        print(f"  {words:36s} mean {statistics.fmean(shares):.3f}  least {min(shares):.3f}  most {max(shares):.3f}")
