"""The combination that nobody tells the router: `examples/triage`, with the bar that it is held to."""

import pathlib
import statistics
import sys

import pytest

import kit

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "triage"))
import triage  # noqa: E402

pytestmark = pytest.mark.skipif(not kit.LOADTEST, reason="shoal-loadtest is missing: set SHOAL_LOADTEST_BIN")

SEEDS = range(4)
PRICE = 0.3


@pytest.mark.parametrize("play", [triage.run, triage.run_frozen])
def test_both_symptoms_go_to_the_strong_model_and_one_alone_does_not(play):
    results = [play(kit.LOADTEST, seed, PRICE) for seed in SEEDS]
    both, one, none = (statistics.fmean(result[kind] for result in results) for kind in triage.KINDS)
    assert both >= 0.95, results
    assert one <= 0.20 and none <= 0.20, results
