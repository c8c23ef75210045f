"""What dies before the first byte is replaced; what dies after it says so; nothing that is cut looks whole."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import kit


def test_a_dead_upstream_before_the_first_byte_is_replaced(mesh):
    good = mesh.stub("good", model="stub-a")
    bad = mesh.stub("bad", model="stub-a", more=["--fault", "drop=1"])
    node = mesh.first("n1", more=["--device", good.url, "--device", bad.url])
    mesh.everywhere("stub-a")
    for i in range(20):
        for stream in (False, True):
            answer = node.chat("stub-a", f"{i} [[stub n=4]]", stream=stream)
            assert answer.status_code == 200, answer.text
    assert bad.log()["counts"]["fault"] > 0, "the bad one was never tried, so nothing was shown"
    assert good.log()["counts"]["completed"] == 40


def test_a_stopped_server_is_replaced(mesh):
    good, bad = mesh.stub("good", model="stub-a"), mesh.stub("bad", model="stub-a")
    node = mesh.first("n1", more=["--device", good.url, "--device", bad.url])
    mesh.everywhere("stub-a")
    bad.kill()
    for i in range(20):
        assert node.chat("stub-a", f"{i} [[stub n=2]]").status_code == 200


@pytest.mark.parametrize("via_peer", [False, True])
@pytest.mark.parametrize("fault", ["cut=3", "no_finish=1"])
def test_a_death_in_mid_stream_is_an_explicit_error(mesh, via_peer, fault):
    stub = mesh.stub("own", model="stub-own")
    node = mesh.first("n1", more=["--device", stub.url])
    if via_peer:
        node = mesh.join("n2")
        mesh.whole(2)
    mesh.everywhere("stub-own")
    payloads = kit.events(node.chat("stub-own", f"[[stub n=40 itl=2 {fault}]]", stream=True).text)
    assert "[DONE]" not in payloads
    error = json.loads(payloads[-1])["error"]
    assert error["code"], error
    assert len(payloads) > 2, "what came before the cut was delivered"


def test_a_cut_answer_that_is_not_streamed_is_never_a_good_one(mesh):
    stub = mesh.stub("own", model="stub-own")
    node = mesh.first("n1", more=["--device", stub.url])
    mesh.everywhere("stub-own")
    for fault in ("cut=3", "garbage=1", "html=1"):
        answer = node.chat("stub-own", f"[[stub n=40 {fault}]]")
        assert answer.status_code >= 500, (fault, answer.text)
        assert answer.json()["error"]["code"]
    assert node.chat("stub-own", "[[stub n=4]]").status_code == 200


def test_200_requests_and_50_streams_while_a_node_is_killed(mesh, tmp_path):
    # The victim made the mesh, and is the only way to one of the servers: work of the others runs through it.
    mesh.fill(own=True)
    urls = [node.url for node in mesh.nodes]
    key, victim, survivors = mesh.nodes[0].key, mesh.nodes[0], mesh.nodes[1:]
    for node in survivors:
        kit.until("n1's server seen", lambda node=node: "n1" in node.devices())
    streams = kit.load(urls, key, "stub-a", 50, 50, 1.0, "s{i} [[stub n=120 itl=50]]", tmp_path / "streams")
    stubs = [stub for name, stub in mesh.stubs.items() if name != "local"]
    seen = lambda what: sum(stub.log()["counts"][what] for stub in stubs)
    kit.until("50 streams open", lambda: seen("open") >= 50)
    short = kit.load(urls, key, "stub-a", 200, 12, 0.25, "r{i} [[stub n=6 itl=5]]", tmp_path / "short")
    kit.until("half of the requests done", lambda: seen("completed") >= 100)
    victim.kill()

    short.child.wait(timeout=120)
    streams.child.wait(timeout=120)
    short, streams = json.loads(short.text()), json.loads(streams.text())
    for report in (short, streams):
        assert report["cut_looked_complete"] == 0, report
        assert report["corrupt"] == 0, report
        for node in survivors:
            survivor = report["by_url"][node.url]
            assert survivor["failed"] == {}, survivor
            # A committed stream through the dead node may end in an explicit error; nothing else may.
            assert survivor["ok"] + sum(survivor["cut_marked"].values()) == survivor["requests"], survivor
    by_survivors = [streams["by_url"][node.url] for node in survivors]
    assert sum(one["ok"] for one in by_survivors) > 0
    assert sum(sum(one["cut_marked"].values()) for one in by_survivors) > 0, "none ran through the victim"
    for node in survivors:
        assert node.chat("stub-a", "[[stub n=2]]").status_code == 200


def test_a_killed_device_is_replaced_before_its_first_byte_and_reported_after_it(mesh):
    stubs = {name: mesh.stub(name, model="stub-a") for name in ("d1", "d2")}
    node = mesh.first("n1")
    devices = {name: mesh.device(name, [stub.url]) for name, stub in stubs.items()}
    kit.until("both devices serve", lambda: {"device:d1/stub-a", "device:d2/stub-a"} <= set(served(node)))
    phases = lambda name, tag: [one["phase"] for one in stubs[name].tagged(tag)]
    with ThreadPoolExecutor(8) as pool:
        prompt = "[[stub ttft=6000 n=4 tag=waiting]]"
        waiting = [pool.submit(node.chat, "stub-a", prompt, stream) for stream in (True, False) * 3]
        kit.until("all in prefill", lambda: (phases("d1", "waiting") + phases("d2", "waiting")).count("prefill") == 6)
        victim, other = sorted(stubs, key=lambda name: -len(phases(name, "waiting")))
        speaking = pool.submit(node.chat, f"device:{victim}/stub-a", "[[stub n=5000 itl=1000 tag=speaking]]", True)
        kit.until("one in decode", lambda: phases(victim, "speaking") == ["decode"])
        # What may move does so within a second, what was begun is given up soon after; but a device may be a phone, and
        # its link is taken for gone only after 15 s.
        devices[victim].kill()
        cut = kit.events(speaking.result().text)
        assert "[DONE]" not in cut and json.loads(cut[-1])["error"]["code"] == "upstream_interrupted"
        kit.until("the dead one out of the view", lambda: victim not in node.devices(), within_s=20)
        answers = [one.result() for one in waiting]
    for answer, stream in zip(answers, (True, False) * 3):
        assert answer.status_code == 200, answer.text
        if stream:
            assert kit.events(answer.text)[-1] == "[DONE]"
    assert {one["end"] for one in stubs[victim].log()["requests"]} == {"client_gone"}
    assert [one["end"] for one in stubs[other].tagged("waiting")] == ["completed"] * 6


def served(node):
    """What the node's devices serve, as `device:NAME/MODEL`."""
    devices = node.get("/shoal/v1/devices").json()["devices"]
    return [f"device:{device['name']}/{model['id']}" for device in devices for model in device["models"]]
