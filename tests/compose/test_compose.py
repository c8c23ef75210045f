"""The cluster in containers: every node answers, one is killed, the others go on."""

import json
import os
import shutil
import subprocess
import uuid

import httpx
import pytest

import kit

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IMAGE = os.environ.get("SHOAL_IMAGE", "shoal:local")
# Three containers load the model at once, on whatever cores there are.
START_S = 180.0


def engine_missing():
    if not shutil.which("docker") or subprocess.run(["docker", "version"], capture_output=True).returncode:
        return "no container engine answers here"
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode:
        return f"there is no image {IMAGE}: run scripts/image.sh"
    if not compose_command():
        return "neither 'docker compose' nor docker-compose is installed"
    return None


def compose_command():
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return None


class Cluster:
    """One compose project on ports of its own."""

    def __init__(self):
        self.project = f"shoaltest{uuid.uuid4().hex[:8]}"
        ports = {f"SHOAL_PORT_{i}": kit.free_port() for i in range(4)}
        ports.update({f"SHOAL_UDP_{i}": kit.free_port(kit.socket.SOCK_DGRAM) for i in (1, 2, 3)})
        self.env = {**os.environ, **{name: str(port) for name, port in ports.items()}, "SHOAL_IMAGE": IMAGE}
        self.urls = {f"router{i}": f"http://127.0.0.1:{ports[f'SHOAL_PORT_{i}']}" for i in (1, 2, 3)}
        self.urls["first"] = f"http://127.0.0.1:{ports['SHOAL_PORT_0']}"
        self.key = None

    def compose(self, *words, check=True):
        done = subprocess.run(
            [*compose_command(), "-p", self.project, *words],
            cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=400,
        )
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    def up(self):
        # docker-compose 1.29 cannot recreate a container under a newer engine, so nothing old may be there.
        self.compose("down", "-v", "--remove-orphans", check=False)
        self.compose("up", "-d", "--no-build")
        found, _ = kit.until("the API key in the logs", lambda: kit.KEY.search(self.compose("logs", "--no-color", "router1")), START_S, 1)
        self.key = found.group(0)

    def get(self, name, path):
        return httpx.get(self.urls[name] + path, headers={"authorization": f"Bearer {self.key}"}, timeout=10)

    def model(self, name):
        data = self.get(name, "/v1/models").json()["data"]
        names = [model["id"] for model in data if not model["id"].startswith(("auto", "device:"))]
        return names[0] if names else None

    def ask(self, name, stream=False):
        model, _ = kit.until(f"a model on {name}", lambda: self.model(name), START_S, 0.5)
        body = {"model": model, "max_tokens": 8, "stream": stream, "messages": [{"role": "user", "content": "Name a colour."}]}
        return httpx.post(
            self.urls[name] + "/v1/chat/completions", json=body, timeout=kit.PATIENCE_S,
            headers={"authorization": f"Bearer {self.key}"},
        )


@pytest.fixture(scope="module")
def cluster():
    reason = engine_missing()
    if reason:
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.compose("down", "-v", "--remove-orphans", check=False)


@pytest.mark.timeout(900)
def test_the_cluster_answers_and_survives_a_killed_container(cluster):
    for name in ("first", "router1", "router2", "router3"):
        kit.until(f"{name} ready", lambda name=name: httpx.get(cluster.urls[name] + "/readyz", timeout=5).status_code == 200, START_S, 0.5)
        answer = cluster.ask(name)
        assert answer.status_code == 200, (name, answer.text, cluster.compose("logs", "--tail=40", check=False))
        assert answer.json()["choices"][0]["message"]["content"]
        assert kit.events(cluster.ask(name, stream=True).text)[-1] == "[DONE]"
    kit.until("three devices", lambda: len(cluster.get("router3", "/shoal/v1/devices").json()["devices"]) == 3, START_S, 0.5)

    cluster.compose("kill", "router2")

    def two_left(name):
        nodes = cluster.get(name, "/shoal/v1/nodes").json()["nodes"]
        return sum(node["alive"] for node in nodes) == 2
    for name in ("router1", "router3"):
        for _ in range(3):
            answer = cluster.ask(name)
            assert answer.status_code == 200, (name, answer.text)
        kit.until(f"{name} sees two nodes", lambda name=name: two_left(name), 15)

    # Back without a token: its identity lies in its volume.
    cluster.compose("start", "router2")
    kit.until("router2 ready again", lambda: httpx.get(cluster.urls["router2"] + "/readyz", timeout=5).status_code == 200, START_S, 0.5)
    kit.until("router2 answers again", lambda: cluster.ask("router2").status_code == 200, START_S, 1)


def test_the_image_runs_as_nobody_and_has_no_shell():
    reason = engine_missing()
    if reason:
        pytest.skip(reason)
    inspected = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, text=True, check=True)
    user = json.loads(inspected.stdout)[0]["Config"]["User"]
    assert user.split(":")[0].isdigit() and int(user.split(":")[0]) > 0
    shell = subprocess.run(["docker", "run", "--rm", "--entrypoint", "/bin/sh", IMAGE, "-c", "true"], capture_output=True)
    assert shell.returncode != 0
