"""Starts and stops the real programs, and waits for conditions, never for a length of time.

Every process writes its output to a file in its own folder; a failed wait shows the end of it.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import httpx

SHOAL = os.environ.get("SHOAL_BIN", "")
LOADTEST = os.environ.get("SHOAL_LOADTEST_BIN", "")
MODEL = os.environ.get("SHOAL_TEST_MODEL", "")
# A loaded two-core machine may take ten times what a quiet one takes; bars with a figure are checked apart.
PATIENCE_S = 60.0
PROVIDER_KEY = "sk-canary-41c7e9d2"
KEY = re.compile(r"sk-shoal-[A-Za-z0-9_-]+")


def free_port(kind=socket.SOCK_STREAM):
    """A port that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_ports_in_a_row(count):
    """The first of `count` neighbouring free ports."""
    for _ in range(200):
        first = free_port()
        if first + count > 65535:
            continue
        try:
            held = []
            for port in range(first, first + count):
                held.append(socket.socket())
                held[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for probe in held:
                probe.close()
    raise RuntimeError("no free neighbouring ports")


def until(what, condition, within_s=PATIENCE_S, every_s=0.02):
    """Polls `condition` until it returns something true, and returns that and the seconds it took."""
    started = time.monotonic()
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value, time.monotonic() - started
        except (httpx.HTTPError, OSError, KeyError, ValueError) as error:
            last = error
        if time.monotonic() - started > within_s:
            raise AssertionError(f"not within {within_s} s: {what}" + (f" ({last!r})" if last else ""))
        time.sleep(every_s)


def clean_env(**extra):
    """The environment without our variables and providers' keys: a node reads only what a test gives it."""
    foreign = re.compile(r"SHOAL_|ANDROID_|LFO_|MAX_LOCAL_TOKENS$|PORT$|\w+_API_KEY(_FILE)?$")
    env = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    env.update(NO_COLOR="1", **extra)
    return env


class Process:
    """A program under test."""

    def __init__(self, folder, args, env=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output = self.folder / "output.log"
        with self.output.open("ab") as out:
            self.child = subprocess.Popen(
                [str(arg) for arg in args],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env=env or clean_env(), start_new_session=True,
            )

    def text(self):
        return self.output.read_text(errors="replace")

    def alive(self):
        return self.child.poll() is None

    def must_live(self):
        assert self.alive(), f"ended with {self.child.returncode}:\n{self.text()[-3000:]}"

    def kill(self):
        """SIGKILL to the process alone, as a crash would be."""
        if self.alive():
            self.child.kill()
        self.child.wait(timeout=PATIENCE_S)

    def stop(self, within_s=20):
        """SIGTERM, then SIGKILL to the whole group."""
        if self.alive():
            self.child.terminate()
            try:
                self.child.wait(timeout=within_s)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait(timeout=PATIENCE_S)


class Stub(Process):
    """`shoal-loadtest stub device`, as a llama.cpp server, which announces its slots."""

    def __init__(self, folder, model="stub-a", listen="127.0.0.1:0", slots=64, more=()):
        super().__init__(folder, [LOADTEST, "stub", "device", "--model", model, "--slots", slots, "--listen", listen,
                                  "--kind", "llama.cpp", *more])
        found, _ = until("stub listening", lambda: re.search(r"^listening (http://\S+)$", self.text(), re.M))
        self.url = found.group(1)
        self.model = model

    def log(self):
        return httpx.get(f"{self.url}/stub/log", timeout=10).json()

    def tagged(self, tag):
        return [entry for entry in self.log()["requests"] if entry["tag"] == tag]


class Provider(Stub):
    """`shoal-loadtest stub provider`, which wants `PROVIDER_KEY`."""

    def __init__(self, folder, kind, model):
        Process.__init__(self, folder, [LOADTEST, "stub", "provider", "--kind", kind, "--model", model,
                                        "--key", PROVIDER_KEY, "--slots", 64])
        found, _ = until("stub listening", lambda: re.search(r"^listening (http://\S+)$", self.text(), re.M))
        self.url, self.model = found.group(1), model

    def log(self):
        log = super().log()
        # This look opened one connection as well, and each look before it.
        self.looks = getattr(self, "looks", 0) + 1
        log["connections"] -= self.looks
        return log


class Node(Process):
    """A router node: `shoal up` or `shoal join` with a router token."""

    def __init__(self, folder, name, command, key=None, data_dir=None, port=None, mesh_port=None, more=(), env=None):
        self.name = name
        self.port = port or free_port()
        self.mesh_port = mesh_port or free_port(socket.SOCK_DGRAM)
        self.data_dir = pathlib.Path(data_dir or pathlib.Path(folder) / "data")
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = key
        super().__init__(folder, [
            SHOAL, *command, "--data-dir", self.data_dir, "--listen", f"127.0.0.1:{self.port}",
            "--mesh", f"127.0.0.1:{self.mesh_port}", "--name", name, "--no-detect", *more,
        ], env=env)

    def get(self, path, **options):
        options.setdefault("timeout", 10)
        return httpx.get(self.url + path, headers=self.auth(), **options)

    def post(self, path, body, **options):
        options.setdefault("timeout", PATIENCE_S)
        return httpx.post(self.url + path, headers=self.auth(), json=body, **options)

    def auth(self):
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def ready(self, within_s=PATIENCE_S):
        def answers():
            self.must_live()
            return httpx.get(self.url + "/readyz", timeout=5).status_code == 200
        _, took = until(f"{self.name} ready", answers, within_s)
        if self.key is None:
            found, _ = until("an API key printed", lambda: KEY.search(self.text()), 10)
            self.key = found.group(0)
        return took

    def alive_nodes(self):
        nodes = self.get("/shoal/v1/nodes").json()["nodes"]
        return {node["name"] for node in nodes if node["alive"]}

    def devices(self):
        return {device["name"] for device in self.get("/shoal/v1/devices").json()["devices"]}

    def models(self):
        return {model["id"] for model in self.get("/v1/models").json()["data"]}

    def chat(self, model, prompt="hi", stream=False, **more):
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream, **more}
        return self.post("/v1/chat/completions", body)


class Device(Process):
    """A device agent: `shoal join` with a device token."""

    def __init__(self, folder, name, command, engines, data_dir=None, more=(), env=None):
        self.name = name
        self.data_dir = pathlib.Path(data_dir or pathlib.Path(folder) / "data")
        engines = [word for engine in engines for word in ("--engine", engine)]
        super().__init__(folder, [SHOAL, *command, "--data-dir", self.data_dir, "--name", name, *engines, *more], env=env)


class Mesh:
    """Router nodes made by `up` and `join`, and their devices, in one folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.nodes, self.others, self.stubs = [], [], {}
        self.tokens = {role: self.folder / f"{role}.token" for role in ("device", "router")}

    def first(self, name="n1", more=()):
        writes = [word for role, file in self.tokens.items() for word in ("--write-token", f"{role}:{file}:16")]
        node = Node(self.folder / name, name, ["up"], more=[*writes, *more])
        self.nodes.append(node)
        node.ready()
        until("tokens written", lambda: all(file.is_file() and file.stat().st_size for file in self.tokens.values()))
        return node

    def join(self, name, more=()):
        node = Node(self.folder / name, name, ["join", f"@{self.tokens['router']}"], key=self.nodes[0].key, more=more)
        self.nodes.append(node)
        node.ready()
        return node

    def stub(self, name, **options):
        stub = Stub(self.folder / f"stub-{name}", **options)
        self.others.append(stub)
        return stub

    def device(self, name, engines, env=None):
        device = Device(self.folder / name, name, ["join", f"@{self.tokens['device']}"], engines, env=env)
        self.others.append(device)
        return device

    def whole(self, count):
        """Waits until every node sees `count` nodes and answers with the shared key."""
        for node in self.nodes:
            until(f"{node.name} sees {count} nodes", lambda node=node: len(node.alive_nodes()) == count)

    def everywhere(self, model, within_s=PATIENCE_S):
        """Waits until every living node lists `model`; returns the seconds of the slowest."""
        started = time.monotonic()
        for node in self.nodes:
            if node.alive():
                left = within_s - (time.monotonic() - started)
                until(f"{node.name} lists {model}", lambda node=node: model in node.models(), max(left, 0.1))
        return time.monotonic() - started

    def fill(self, own=False):
        """Nodes n1 to n3; stub devices d1 to d3 with model `stub-a`; `stub-local` attached to n1 alone.

        With `own`, n1 has a server of its own with `stub-a` too, which the others reach only through n1.
        """
        self.stubs = {"local": self.stub("local", model="stub-local")}
        if own:
            self.stubs["own"] = self.stub("own", model="stub-a")
        self.first("n1", more=[word for stub in self.stubs.values() for word in ("--device", stub.url)])
        self.join("n2")
        self.join("n3")
        for i in (1, 2, 3):
            self.stubs[f"d{i}"] = self.stub(f"d{i}", model="stub-a")
            self.device(f"d{i}", [self.stubs[f"d{i}"].url])
        self.whole(3)
        for node in self.nodes:
            until("all devices seen", lambda node=node: {"d1", "d2", "d3"} <= node.devices())
        self.everywhere("stub-a")
        self.everywhere("stub-local")

    def close(self):
        processes = [*self.others, *self.nodes]
        for process in processes:
            if process.alive():
                process.child.terminate()
        for process in processes:
            process.stop(within_s=5)


class Dev(Process):
    """`shoal dev`: a whole mesh with the real model."""

    def __init__(self, folder, nodes=3, devices=3):
        folder = pathlib.Path(folder)
        self.data_dir = folder / "mesh"
        self.started = time.monotonic()
        home = clean_env(XDG_DATA_HOME=str(folder / "home"))
        super().__init__(folder, [
            SHOAL, "dev", "--nodes", nodes, "--devices", devices, "--data-dir", self.data_dir,
            "--port", free_ports_in_a_row(nodes), "--model-file", MODEL,
        ], env=home)

        def written():
            self.must_live()
            return json.loads((self.data_dir / "dev.json").read_text())
        self.info, _ = until("dev.json", written, within_s=120)
        self.key = self.info["api_key"]
        self.urls = [node["url"].rstrip("/").removesuffix("/v1") for node in self.info["nodes"]]

    def model(self, url=None):
        """A served model's name, as this node lists it."""
        def listed():
            data = httpx.get((url or self.urls[0]) + "/v1/models", headers=self.auth(), timeout=10).json()["data"]
            return [m["id"] for m in data if not m["id"].startswith(("auto", "device:"))]
        names, _ = until("a model listed", listed)
        return names[0]

    def auth(self):
        return {"authorization": f"Bearer {self.key}"}


def load(urls, key, model, requests, concurrency, stream, prompt, folder):
    """Starts `shoal-loadtest run --json` in the background."""
    args = [LOADTEST, "run", "--key", key, "--model", model, "--requests", requests, "--concurrency", concurrency,
            "--stream", stream, "--prompt", prompt, "--json"]
    return Process(folder, [*args, *(word for url in urls for word in ("--url", url))])


def events(text):
    """Payloads of a stream."""
    return [line[6:] for line in text.splitlines() if line.startswith("data: ")]
