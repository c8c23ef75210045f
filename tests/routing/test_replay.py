"""`shoal-loadtest replay` as a scorer sees it: what it learns, what sharing recovers, what it says to nonsense.

Small seeded splits, so that a development build plays them in seconds; `score_replay.py` prints the real figures.
"""

import json
import pathlib
import random
import re
import subprocess

import pytest

import kit
from score_replay import mean_costs, play, warm_file
from splits import DATA, area_under_gain, load, split

pytestmark = pytest.mark.skipif(not kit.LOADTEST, reason="shoal-loadtest is missing: set SHOAL_LOADTEST_BIN")

PRICE = 0.147


@pytest.fixture(scope="module")
def mmlu():
    return load("routellm_mmlu")


def gains(answers, rows, score):
    return area_under_gain([score(a) for a in answers], [r["y"][0] for r in rows], [r["y"][1] for r in rows])


def test_what_was_learnt_in_training_ranks_rows_that_were_held_out(mmlu):
    rows, models = mmlu
    train, held, _, _ = split(rows, 0)
    random.Random(0).shuffle(train)
    train, cost = train[:3000], mean_costs(train)
    warm = ["--warm", warm_file(train), "--lambda", PRICE]
    ours = play(kit.LOADTEST, models, [0, 1], held, warm, cost, frozen=True)
    assert gains(ours, held, lambda a: a["scores"][1] - a["scores"][0]) > 0.55
    # The choices themselves, judged by the same area: a policy that does not look at the prompt recovers half.
    lot = play(kit.LOADTEST, models, [0, 1], held, [*warm, "--policy", "random"], cost, frozen=True)
    area = gains(lot, held, lambda a: a["arm"])
    assert 0.44 < area < 0.56
    assert gains(ours, held, lambda a: a["arm"]) > 0.55
    # Unlearnt, the arms differ in level alone, and every row looks the same.
    blind = play(kit.LOADTEST, models, [0, 1], held[:50], ["--lambda", PRICE], cost, frozen=True)
    assert len({tuple(a["scores"]) for a in blind}) == 1


def test_routers_that_share_earn_more_than_isolated_ones(mmlu):
    rows, models = mmlu
    cost = mean_costs(rows)
    worth = {"central": 0.0, "isolated": 0.0, "shared": 0.0}
    ways = {
        "central": ["--nodes", 1],
        "isolated": ["--nodes", 8, "--sync", 0],
        "shared": ["--nodes", 8, "--sync", 50, "--mode", "all"],
    }
    for seed in (0, 1):
        order = rows[:]
        random.Random(seed).shuffle(order)
        order = order[:2000]
        for way, extra in ways.items():
            answers = play(kit.LOADTEST, models, [0, 1], order, ["--seed", seed, "--lambda", PRICE, *extra], cost)
            worth[way] += sum(r["y"][a["arm"]] - PRICE * cost[a["arm"]] / max(cost) for r, a in zip(order, answers))
    lost = worth["central"] - worth["isolated"]
    assert lost > 0, worth
    assert worth["shared"] - worth["isolated"] > 0.3 * lost, worth


HEAD = json.dumps({"mean_cost_uusd": {"0": 20.0, "1": 900.0}})
ASK = json.dumps({"id": "a", "prompt": "Which river is the longest?", "in_tok": 7})
KNOWN = json.dumps({"id": "a", "y": {"0": 1.0}})


def replay(models, *lines):
    command = [kit.LOADTEST, "replay", "--models", str(models), "--policy", "fixed:0"]
    return subprocess.run(command, input="".join(line + "\n" for line in lines), capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("lines, answers", [((), 0), ((HEAD,), 0), ((HEAD, ASK), 1), ((HEAD, ASK, KNOWN), 1), ((HEAD, ASK, KNOWN, ""), 1)])
def test_the_end_of_the_input_is_a_good_end(mmlu, lines, answers):
    ended = replay(mmlu[1], *lines)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == answers


@pytest.mark.parametrize(
    "lines, names",
    [
        (("nonsense",), "line 1"),
        ((json.dumps({"mean_cost_uusd": {"0": 20.0}}),), "arm 1"),
        ((json.dumps({"mean_cost_uusd": {"0": -1.0, "1": 900.0}}),), "arm 0"),
        ((HEAD, '{"id": "a"}'), "line 2"),
        ((HEAD, ASK, "{"), "line 3"),
        ((HEAD, ASK, json.dumps({"id": "b"})), "line 3"),
        ((HEAD, ASK, json.dumps({"id": "a", "y": {"0": 1.5}})), "line 3"),
        ((HEAD, ASK, json.dumps({"id": "a", "y": {"7": 1.0}})), "arm 7"),
        ((HEAD, ASK, json.dumps({"id": "a", "y": {"x": 1.0}})), "line 3"),
    ],
)
def test_a_malformed_line_ends_the_replay_and_is_named(mmlu, lines, names):
    ended = replay(mmlu[1], *lines)
    assert ended.returncode == 1
    assert names in ended.stderr and "panicked" not in ended.stderr


NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.mark.skipif("debug" in pathlib.Path(kit.LOADTEST).parts, reason="a development build plays the table for a minute")
def test_the_page_on_routing_opens_with_the_table_as_printed():
    printed = subprocess.run([kit.LOADTEST, "report", "table", "--data", DATA], capture_output=True, text=True, check=True, timeout=120)
    page = (DATA.parent / "docs" / "routing.md").read_text()
    start = page.index("| outcomes |")
    kept = page[start : page.index("\n\n**How to read it.**")].strip()
    assert NUMBER.sub("#", kept) == NUMBER.sub("#", printed.stdout.strip())
    # Mathematical functions differ in their last digit from machine to machine, and so now and then a choice.
    for ours, theirs in zip(NUMBER.findall(kept), NUMBER.findall(printed.stdout)):
        assert float(ours) == pytest.approx(float(theirs), abs=0.6), (ours, theirs)
