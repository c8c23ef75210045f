"""The stub and the load generator as programs: what the other tests lean on."""

import json

import httpx

import kit


def test_the_stub_logs_a_client_that_goes_away(stub):
    body = {"model": "stub-a", "messages": [{"role": "user", "content": "[[stub n=500 itl=1000 tag=gone]]"}], "stream": True}
    with httpx.stream("POST", f"{stub.url}/v1/chat/completions", json=body, timeout=10) as answer:
        next(answer.iter_lines())
    kit.until("client_gone", lambda: stub.tagged("gone")[0]["end"] == "client_gone")


def test_the_load_generator_finds_what_is_cut_but_looks_complete(stub, tmp_path):
    run = kit.load([stub.url], "none", "stub-a", 20, 4, 1.0, "{i} [[stub n=8 no_finish=1]]", tmp_path / "run")
    assert run.child.wait(timeout=kit.PATIENCE_S) == 1
    report = json.loads(run.text())
    assert report["cut_looked_complete"] == 20
    assert report["ok"] == 0
