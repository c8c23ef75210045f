"""What people type at a running mesh, as programs: answers, JSON, exit codes."""

import json
import subprocess

import httpx

import kit

OK, FAILURE, USAGE, UNREACHABLE, NOT_ALLOWED = range(5)


def shoal(*args, env=None, within_s=40):
    """Runs a command; its exit code, standard output and standard error."""
    done = subprocess.run(
        [kit.SHOAL, *map(str, args)], capture_output=True, text=True, timeout=within_s,
        env=env or kit.clean_env(), stdin=subprocess.DEVNULL,
    )
    assert "panicked" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def ask(node, *args):
    code, out, err = shoal(*args, "--data-dir", node.data_dir)
    assert code == OK, err
    return out


def test_the_lists_show_the_whole_mesh_from_any_node(trio):
    for node in trio.nodes:
        status = json.loads(ask(node, "status", "--json"))
        assert status["node"]["name"] == node.name
        assert status["mesh"]["alive"] == 3
        nodes = json.loads(ask(node, "nodes", "--json"))["nodes"]
        assert {one["name"] for one in nodes} == {"n1", "n2", "n3"}
        assert [one["name"] for one in nodes if one["self"]] == [node.name]
        devices = json.loads(ask(node, "devices", "--json"))["devices"]
        assert {"d1", "d2", "d3"} <= {one["name"] for one in devices}
        models = json.loads(ask(node, "models", "--json"))["models"]
        assert {"stub-a", "stub-local"} <= {one["id"] for one in models}
        for command in ("status", "nodes", "devices", "models", "ps"):
            assert ask(node, command).strip()
    assert "d2" in ask(trio.nodes[0], "devices") and "stub-a" in ask(trio.nodes[0], "models")


def test_chat_streams_an_answer_and_explain_tells_of_it_on_another_node(trio):
    said = ask(trio.nodes[1], "chat", "--model", "stub-a", "hello [[stub n=6]]")
    assert "w0000:" in said and "w0005:" in said, said
    newest = json.loads(ask(trio.nodes[1], "ps", "--json"))["requests"][0]
    assert newest["outcome"] == "completed" and newest["completion_tokens"] == 6
    told = json.loads(ask(trio.nodes[2], "explain", newest["id"], "--json"))
    assert told["node"] == "n2" and told["upstream"] in ("d1", "d2", "d3")
    assert newest["id"] in ask(trio.nodes[2], "explain", newest["id"])


def test_chat_fails_when_the_answer_is_cut(trio):
    code, out, err = shoal("chat", "--model", "stub-local", "[[stub n=9 cut=3]]", "--data-dir", trio.nodes[0].data_dir)
    assert code == FAILURE and "w0002:" in out and "broke off" in err, out + err


def test_a_node_is_found_by_its_url_with_a_key_and_only_then(trio):
    node = trio.nodes[2]
    with_key = kit.clean_env(SHOAL_URL=node.url, SHOAL_API_KEY=node.key)
    assert shoal("status", env=with_key)[0] == OK
    code, _, err = shoal("status", env=kit.clean_env(SHOAL_URL=node.url, SHOAL_API_KEY="sk-shoal-wrong"))
    assert code == NOT_ALLOWED and "key" in err
    code, _, err = shoal("token", "create", env=with_key)
    assert code == NOT_ALLOWED, "an API key makes no join tokens"


def test_nobody_there_is_exit_code_3(tmp_path):
    kit_env = kit.clean_env()
    for command in (["health"], ["status"], ["down"], ["chat", "hi"]):
        code, _, err = shoal(*command, "--data-dir", tmp_path / "none", env=kit_env)
        assert code == UNREACHABLE and "shoal up" in err, (command, code, err)
    code, _, err = shoal("status", env=kit.clean_env(SHOAL_URL=f"http://127.0.0.1:{kit.free_port()}"))
    assert code == UNREACHABLE, err


def test_a_wrong_command_line_is_exit_code_2(tmp_path):
    for command in (["upp"], ["up", "--listen", "nonsense"], ["token", "create", "--role", "king"],
                    ["token", "create", "--ttl", "soon"], ["join", "@/nowhere/token", "--engine", "nonsense"]):
        code, out, err = shoal(*command, env=kit.clean_env(XDG_DATA_HOME=str(tmp_path)))
        assert code == USAGE or command[0] == "join" and code == FAILURE, (command, code, out + err)
        assert "error" in err


def test_down_stops_the_node_lets_answers_finish_and_tells_the_others(mesh):
    stub = mesh.stub("d1", model="stub-a")
    first = mesh.first("n1")
    second = mesh.join("n2")
    mesh.device("d1", [stub.url])
    mesh.whole(2)
    mesh.everywhere("stub-a")
    load = kit.load([second.url], first.key, "stub-a", 4, 4, 1.0, "{i} [[stub n=40 itl=50]]", mesh.folder / "load")
    kit.until("streams open", lambda: stub.log()["counts"]["open"] == 4)
    assert "stops" in ask(second, "down")
    assert load.child.wait(timeout=60) == 0, load.text()
    assert json.loads(load.text())["ok"] == 4, "answers that ran were finished"
    assert second.child.wait(timeout=20) == 0
    kit.until("n2 is gone from n1's view", lambda: first.alive_nodes() == {"n1"}, within_s=5)
    assert shoal("health", "--data-dir", second.data_dir)[0] == UNREACHABLE
    assert first.chat("stub-a").status_code == 200


def test_without_a_key_only_loopback_is_served(mesh, tmp_path):
    for address in ("0.0.0.0:0", "[::]:0"):
        code, _, err = shoal("up", "--no-auth", "--listen", address, "--data-dir", tmp_path / "open", "--no-detect")
        assert code not in (OK, 101) and "loopback" in err and "--no-auth" in err, err
        assert not (tmp_path / "open" / "identity").exists(), "nothing was made"
    node = kit.Node(mesh.folder / "free", "free", ["up", "--no-auth"], key="")
    mesh.nodes.append(node)
    node.ready()
    assert httpx.get(node.url + "/v1/models", timeout=5).status_code == 200
    assert kit.KEY.search(node.text()) is None, "no key is printed where none is needed"


def test_a_second_up_on_the_same_data_dir_says_so_and_the_first_goes_on(trio):
    node = trio.nodes[0]
    code, _, err = shoal("up", "--data-dir", node.data_dir, "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--no-detect")
    assert code == FAILURE
    assert "another shoal already runs" in err and str(node.data_dir) in err and "shoal down" in err, err
    assert node.chat("stub-a", "[[stub n=2]]").status_code == 200
