"""HTTPS on an API that leaves loopback, as other programs' clients meet it: Python's ssl, openai, and our own."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys

import httpx
import pytest

import kit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def start(folder, name, command, key=None, listen="0.0.0.0", more=(), env=None):
    """Starts a node on `listen`; returns it with `ca`, the file that proves it."""
    need = [kit.SHOAL, kit.LOADTEST]
    if not all(path and os.access(path, os.X_OK) for path in need):
        pytest.skip("shoal or shoal-loadtest is missing: set SHOAL_BIN and SHOAL_LOADTEST_BIN")
    node = kit.Node.__new__(kit.Node)
    node.name, node.key = name, key
    node.port, node.mesh_port = kit.free_port(), kit.free_port(socket.SOCK_DGRAM)
    node.data_dir = folder / "data"
    node.url = f"https://127.0.0.1:{node.port}"
    node.ca = node.data_dir / "identity" / "ca.crt"
    kit.Process.__init__(node, folder, [
        kit.SHOAL, *command, "--data-dir", node.data_dir, "--listen", f"{listen}:{node.port}",
        "--mesh", f"127.0.0.1:{node.mesh_port}", "--name", name, "--no-detect", *more,
    ], env=env)
    return node


def trusting(*files):
    context = ssl.create_default_context()
    for file in files:
        context.load_verify_locations(file)
    return context


def ready(node, context=None):
    def answers():
        node.must_live()
        return httpx.get(node.url + "/readyz", verify=context or trusting(node.ca), timeout=5).status_code == 200
    kit.until(f"{node.name} ready", answers)
    if node.key is None:
        found, _ = kit.until("an API key printed", lambda: kit.KEY.search(node.text()), 10)
        node.key = found.group(0)
    return node


def shoal(*words, **env):
    done = subprocess.run([kit.SHOAL, *map(str, words)], text=True, capture_output=True,
                          env=kit.clean_env(**{k: str(v) for k, v in env.items()}), timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def lan(tmp_path):
    """A node on all addresses, with a stub device."""
    stub = kit.Stub(tmp_path / "stub")
    node = start(tmp_path / "n1", "n1", ["up"], more=["--device", stub.url,
                                                      "--write-token", f"router:{tmp_path}/router.token:4"])
    try:
        ready(node)
        kit.until("the model listed", lambda: "stub-a" in httpx.get(
            node.url + "/v1/models", headers=node.auth(), verify=trusting(node.ca)).text)
        yield node
    finally:
        node.stop()
        stub.stop()


def test_the_printed_addresses_speak_https_and_pythons_ssl_verifies_them(lan):
    assert f"https://127.0.0.1:{lan.port}/v1" in lan.text()
    assert f"https://127.0.0.1:{lan.port}/dashboard?code=" in lan.text()
    # Python 3.13 sets this by itself: key identifiers and usages must be as RFC 5280 wants them.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(lan.ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    for name in ("127.0.0.1", "localhost", "::1", socket.gethostname().split(".")[0]):
        with socket.create_connection(("127.0.0.1", lan.port)) as plain:
            with context.wrap_socket(plain, server_hostname=name) as secured:
                assert secured.selected_alpn_protocol() == "h2"
                kind = secured.getpeercert()["subjectAltName"]
                assert ("DNS", "localhost") in kind and ("DNS", "shoal.internal") not in kind
    with socket.create_connection(("127.0.0.1", lan.port)) as plain, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(plain, server_hostname="api.openai.com")
    with pytest.raises(httpx.ConnectError):
        httpx.get(lan.url + "/healthz", timeout=5)


def test_openais_client_is_served_by_what_env_prints(lan):
    code, text = shoal("env", "--data-dir", lan.data_dir)
    assert code == 0, text
    env = dict(line.removeprefix("export ").split("=", 1) for line in text.splitlines() if line.startswith("export "))
    assert env["OPENAI_BASE_URL"] == lan.url + "/v1"
    # One list for all: who exports it still reaches the rest of the web.
    assert open(env["SSL_CERT_FILE"]).read().count("BEGIN CERTIFICATE") >= 1
    assert open(env["NODE_EXTRA_CA_CERTS"]).read() == lan.ca.read_text()
    talk = """
