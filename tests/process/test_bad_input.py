"""Bad input gets a clear error and leaves the process as it was."""

import os
import subprocess

import httpx
import pytest

import kit

GOOD = {"model": "stub-a", "messages": [{"role": "user", "content": "hi"}]}
BAD_BODIES = {
    "broken JSON": (b'{"model": "stub-a", ', 400, None),
    "no object": (b"[1,2]", 400, None),
    "empty body": (b"", 400, None),
    "not UTF-8": (b'{"model": "\xff\xfe"}', 400, None),
    "no model": ({"messages": GOOD["messages"]}, 400, "model"),
    "model of wrong type": ({**GOOD, "model": 7}, 400, "model"),
    "no messages": ({"model": "stub-a"}, 400, "messages"),
    "empty messages": ({**GOOD, "messages": []}, 400, "messages"),
    "messages of wrong type": ({**GOOD, "messages": "hi"}, 400, "messages"),
    "message without role": ({**GOOD, "messages": [{"content": "hi"}]}, 400, "messages"),
    "unknown role": ({**GOOD, "messages": [{"role": "king", "content": "hi"}]}, 400, "messages"),
    "content of wrong type": ({**GOOD, "messages": [{"role": "user", "content": 5}]}, 400, "messages"),
    "negative max_tokens": ({**GOOD, "max_tokens": -1}, 400, "max_tokens"),
    "max_tokens of wrong type": ({**GOOD, "max_tokens": "ten"}, 400, "max_tokens"),
    "stream of wrong type": ({**GOOD, "stream": "yes"}, 400, "stream"),
    "temperature out of range": ({**GOOD, "temperature": 9}, 400, "temperature"),
    "unknown model": ({**GOOD, "model": "stub-z"}, 404, "model"),
    "deep nesting": (b'{"model":"stub-a","messages":' + b"[" * 100_000 + b"}", 400, None),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_named(trio, name):
    body, status, param = BAD_BODIES[name]
    node = trio.nodes[0]
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    headers = {**node.auth(), "content-type": "application/json"}
    answer = httpx.post(node.url + "/v1/chat/completions", headers=headers, timeout=20, **content)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"] and error["type"] and "code" in error
    if param:
        assert (error["param"] or "").startswith(param), error
    still_serves(node)


def still_serves(node):
    node.must_live()
    assert node.chat("stub-a", "[[stub n=2]]").status_code == 200


def test_a_huge_body_is_refused(trio):
    node = trio.nodes[0]
    huge = b'{"model":"stub-a","messages":[{"role":"user","content":"' + b"x" * (80 << 20) + b'"}]}'
    try:
        answer = httpx.post(node.url + "/v1/chat/completions", headers=node.auth(), content=huge, timeout=60)
        assert answer.status_code == 413, answer.text
    except (httpx.WriteError, httpx.RemoteProtocolError):
        pass  # the server may hang up on the rest of a body that it has refused
    still_serves(node)


@pytest.mark.parametrize("key", [None, "x", "sk-shoal-wrong", "Bearer", "sk-shoal-" + "a" * 5000])
def test_a_bad_key_is_401(trio, key):
    node = trio.nodes[1]
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    answer = httpx.post(node.url + "/v1/chat/completions", headers=headers, json=GOOD, timeout=10)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    still_serves(node)


def test_unknown_paths_and_methods_are_refused_in_json(trio):
    node = trio.nodes[0]
    assert node.get("/v1/nothing").status_code == 404
    assert node.get("/v1/chat/completions").status_code == 405
    still_serves(node)


def run(tmp_path, *args, env=None, within_s=30):
    """Runs a command that must fail by itself, and returns its exit code and everything it said."""
    done = subprocess.run(
        [kit.SHOAL, *map(str, args)], capture_output=True, text=True, timeout=within_s,
        env=env or kit.clean_env(XDG_DATA_HOME=str(tmp_path / "home")), stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr


BAD_TOKENS = {
    "no token at all": "hello",
    "empty": "",
    "truncated": lambda token: token[: len(token) // 2],
    "tampered": lambda token: token[:-6] + ("aaaaaa" if token[-6:] != "aaaaaa" else "bbbbbb"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_a_bad_token_is_refused_with_a_sentence(trio, tmp_path, name):
    bad = BAD_TOKENS[name]
    if callable(bad):
        bad = bad(trio.tokens["router"].read_text().strip())
    file = tmp_path / "token"
    file.write_text(bad)
    code, said = run(tmp_path, "join", f"@{file}", "--data-dir", tmp_path / "data", "--mesh", "127.0.0.1:0")
    assert code not in (0, 101), said
    assert "token" in said and "panicked" not in said, said


def test_a_bad_config_names_the_key(tmp_path, trio):
    config = tmp_path / "shoal.toml"
    config.write_text('version = 1\nlissten = "127.0.0.1:1"\n')
    code, said = run(tmp_path, "up", "--config", config, "--data-dir", tmp_path / "data", "--mesh", "127.0.0.1:0")
    assert code not in (0, 101)
    assert "lissten" in said, said


def test_a_port_in_use_is_named(tmp_path, trio):
    port = trio.nodes[0].port
    code, said = run(tmp_path, "up", "--listen", f"127.0.0.1:{port}", "--data-dir", tmp_path / "data", "--mesh", "127.0.0.1:0", "--no-detect")
    assert code not in (0, 101)
    assert str(port) in said and "use" in said, said


def test_a_data_dir_in_use_is_named(tmp_path, trio):
    taken = trio.nodes[0].data_dir
    code, said = run(tmp_path, "up", "--data-dir", taken, "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--no-detect")
    assert code not in (0, 101)
    assert str(taken) in said, said


def test_an_unusable_data_dir_is_named(tmp_path, trio):
    # A file where the folder should be: refused also for root, whom permissions do not stop.
    place = tmp_path / "file"
    place.write_text("not a folder")
    code, said = run(tmp_path, "up", "--data-dir", place / "data", "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--no-detect")
    assert code not in (0, 101)
    assert str(place) in said, said
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o000)
        code, said = run(tmp_path, "up", "--data-dir", locked, "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--no-detect")
        assert code not in (0, 101) and str(locked) in said, said
