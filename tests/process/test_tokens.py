"""Join tokens at the real `shoal join`: each kind of bad one is refused by a sentence that says which."""

import base64
import hashlib
import json
import subprocess

import pytest

import kit

# Where the fields of a token begin: version, role, mesh id, pin, token id, secret, issuer, expiry, addresses.
ROLE, MESH, PIN, ID, SECRET, ISSUER = 1, 2, 18, 50, 58, 90
SEEDS = ISSUER + 26 + 8


def opened(token):
    body = token.strip().removeprefix("mj1_")
    return bytearray(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))[:-4]


def closed(content):
    """The text of a token whose checksum is right, whatever was done to the rest."""
    whole = bytes(content) + hashlib.sha256(bytes(content)).digest()[:4]
    return "mj1_" + base64.urlsafe_b64encode(whole).decode().rstrip("=")


def flipped(token, at):
    content = opened(token)
    content[at] ^= 1
    return closed(content)


def with_other_role(token):
    content = opened(token)
    content[ROLE] = 1 - content[ROLE]
    return closed(content)


def led_elsewhere(token, other):
    """A token of one mesh with the addresses of another."""
    return closed(opened(token)[:SEEDS] + opened(other)[SEEDS:])


def shoal(*args, within_s=40):
    done = subprocess.run(
        [kit.SHOAL, *map(str, args)], capture_output=True, text=True, timeout=within_s,
        env=kit.clean_env(), stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stdout + done.stderr


def new_token(node, *more):
    code, out, said = shoal("token", "create", "--json", "--data-dir", node.data_dir, *more)
    assert code == 0, said
    return json.loads(out)


def refused(tmp_path, token, *words):
    data = tmp_path / "joiner"
    code, _, said = shoal("join", token, "--data-dir", data, "--mesh", "127.0.0.1:0", "--listen", "127.0.0.1:0",
                          "--name", "intruder", "--engine", "http://127.0.0.1:9")
    assert code not in (0, 101), said
    assert "panicked" not in said and said.startswith("error: "), said
    for word in words:
        assert word in said.lower(), said
    # The key it made for itself may stay, for the next attempt; a certificate it has not.
    assert {file.name for file in (data / "identity").glob("*")} <= {"node.key"}, "a refused joiner belongs to nothing"


def test_a_used_token(trio, tmp_path):
    node = trio.nodes[1]
    token = new_token(node, "--role", "device")["token"]
    once = kit.Device(tmp_path / "once", "once", ["join", token], [trio.stubs["d1"].url])
    try:
        kit.until("the device on another node", lambda: "once" in trio.nodes[2].devices())
        refused(tmp_path, token, "used")
    finally:
        once.stop()


def test_an_expired_token(trio, tmp_path):
    node = trio.nodes[0]
    made = new_token(node, "--ttl", "1s")

    def expired():
        tokens = json.loads(shoal("token", "ls", "--json", "--data-dir", node.data_dir)[1])["tokens"]
        return any(token["id"] == made["id"] and token["state"] == "expired" for token in tokens)
    kit.until("expired", expired, every_s=0.2)
    refused(tmp_path, made["token"], "expired")


def test_a_revoked_token(trio, tmp_path):
    node = trio.nodes[0]
    made = new_token(node)
    code, _, said = shoal("token", "revoke", made["id"], "--data-dir", node.data_dir)
    assert code == 0, said
    refused(tmp_path, made["token"], "revoked")


@pytest.mark.parametrize("role", ["device", "router"])
def test_a_token_whose_role_was_changed(trio, tmp_path, role):
    token = new_token(trio.nodes[0], "--role", role)["token"]
    refused(tmp_path, with_other_role(token), "for another role")


def test_a_token_of_another_mesh(trio, mesh, tmp_path):
    other = mesh.first("foreign")
    token, theirs = new_token(trio.nodes[0])["token"], new_token(other)["token"]
    refused(tmp_path, led_elsewhere(token, theirs), "mesh")


@pytest.mark.parametrize("at, word", [(PIN, "mesh"), (MESH, "mesh"), (ID, "token"), (SECRET, "secret")])
def test_a_token_with_a_changed_field(trio, tmp_path, at, word):
    refused(tmp_path, flipped(new_token(trio.nodes[0])["token"], at), word)


def test_a_damaged_token(trio, tmp_path):
    token = new_token(trio.nodes[0])["token"]
    middle = len(token) // 2
    for bad in (token[:-5], token[:middle] + ("a" if token[middle] != "a" else "b") + token[middle + 1:]):
        refused(tmp_path, bad, "truncated or mistyped")


def test_nobody_at_the_tokens_addresses(mesh, tmp_path):
    node = mesh.first()
    token = new_token(node)["token"]
    node.kill()
    refused(tmp_path, token, "no router of the mesh answered")


def test_what_was_refused_left_the_mesh_as_it_was(trio):
    for node in trio.nodes:
        assert "intruder" not in node.devices() and node.alive_nodes() == {"n1", "n2", "n3"}
