"""A device whose engine hangs is late; within its budget the node asks another one, which answers."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import kit


def ask(node, n):
    answer = node.chat("stub-a", f"question {n} [[stub ttft=15 n=3]]", stream=True)
    assert kit.events(answer.text)[-1] == "[DONE]", answer.text
    return answer.headers["x-request-id"]


def test_a_late_device_is_outrun_at_most_twice_in_a_hundred_requests(mesh):
    stubs = {name: mesh.stub(name, model="stub-a") for name in ("d1", "d2")}
    config = mesh.folder / "hedge.toml"
    config.write_text("version = 1\n[hedging]\nshare = 0.02\n")
    node = mesh.first("n1", more=["--config", config])
    for name, stub in stubs.items():
        mesh.device(name, [stub.url])
    kit.until("both devices serve", lambda: {"d1", "d2"} <= {
        device["name"] for device in node.get("/shoal/v1/devices").json()["devices"] if device["models"]})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: ask(node, n), range(150)))
    # One after the other none is late but by chance, so that the budget is there when one hangs; the balancer keeps to
    # the device that it knows, and that one hangs.
    for n in range(150, 300):
        latest = ask(node, n)
    victim = node.get(f"/shoal/v1/requests/{latest}").json()["upstream"]
    other = next(name for name in stubs if name != victim)
    usual = hedges(node)

    os.kill(stubs[victim].child.pid, signal.SIGSTOP)
    try:
        outrun = []
        for n in range(300, 312):
            began = time.monotonic()
            record = node.get(f"/shoal/v1/requests/{ask(node, n)}").json()
            ends = [(one["upstream"], one["ended"]) for one in record["attempt_log"]]
            if (victim, "outrun") in ends:
                outrun.append(time.monotonic() - began)
                assert ends[-1] == (other, "ok") and record["upstream"] == other, ends
                break
        assert outrun and outrun[0] < 3, (victim, ends)
    finally:
        os.kill(stubs[victim].child.pid, signal.SIGCONT)
    assert hedges(node) >= usual + 1
    assert hedges(node) <= 312 * 0.02 + 2, "the budget"
    idle = lambda: node.get("/shoal/v1/status").json()["requests"]["in_flight"] == 0
    kit.until("nothing is left of the losers", idle, within_s=10)


def hedges(node):
    return sum(float(n) for n in re.findall(r'^shoal_hedges_total\{won="\w+"\} (\S+)$', node.get("/metrics").text, re.M))