import openai
client = openai.OpenAI()
ask = dict(model="stub-a", messages=[{"role": "user", "content": "say [[stub n=5]]"}])
print(client.chat.completions.create(**ask).choices[0].finish_reason)
print(sum(bool(part.choices and part.choices[0].delta.content) for part in client.chat.completions.create(stream=True, **ask)))
"""
    child = kit.clean_env(OPENAI_API_KEY=lan.key, **env)
    done = subprocess.run([sys.executable, "-c", talk], env=child, text=True, capture_output=True, timeout=60)
    assert done.stdout.split() == ["stop", "5"], done.stdout + done.stderr
    del child["SSL_CERT_FILE"]
    done = subprocess.run([sys.executable, "-c", talk], env=child, text=True, capture_output=True, timeout=60)
    assert done.returncode != 0 and "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_our_own_commands_trust_the_mesh_and_nobody_else(lan, tmp_path):
    ask = ("status", "--json", "--url", lan.url, "--api-key", lan.key)
    code, text = shoal(*ask, "--data-dir", lan.data_dir)
    assert code == 0, text
    status = json.loads(text)["node"]
    assert (status["api_url"], status["tls"]) == (lan.url, "mesh")
    nowhere = tmp_path / "nowhere"
    code, text = shoal(*ask, "--data-dir", nowhere)
    assert code == 3 and "SHOAL_CA_FILE" in text, text
    code, text = shoal(*ask, SHOAL_DATA_DIR=nowhere, SHOAL_CA_FILE=lan.ca)
    assert code == 0, text
    code, text = shoal(*ask, "--ca-file", lan.data_dir / "identity" / "node.key")
    assert code == 2 and "holds no certificate" in text, text
    code, text = shoal("env", "--url", lan.url, "--api-key", lan.key, SHOAL_DATA_DIR=nowhere, SHOAL_CA_FILE=lan.ca)
    assert code == 0 and f"SSL_CERT_FILE={lan.data_dir}" in text, text
    # By http the port says what it is.
    code, text = shoal("status", "--url", lan.url.replace("https", "http"), "--api-key", lan.key)
    assert code == 1 and "https://" in text, text
    code, text = shoal("doctor", "--data-dir", lan.data_dir, "--json", SHOAL_LISTEN=f"0.0.0.0:{lan.port}")
    checks = {check["name"]: check for check in json.loads(text)["checks"]}
    assert lan.url in checks["API port"]["cause"] and checks["HTTPS"]["verdict"] == "ok"


def test_plain_http_is_told_what_the_port_speaks(lan):
    answer = httpx.post(f"http://127.0.0.1:{lan.port}/v1/chat/completions", json={"model": "x"}, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "https_required")
    assert answer.headers["x-shoal-node"] == "n1"


def test_a_router_that_joins_shows_a_certificate_of_the_same_mesh(lan, tmp_path):
    second = start(tmp_path / "n2", "n2", ["join", f"@{tmp_path}/router.token"], key=lan.key)
    try:
        # It asks the first for the right to issue in the background; the first's root proves it from then on.
        ready(second, trusting(lan.ca))
        assert httpx.get(second.url + "/v1/models", headers=lan.auth(), verify=trusting(lan.ca)).status_code == 200
    finally:
        second.stop()


def test_a_certificate_of_ones_own_is_shown_and_needs_no_trust_in_the_mesh(tmp_path):
    def make(name):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-keyout", tmp_path / "own.key", "-out", tmp_path / "own.crt", "-days", "30", "-subj", f"/CN={name}",
                        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
        return ssl.create_default_context(cafile=tmp_path / "own.crt")

    if not shutil.which("openssl"):
        pytest.skip("openssl is missing")
    context = make("first")
    # By variables, and on loopback: a certificate that was given is shown there too.
    env = kit.clean_env(SHOAL_API__TLS__CERT=str(tmp_path / "own.crt"), SHOAL_API__TLS__KEY=str(tmp_path / "own.key"))
    node = start(tmp_path / "n1", "n1", ["up"], listen="127.0.0.1", env=env)
    try:
        ready(node, context)
        code, text = shoal("env", "--data-dir", node.data_dir)
        assert code == 0 and node.url in text and "SSL_CERT_FILE" not in text, text
    finally:
        node.stop()


@pytest.mark.parametrize("cert, key, cause", [
    ("gone.pem", "own.key", "cannot read the certificate"),
    ("own.key", "own.key", "holds no certificate"),
    ("ca", "own.key", "is not the key of the certificate"),
    (None, "own.key", "--tls-cert"),
])
def test_files_that_do_not_fit_end_the_start_with_their_name(tmp_path, cert, key, cause):
    first = start(tmp_path / "n1", "n1", ["up"], listen="127.0.0.1")
    kit.until("an identity", lambda: first.ca.is_file())
    first.stop()
    (tmp_path / "own.key").write_text((first.data_dir / "identity" / "node.key").read_text())
    files = {"gone.pem": tmp_path / "gone.pem", "own.key": tmp_path / "own.key", "ca": first.ca, None: None}
    words = [word for flag, name in (("--tls-cert", cert), ("--tls-key", key)) if name for word in (flag, files[name])]
    code, text = shoal("up", "--data-dir", tmp_path / "n2", "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", *words)
    assert code in (1, 2) and cause in text, text


def test_off_is_plain_http_on_all_addresses(tmp_path):
    node = start(tmp_path / "n1", "n1", ["up"], more=["--tls", "off"])
    try:
        node.url = node.url.replace("https", "http")
        ready(node, trusting())
        assert f"http://127.0.0.1:{node.port}/v1" in node.text()
    finally:
        node.stop()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_warns_of_the_meshs_root_and_nothing_worse(lan):
    """Past the warning, which a person can click away, the dashboard's link logs in over HTTPS."""
    api = pytest.importorskip("playwright.sync_api")
    code, text = shoal("dashboard", "--json", "--data-dir", lan.data_dir)
    assert code == 0, text
    link = json.loads(text)["url"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            with pytest.raises(api.Error, match="ERR_CERT_AUTHORITY_INVALID"):
                browser.new_page().goto(lan.url + "/dashboard")
            context = browser.new_context(ignore_https_errors=True)
            page = context.new_page()
            page.goto(link)
            assert page.url == lan.url + "/dashboard" and "n1" in page.inner_text("body")
            assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
            session, = context.cookies()
            assert session["secure"] and session["httpOnly"] and session["sameSite"] == "Strict"
        finally:
            browser.close()
