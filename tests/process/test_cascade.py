"""The cascade on held-out outcomes, in a quick form: two splits. Bars are loose; `score_cascade.py` measures."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

LOADTEST = os.environ.get("SHOAL_LOADTEST_BIN", "")
SCORER = pathlib.Path(__file__).parents[1] / "routing" / "score_cascade.py"


def score(*args):
    if not os.access(LOADTEST, os.X_OK):
        pytest.skip("shoal-loadtest is missing: set SHOAL_LOADTEST_BIN")
    command = [sys.executable, SCORER, "--bin", LOADTEST, "--json", "--splits", "2", *args]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150)
    return json.loads(run.stdout)


def test_a_small_model_escalates_better_than_by_votes_and_on_subjects_never_seen():
    parts = score("--set", "mmlupro12", "--local", "4", "--strong", "11", "--peers", "0,1,2,3")
    seen, unseen = parts["random"], parts["unseen"]
    assert seen["apgr"]["ours"] > max(0.65, seen["apgr"]["votes"] + 0.005), seen
    assert unseen["apgr"]["ours"] > max(0.58, unseen["apgr"]["votes"] - 0.02), unseen
    assert seen["ece"] < 0.06 and unseen["ece"] < 0.08, parts


def test_probabilities_of_options_are_calibrated():
    part = score("--table", "confidence_cosmosqa", "--local", "Mistral-7B-v0.1", "--strong", "Yi-34B")["random"]
    assert part["ece"] < 0.04 and part["apgr"]["ours"] > 0.8, part


def test_confidence_that_knows_nothing_would_fail_the_bars():
    """Without what is learnt after the warming, new subjects are judged like old ones: the error is larger."""
    told = ("--set", "mmlupro12", "--local", "8", "--strong", "11", "--peers", "6,7,10")
    learning, frozen = score(*told)["unseen"], score(*told, "--told", "none")["unseen"]
    assert learning["ece"] < frozen["ece"], (learning, frozen)
