"""Joining, seeing, dying and coming back, watched from the remote nodes."""

import signal
import time

import kit


def test_up_is_ready_within_a_second(mesh):
    started = time.monotonic()
    node = kit.Node(mesh.folder / "quick", "quick", ["up"])
    mesh.nodes.append(node)
    node.ready()
    assert time.monotonic() - started <= 1.0 + process_start_s()


def process_start_s():
    """What the machine takes for a program that does nothing, three times over: its load at the moment."""
    import subprocess
    started = time.monotonic()
    for _ in range(3):
        subprocess.run([kit.SHOAL, "--version"], check=True, capture_output=True, env=kit.clean_env())
    return time.monotonic() - started


def test_a_device_joins_and_its_model_is_seen_on_every_node(mesh):
    mesh.first("n1")
    mesh.join("n2")
    mesh.join("n3")
    mesh.whole(3)
    stub = mesh.stub("late", model="stub-late")
    mesh.device("late", [stub.url])
    _, joined = kit.until("the device on some node", lambda: any("late" in node.devices() for node in mesh.nodes))
    spread = mesh.everywhere("stub-late")
    assert joined <= 5
    assert spread <= 2
    for node in mesh.nodes:
        answer = node.chat("stub-late", f"from {node.name}")
        assert answer.status_code == 200, answer.text
        assert "late" in answer.headers["x-shoal-upstream"]


def test_a_killed_node_leaves_every_view_and_comes_back_without_a_token(mesh):
    mesh.first("n1")
    third = [mesh.join("n2"), mesh.join("n3")][1]
    mesh.whole(3)
    third.kill()
    killed = time.monotonic()
    for node in mesh.nodes[:2]:
        kit.until("n3 out of the view", lambda node=node: node.alive_nodes() == {"n1", "n2"})
    assert time.monotonic() - killed <= 5

    again = kit.Node(
        third.folder, "n3", ["join"], key=mesh.nodes[0].key,
        data_dir=third.data_dir, port=third.port, mesh_port=third.mesh_port,
    )
    mesh.nodes[2] = again
    again.ready()
    mesh.whole(3)


def test_the_whole_mesh_resumes_after_a_restart(mesh):
    stub = mesh.stub("d1", model="stub-a")
    first = mesh.first("n1")
    second = mesh.join("n2")
    device = mesh.device("d1", [stub.url])
    mesh.whole(2)
    mesh.everywhere("stub-a")
    for process in (device, second, first):
        process.child.send_signal(signal.SIGTERM)
    for process in (device, second, first):
        process.child.wait(timeout=20)

    places = dict(key=first.key)
    mesh.nodes[0] = kit.Node(first.folder, "n1", ["up"], data_dir=first.data_dir, port=first.port, mesh_port=first.mesh_port, **places)
    mesh.nodes[1] = kit.Node(second.folder, "n2", ["join"], data_dir=second.data_dir, port=second.port, mesh_port=second.mesh_port, **places)
    mesh.others.append(kit.Device(device.folder, "d1", ["join"], [stub.url], data_dir=device.data_dir))
    for node in mesh.nodes:
        node.ready()
    mesh.whole(2)
    mesh.everywhere("stub-a")
    for node in mesh.nodes:
        assert node.chat("stub-a").status_code == 200, "the same key works after the restart, on both nodes"


def test_a_model_of_another_nodes_own_server_is_reached_through_that_node(mesh):
    stub = mesh.stub("own", model="stub-own")
    mesh.first("n1", more=["--device", stub.url])
    mesh.join("n2")
    mesh.whole(2)
    mesh.everywhere("stub-own")
    for stream in (False, True):
        answer = mesh.nodes[1].chat("stub-own", "[[stub n=8]]", stream=stream)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-shoal-upstream"]
    assert stub.log()["counts"]["completed"] == 2
    body = mesh.nodes[1].chat("stub-own", "who?").json()
    assert body["shoal_metadata"]["target"] == "peer"


def test_tools_logprobs_and_usage_pass_through_a_peer(mesh):
    stub = mesh.stub("own", model="stub-own")
    mesh.first("n1", more=["--device", stub.url])
    mesh.join("n2")
    mesh.whole(2)
    mesh.everywhere("stub-own")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
    for node in mesh.nodes:
        choice = node.chat("stub-own", "[[stub tool=1]]", tools=tools).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
        choice = node.chat("stub-own", "[[stub n=3]]", logprobs=True, top_logprobs=2).json()["choices"][0]
        assert len(choice["logprobs"]["content"]) == 3
        payloads = kit.events(node.chat("stub-own", "[[stub n=3]]", stream=True, stream_options={"include_usage": True}).text)
        assert '"completion_tokens":3' in payloads[-2].replace(" ", "")
        without = kit.events(node.chat("stub-own", "[[stub n=3]]", stream=True).text)
        assert not any('"completion_tokens"' in payload for payload in without)


def test_what_was_learnt_is_seen_on_another_node_and_outlives_a_restart(mesh):
    stub = mesh.stub("own", model="stub-own")
    first = mesh.first("n1", more=["--device", stub.url])
    second = mesh.join("n2")
    mesh.whole(2)
    mesh.everywhere("stub-own")
    for _ in range(5):
        assert first.chat("stub-own", "[[stub n=2]]").status_code == 200

    def learnt(node):
        return sum(row["count"] for row in node.get("/shoal/v1/status").json()["statistics"] if "stub-own" in row["arm"])
    kit.until("five outcomes known to the other node", lambda: learnt(second) == 5)
    first.child.send_signal(signal.SIGTERM)
    first.child.wait(timeout=20)
    mesh.nodes[0] = again = kit.Node(
        first.folder, "n1", ["up", "--device", stub.url], key=first.key,
        data_dir=first.data_dir, port=first.port, mesh_port=first.mesh_port,
    )
    again.ready()
    kit.until("five outcomes after the restart", lambda: learnt(again) == 5)
    history = again.get("/shoal/v1/requests").json()["requests"]
    assert sum(row["model"] == "stub-own" for row in history) == 5
    mesh.everywhere("stub-own")
    assert again.chat("stub-own", "[[stub n=2]]").status_code == 200
    kit.until("the sixth counted on top, not anew", lambda: learnt(second) == 6)
