"""`shoal launch`: what an agent is started with, told by agents that only write it down."""

import json
import os
import stat
import subprocess

import httpx
import pytest

import kit

RECORDER = """#!/usr/bin/env python3
import json, os, sys
json.dump({"args": sys.argv[1:], "env": dict(os.environ)}, open(os.environ["RECORD"], "w"))
sys.exit(7)
"""


@pytest.fixture
def agents(tmp_path):
    """A folder with agents that note how they were started, and end with 7."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("claude", "codex", "opencode"):
        file = folder / name
        file.write_text(RECORDER)
        file.chmod(0o755)
    return folder


def launch(node, agents, *args, **env):
    record = agents.parent / "record.json"
    record.unlink(missing_ok=True)
    env = {"PATH": f"{agents}{os.pathsep}{os.environ['PATH']}", "RECORD": str(record), **env}
    done = subprocess.run(
        [kit.SHOAL, "launch", *args], capture_output=True, text=True, timeout=40, stdin=subprocess.DEVNULL,
        env=kit.clean_env(SHOAL_DATA_DIR=str(node.data_dir), **env))
    return done, json.loads(record.read_text()) if record.exists() else None


def answers(url, key):
    return httpx.get(url + "/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=10).status_code


def test_claude_gets_the_mesh_and_its_own_arguments(trio, agents):
    node = trio.nodes[0]
    done, record = launch(node, agents, "claude", "--model", "stub-a", "-p", "hi there", "--verbose",
                          ANTHROPIC_API_KEY="sk-ant-own")
    assert done.returncode == 7, done.stderr
    assert record["args"] == ["-p", "hi there", "--verbose"]
    env = record["env"]
    assert env["ANTHROPIC_BASE_URL"] == node.url
    assert env["ANTHROPIC_MODEL"] == env["ANTHROPIC_SMALL_FAST_MODEL"] == "stub-a"
    assert "ANTHROPIC_API_KEY" not in env
    assert env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "8192"
    key = env["ANTHROPIC_AUTH_TOKEN"]
    assert answers(node.url, key) == 200
    kept = node.data_dir / "launch-key"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    _, again = launch(node, agents, "claude")
    assert again["env"]["ANTHROPIC_AUTH_TOKEN"] == key, "one key, not one for each start"
    assert again["env"]["ANTHROPIC_MODEL"] == "auto"


def test_a_revoked_key_is_replaced(trio, agents):
    node = trio.nodes[1]
    _, record = launch(node, agents, "claude")
    old = record["env"]["ANTHROPIC_AUTH_TOKEN"]
    revoke = [kit.SHOAL, "keys", "revoke", old.removeprefix("sk-shoal-").split("_")[0], "--data-dir", node.data_dir]
    assert subprocess.run(list(map(str, revoke)), env=kit.clean_env(), capture_output=True, timeout=40).returncode == 0
    _, record = launch(node, agents, "claude")
    new = record["env"]["ANTHROPIC_AUTH_TOKEN"]
    assert new != old and answers(node.url, new) == 200


def test_codex_and_opencode_get_a_provider(trio, agents):
    node = trio.nodes[0]
    done, record = launch(node, agents, "codex", "exec", "hello")
    assert done.returncode == 7, done.stderr
    assert record["args"][-2:] == ["exec", "hello"]
    assert f'model_providers.shoal.base_url="{node.url}/v1"' in record["args"]
    assert answers(node.url, record["env"]["SHOAL_API_KEY"]) == 200
    _, record = launch(node, agents, "opencode", "run", "hello")
    config = json.loads(record["env"]["OPENCODE_CONFIG_CONTENT"])
    assert {"stub-a", "auto"} <= set(config["provider"]["shoal"]["models"])
    assert record["args"] == ["run", "hello"]


def test_print_shows_what_would_run_and_runs_nothing(trio, agents):
    node = trio.nodes[2]
    done, record = launch(node, agents, "claude", "--print", "--", "--print", "two words")
    assert done.returncode == 0 and record is None
    assert f"export ANTHROPIC_BASE_URL={node.url}" in done.stdout
    assert done.stdout.splitlines()[-1] == "claude --print 'two words'"
    assert not (node.data_dir / "launch-key").exists() and not kit.KEY.search(done.stdout)


def test_a_missing_agent_is_said_with_how_to_install_it(trio, agents):
    (agents / "codex").unlink()
    done, _ = launch(trio.nodes[2], agents, "codex", PATH=str(agents))
    assert done.returncode == 1
    assert "'codex' is not installed" in done.stderr and "npm install -g @openai/codex" in done.stderr
    assert not (trio.nodes[2].data_dir / "launch-key").exists()


def test_without_a_node_nothing_starts(tmp_path, agents):
    env = kit.clean_env(PATH=str(agents), SHOAL_DATA_DIR=str(tmp_path / "none"))
    done = subprocess.run([kit.SHOAL, "launch", "claude"], capture_output=True, text=True, timeout=40, env=env)
    assert done.returncode == 3 and "shoal up" in done.stderr
