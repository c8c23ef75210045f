"""What dies before the first byte is replaced; what dies after it says so; nothing that is cut looks whole."""

import json

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
    mesh.fill()
    urls = [node.url for node in mesh.nodes]
    key, victim = mesh.nodes[0].key, mesh.nodes[1]
    streams = kit.load(urls, key, "stub-a", 50, 50, 1.0, "s{i} [[stub n=120 itl=50]]", tmp_path / "streams")
    stubs = [stub for name, stub in mesh.stubs.items() if name != "local"]
    seen = lambda what: sum(stub.log()["counts"][what] for stub in stubs)
    kit.until("50 streams open", lambda: seen("open") >= 50)
    short = kit.load(urls, key, "stub-a", 200, 12, 0.25, "r{i} [[stub n=6 itl=5]]", tmp_path / "short")
    kit.until("half of the requests done", lambda: seen("completed") >= 100)
    victim.kill()

    short.child.wait(timeout=120)
    streams.child.wait(timeout=120)
    for run in (short, streams):
        report = json.loads(run.text())
        assert report["cut_looked_complete"] == 0, report
        assert report["corrupt"] == 0, report
    report = json.loads(short.text())
    for url in (mesh.nodes[0].url, mesh.nodes[2].url):
        survivor = report["by_url"][url]
        assert survivor["failed"] == {}, survivor
        # A committed stream through the dead node may end in an explicit error; nothing else may.
        assert survivor["ok"] + sum(survivor["cut_marked"].values()) == survivor["requests"], survivor
    long = json.loads(streams.text())
    assert sum(long["by_url"][node.url]["ok"] for node in (mesh.nodes[0], mesh.nodes[2])) > 0
    for node in (mesh.nodes[0], mesh.nodes[2]):
        assert node.chat("stub-a", "[[stub n=2]]").status_code == 200
