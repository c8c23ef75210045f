"""The long tier (`./test full`): the same promises, many times over."""

import json
import os

import httpx
import pytest

import kit

pytestmark = [
    pytest.mark.skipif(not os.environ.get("SHOAL_TEST_FULL"), reason="long: only in ./test full"),
    pytest.mark.timeout(1200),
]


def descriptors(process):
    return len(os.listdir(f"/proc/{process.child.pid}/fd"))


def test_20000_requests_fail_nowhere_and_leave_nothing_open(mesh, tmp_path):
    mesh.fill()
    urls = [node.url for node in mesh.nodes]

    def run(requests, name):
        load = kit.load(urls, mesh.nodes[0].key, "stub-a", requests, 24, 0.5, "{i} [[stub n=6]]", tmp_path / name)
        load.child.wait(timeout=900)
        return json.loads(load.text())

    run(1000, "warm")
    before = {node.name: descriptors(node) for node in mesh.nodes}
    report = run(20_000, "long")
    assert report["ok"] == 20_000, report
    for node in mesh.nodes:
        kit.until("nothing in flight", lambda node=node: node.get("/shoal/v1/status").json()["requests"]["in_flight"] == 0)
        kit.until("descriptors back", lambda node=node: descriptors(node) <= before[node.name] + 32)


def test_a_mesh_survives_ten_killed_routers(mesh, tmp_path):
    mesh.fill()
    key = mesh.nodes[0].key
    completed = lambda: sum(stub.log()["counts"]["completed"] for stub in mesh.stubs.values())
    for round_ in range(10):
        at = 1 + round_ % 2
        victim = mesh.nodes[at]
        before = completed()
        urls = [node.url for node in mesh.nodes if node is not victim]
        load = kit.load(urls, key, "stub-a", 600, 16, 0.5, "{i} [[stub n=10 itl=5]]", tmp_path / f"load{round_}")
        kit.until("load runs", lambda: completed() >= before + 100)
        victim.kill()
        load.child.wait(timeout=300)
        report = json.loads(load.text())
        assert report["failed"] == {} and report["cut_looked_complete"] == 0 and report["corrupt"] == 0, report
        mesh.nodes[at] = kit.Node(
            victim.folder, victim.name, ["join"], key=key,
            data_dir=victim.data_dir, port=victim.port, mesh_port=victim.mesh_port,
        )
        mesh.nodes[at].ready()
        mesh.whole(3)


def test_a_client_that_leaves_after_the_headers_and_before_the_first_word(mesh):
    mesh.fill()
    node = mesh.nodes[1]
    body = {"model": "stub-local", "messages": [{"role": "user", "content": "[[stub ttft=120000 tag=late]]"}], "stream": True}
    # The headers wait some seconds for the first word, then they go without it.
    with httpx.stream("POST", node.url + "/v1/chat/completions", headers=node.auth(), json=body, timeout=60) as answer:
        assert answer.status_code == 200
        assert mesh.stubs["local"].tagged("late")[0]["phase"] == "prefill"
    kit.until("client_gone", lambda: mesh.stubs["local"].tagged("late")[0]["end"] == "client_gone", within_s=10)
