"""Faults as a suite: `shoal-loadtest chaos` plays them on real processes; every row must keep its promises.

Here the rows whose figures a busy machine does not move, in small; `./test full` plays all of them with the counts of
docs/faults.md.
"""

import json
import os
import subprocess

import pytest

import kit
from conftest import need

FULL = bool(os.environ.get("SHOAL_TEST_FULL"))
STEADY = {
    "rolling_restart": 2, "kill_device_late": 4, "partition": 6, "corrupt_frames": 10, "disk_full": 12, "matrix": 16, "disconnects": 18,
    "soak": 22, "namespaces": 25, "stalled_readers": 26,
}
ALL = {
    **STEADY, "kill_router": 1, "kill_device_early": 3, "freeze_device": 5, "bad_network": 7, "slow_device": 8, "busy_processor": 9,
    "slow_clients": 14, "outage": 17, "overload": 19, "canary": 20, "flapping_phone": 21,
    "wrong_clock": 13, "mixed_versions": 23,
}
FAULTS = ALL if FULL else STEADY
# Rows that a machine may be unable to play.
MAY_SKIP = {"disk_full", "wrong_clock", "mixed_versions", "namespaces"}
# The program of the version before, where there is one.
PREVIOUS = ["--previous", os.environ["SHOAL_PREVIOUS_BIN"]] if os.environ.get("SHOAL_PREVIOUS_BIN") else []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    need(kit.SHOAL, "shoal", "set SHOAL_BIN")
    need(kit.LOADTEST, "shoal-loadtest", "set SHOAL_LOADTEST_BIN")
    out = tmp_path_factory.mktemp("chaos")
    command = [kit.LOADTEST, "chaos", "--bin", kit.SHOAL, "--out", str(out), "--full" if FULL else "--quick", "--only", ",".join(map(str, FAULTS.values())), *PREVIOUS]
    with (out / "output.log").open("w") as log:
        played = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=kit.clean_env(), timeout=18_000 if FULL else 1_500)
    report = json.loads((out / "report.json").read_text())
    report["exit"] = played.returncode
    report["page"] = (out / "report.html").read_text()
    return report


@pytest.mark.timeout(18_100 if FULL else 1_600)
def test_every_fault_is_played_or_says_why_not(report):
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == set(FAULTS)
    for name, row in rows.items():
        if row["skipped"]:
            assert name in MAY_SKIP, row
            print(f"skipped {name}: {row['skipped']}")
        else:
            assert row["figures"] or row["broken"], row
        assert name in report["page"]


def test_no_invariant_breaks_and_no_figure_is_missed(report):
    failed = [
        (row["name"], row["broken"], [one for one in row["figures"] if one["standing"] == "MISSED"], row["notes"])
        for row in report["rows"] if row["failed"]
    ]
    assert not failed, json.dumps(failed, indent=1)
    assert report["exit"] == 0 and report["failed"] == 0


def test_the_matrix_is_whole(report):
    matrix = next(row for row in report["rows"] if row["name"] == "matrix")
    cells = next(one for one in matrix["figures"] if one["name"] == "cells as specified")
    assert cells["value"] == cells["target"] >= 150


def test_the_soak_tells_what_each_router_holds(report):
    soak = next(row for row in report["rows"] if row["name"] == "soak")
    names = {one["name"] for one in soak["figures"]}
    for router in ("n1", "n2", "n3"):
        assert {f"descriptors of {router} above those after the warm-up", f"tasks of {router} above those after the warm-up"} <= names
        assert any(note.startswith(f"{router}: ") and "MB live" in note for note in soak["notes"])
    if FULL:
        assert "growth of live bytes of n1" in names


def test_an_unknown_fault_is_refused_with_the_names_of_all():
    need(kit.LOADTEST, "shoal-loadtest", "set SHOAL_LOADTEST_BIN")
    refused = subprocess.run([kit.LOADTEST, "chaos", "--only", "earthquake"], capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert "earthquake" in refused.stderr and "16 matrix" in refused.stderr
