"""A device that is stopped, and a node that dies under its devices: who notices, how soon, and what moves."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

import kit


def stop(process, what=signal.SIGSTOP):
    os.kill(process.child.pid, what)


def phases(stub, tag):
    return [one["phase"] for one in stub.tagged(tag)]


def test_a_stopped_device_loses_what_may_move_within_three_seconds_and_comes_back(mesh):
    stubs = {name: mesh.stub(name, model="stub-a", slots=8) for name in ("d1", "d2")}
    node = mesh.first("n1")
    devices = {name: mesh.device(name, [stub.url]) for name, stub in stubs.items()}
    kit.until("both devices serve", lambda: {"d1", "d2"} <= {
        device["name"] for device in node.get("/shoal/v1/devices").json()["devices"] if device["models"]})
    with ThreadPoolExecutor(8) as pool:
        # The answers would take minutes where they are; the words of the other host come at once.
        ask = lambda n: node.chat("stub-a", f"wait {n} [[stub ttft=8000 n=4 tag=waits]]", stream=n % 2 == 0)
        waiting = [pool.submit(ask, n) for n in range(6)]
        kit.until("all in prefill", lambda: sum(phases(s, "waits").count("prefill") for s in stubs.values()) == 6)
        victim = max(stubs, key=lambda name: len(stubs[name].tagged("waits")))
        other = next(name for name in stubs if name != victim)
        here, moved = len(stubs[victim].tagged("waits")), len(stubs[other].tagged("waits"))
        stop(devices[victim])
        stopped = time.monotonic()
        try:
            kit.until("its requests elsewhere", lambda: len(stubs[other].tagged("waits")) == moved + here, within_s=6)
            took = time.monotonic() - stopped
            assert took <= 3.0 + 0.7, f"moved after {took:.2f} s"  # 0.7 for the polling of a loaded machine
            answers = [one.result() for one in waiting]
            assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        finally:
            stop(devices[victim], signal.SIGCONT)
    assert "shoal_pulses_lost_total" in node.get("/metrics").text
    # It is asked again once it answers again, and no slot of it is left taken.
    asked = lambda: node.chat(f"device:{victim}/stub-a", "[[stub n=2 tag=back]]").status_code == 200
    kit.until("the device serves again", asked, within_s=30)
    counted = lambda: {d["name"]: d["in_flight"] for d in node.get("/shoal/v1/devices").json()["devices"]}
    kit.until("no slot taken", lambda: counted() == {"d1": 0, "d2": 0}, within_s=15)


BATTERY = {"percentage": 80, "plugged": "UNPLUGGED", "status": "DISCHARGING", "temperature": 25.0}


def with_battery(folder):
    """The environment of a device that says it has a battery, as a phone does."""
    folder.mkdir()
    script = folder / "termux-battery-status"
    script.write_text(f"#!/bin/sh\necho '{json.dumps(BATTERY)}'\n")
    script.chmod(0o755)
    env = kit.clean_env()
    return {**env, "PATH": f"{folder}:{env['PATH']}"}


def speak_and_stop(node, device, goes_on_after=None):
    """Stops a device in the middle of its answer, for good or for some seconds; returns the rest, and the time it took."""
    body = {"model": "stub-a", "messages": [{"role": "user", "content": "[[stub n=30 itl=200]]"}], "stream": True}
    with httpx.stream("POST", node.url + "/v1/chat/completions", headers=node.auth(), json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        for _ in range(6):
            next(lines)
        stop(device)
        stopped = time.monotonic()
        if goes_on_after is not None:
            time.sleep(goes_on_after)  # what is tested: a radio that sleeps
            stop(device, signal.SIGCONT)
        rest = [line.removeprefix("data: ") for line in lines if line]
    return rest, time.monotonic() - stopped


def test_a_committed_stream_of_a_phone_that_naps_goes_on(mesh, tmp_path):
    stub = mesh.stub("d1", model="stub-a")
    node = mesh.first("n1")
    device = mesh.device("d1", [stub.url], env=with_battery(tmp_path / "bin"))
    mesh.everywhere("stub-a")
    kit.until("its battery is told", lambda: any(
        device["battery_percent"] == 80 for device in node.get("/shoal/v1/devices").json()["devices"]))
    rest, _ = speak_and_stop(node, device, goes_on_after=4.5)
    assert rest[-1] == "[DONE]", rest[-3:]


def test_a_committed_stream_of_a_stopped_machine_ends_soon_and_its_link_stays(mesh):
    stub = mesh.stub("d1", model="stub-a")
    node = mesh.first("n1")
    device = mesh.device("d1", [stub.url])
    mesh.everywhere("stub-a")
    rest, took = speak_and_stop(node, device)
    stop(device, signal.SIGCONT)
    assert json.loads(rest[-1])["error"]["code"] == "upstream_interrupted", rest[-3:]
    assert took < 5.0, f"ended after {took:.2f} s; its connection alone would be believed for 15"
    kit.until("it serves again", lambda: node.chat("stub-a", "[[stub n=2]]").status_code == 200)
    assert node.text().count("a device linked") == 1, "over the link that it had"


def test_a_device_links_to_another_node_within_five_seconds_when_its_node_is_killed(mesh):
    stub = mesh.stub("d1", model="stub-a")
    mesh.first("n1")
    mesh.join("n2")
    mesh.join("n3")
    mesh.whole(3)
    device = mesh.device("d1", [stub.url])
    mesh.everywhere("stub-a")

    def linked():
        """The nodes that the device is linked to, as each of them says of itself."""
        owners = set()
        for node in mesh.nodes:
            if node.alive():
                devices = node.get("/shoal/v1/devices").json()["devices"]
                owners.update(node.name for device in devices if device["direct"])
        return owners
    names = {node.name: node for node in mesh.nodes}
    kit.until("two links", lambda: len(linked()) == 2)
    before = linked()
    victim = names[sorted(before)[0]]
    outsider = next(node for node in mesh.nodes if node.name not in before)

    with ThreadPoolExecutor(2) as pool:
        # Through the node that is not linked: one that waits and one that speaks.
        slow = pool.submit(outsider.chat, "stub-a", "[[stub ttft=7000 n=3 tag=waits]]")
        body = {"model": "stub-a", "messages": [{"role": "user", "content": "[[stub n=400 itl=50 tag=speaks]]"}], "stream": True}
        speaks = pool.submit(outsider.post, "/v1/chat/completions", body)
        kit.until("both under way", lambda: phases(stub, "waits") == ["prefill"] and phases(stub, "speaks") == ["decode"])
        victim.kill()
        killed = time.monotonic()
        survivors = {node.name for node in mesh.nodes if node is not victim}
        kit.until("linked to both survivors", lambda: survivors <= linked(), within_s=15)
        took = time.monotonic() - killed
        assert took <= 5.0, f"linked again after {took:.2f} s"
        waited = slow.result()
        assert waited.status_code == 200, waited.text
        payloads = kit.events(speaks.result().text)
    # It ran through the survivor and is whole, or through the victim and says so.
    assert payloads[-1] == "[DONE]" or json.loads(payloads[-1])["error"]["code"] == "upstream_interrupted"
    for node in mesh.nodes:
        if node is not victim:
            assert node.chat("stub-a", f"after {node.name} [[stub n=2]]").status_code == 200
