"""SIGTERM: not ready, told to the mesh, running answers finish, the rest end with an error; twice means now."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

import kit


def chat(prompt):
    return {"model": "stub-own", "stream": True, "messages": [{"role": "user", "content": prompt}]}


def start(mesh, drain_s):
    stub = mesh.stub("own", model="stub-own")
    config = mesh.folder / "drain.toml"
    config.write_text(f"version = 1\n[limits]\ndrain_s = {drain_s}\n")
    node = mesh.first("n1", more=["--device", stub.url, "--config", config])
    mesh.everywhere("stub-own")
    return node, stub


def test_what_can_finish_does_and_what_cannot_says_so(mesh):
    node, stub = start(mesh, drain_s=4)
    other = mesh.join("n2")
    mesh.whole(2)
    with ThreadPoolExecutor(3) as pool:
        short = pool.submit(node.post, "/v1/chat/completions", chat("short [[stub n=20 itl=100 tag=short]]"))
        long = pool.submit(node.post, "/v1/chat/completions", chat("long [[stub n=5000 itl=100 tag=long]]"))
        waits = pool.submit(node.chat, "stub-own", "waits [[stub ttft=60000 tag=waits]]")
        running = lambda: all(stub.tagged(tag) for tag in ("short", "long", "waits"))
        kit.until("all under way", running)
        probe = httpx.Client()
        assert probe.get(node.url + "/readyz").status_code == 200
        node.child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        kit.until("not ready", lambda: probe.get(node.url + "/readyz").status_code == 503, within_s=2)
        draining = lambda: [n for n in other.get("/shoal/v1/nodes").json()["nodes"] if n["name"] == "n1" and (n.get("draining") or not n["alive"])]
        kit.until("told to the mesh", draining, within_s=5)
        assert kit.events(short.result().text)[-1] == "[DONE]"
        cut = kit.events(long.result().text)
        late = waits.result()
        node.child.wait(timeout=20)
    assert 3.5 <= time.monotonic() - began <= 12
    assert "[DONE]" not in cut and json.loads(cut[-1])["error"]["code"] == "upstream_interrupted", cut[-1]
    assert "stopping" in json.loads(cut[-1])["error"]["message"]
    assert late.status_code == 503 and "stopping" in late.text
    ended = lambda: {one["end"] for tag in ("long", "waits") for one in stub.tagged(tag)} == {"client_gone"}
    kit.until("the work is cancelled", ended, within_s=5)


def test_a_second_signal_means_now(mesh):
    node, stub = start(mesh, drain_s=60)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(node.post, "/v1/chat/completions", chat("on [[stub n=5000 itl=100 tag=long]]"))
        kit.until("under way", lambda: stub.tagged("long"))
        node.child.send_signal(signal.SIGTERM)
        kit.until("draining", lambda: "stopping" in node.text())
        began = time.monotonic()
        node.child.send_signal(signal.SIGTERM)
        assert node.child.wait(timeout=10) == 130
        assert time.monotonic() - began <= 2
        try:
            assert "[DONE]" not in long.result().text
        except httpx.HTTPError:
            pass
