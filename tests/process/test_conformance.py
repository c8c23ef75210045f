"""What becomes of each field of each API at each kind of upstream, as one table, compared with the one in the docs.

Nothing in the table is written by hand: a request with the field is compared with one without it, by what the upstream
received and what the client was told. `SHOAL_WRITE_DOCS=1` writes the table instead of comparing it.
"""

import os
import pathlib
import re

import httpx
import pytest

import kit

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "api.md"
BEGIN, END = "<!-- the table: made by tests/process/test_conformance.py -->", "<!-- end of the table -->"
KEY = "sk-conformance"

TOOL = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
PICTURE = "iVBORw0KGgo="

DEVICES = {"OpenAI-compatible": "vllm", "llama.cpp": "llama.cpp", "Ollama": "ollama"}
PROVIDERS = {"OpenAI": "openai", "Gemini": "gemini", "Anthropic": "anthropic"}


def text(value):
    return [{"role": "user", "content": value}]


def chat(field, value, prompt):
    return "/v1/chat/completions", {"messages": text(prompt), field: value} if field else {"messages": text(prompt)}


def responses(field, value, prompt):
    return "/v1/responses", {"input": prompt, "store": False, **({field: value} if field else {})}


def messages(field, value, prompt):
    return "/v1/messages", {"messages": text(prompt), "max_tokens": 64, **({field: value} if field else {})}


def ollama(field, value, prompt):
    body = {"messages": text(prompt), "stream": False}
    if field and field.startswith("options."):
        body["options"] = {field.removeprefix("options."): value}
    elif field:
        body[field] = value
    return "/api/chat", body


def transcriptions(field, value, prompt):
    return "/v1/audio/transcriptions", {"prompt": prompt, **({field: value} if field else {})}


def speech(field, value, prompt):
    return "/v1/audio/speech", {"input": prompt, "voice": "alloy", **({field: value} if field else {})}


CHAT = {
    "temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "max_completion_tokens": 9, "stop": ["END"], "seed": 7, "n": 2,
    "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"50": 1}, "logprobs": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    "tools": [{"type": "function", "function": TOOL}], "parallel_tool_calls": False, "reasoning_effort": "low",
    "service_tier": "auto", "user": "u", "top_k": 5, "an_unknown_field": 1, "api_base": "http://elsewhere",
}
RESPONSES = {
    "instructions": "Be brief.", "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 64, "user": "u",
    "tools": [{"type": "function", **TOOL}], "parallel_tool_calls": False, "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
    "truncation": "auto", "service_tier": "auto", "background": True, "metadata": {"mine": "1"},
}
MESSAGES = {
    "system": "Be brief.", "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["END"],
    "tools": [{"name": "weather", "description": "d", "input_schema": TOOL["parameters"]}],
    "thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "u"}, "service_tier": "auto",
}
OLLAMA = {
    "options.temperature": 0.5, "options.top_p": 0.9, "options.top_k": 5, "options.num_predict": 9, "options.seed": 7,
    "options.stop": ["END"], "options.num_ctx": 8192, "format": SCHEMA, "think": False, "keep_alive": "5m",
    "tools": [{"type": "function", "function": TOOL}],
}
TRANSCRIPTIONS = {
    "language": "en", "temperature": "0.2", "response_format": "verbose_json", "timestamp_granularities[]": "word",
    "stream": "true", "include[]": "logprobs", "chunking_strategy": "auto", "an_unknown_field": "1",
    "metadata[data_class]": "internal", "metadata": '{"mode": "auto", "mine": "1"}', "api_base": "http://elsewhere",
}
SPEECH = {
    "instructions": "Whisper.", "response_format": "wav", "speed": 1.5, "stream_format": "sse", "an_unknown_field": 1,
    "metadata": {"mode": "auto"}, "api_base": "http://elsewhere",
}
APIS = [("Chat completions", chat, CHAT), ("Responses", responses, RESPONSES),
        ("Messages", messages, MESSAGES), ("Ollama `/api/chat`", ollama, OLLAMA)]


# Recordings, by models that are made for them; other kinds of provider have no such API.
SOUND_APIS = [("Transcriptions", transcriptions, TRANSCRIPTIONS, "whisper-c"), ("Speech", speech, SPEECH, "tts-c")]


class Upstream(kit.Stub):
    def __init__(self, folder, role, kind, *models):
        key = ["--key", KEY] if role == "provider" else []
        model = models[0]
        kit.Process.__init__(self, folder, [
            kit.LOADTEST, "stub", role, "--kind", kind, "--context", "65536", *key,
            *(word for name in models for word in ("--model", name))])
        found, _ = kit.until("stub listening", lambda: re.search(r"^listening (http://\S+)$", self.text(), re.M))
        self.url, self.model = found.group(1), model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    if not (kit.SHOAL and kit.LOADTEST):
        pytest.skip("shoal or shoal-loadtest is missing: set SHOAL_BIN and SHOAL_LOADTEST_BIN")
    folder = tmp_path_factory.mktemp("conformance")
    (folder / "key").write_text(KEY)
    columns, config, devices = {}, ["version = 1"], []
    ears = {"OpenAI-compatible": ("", Upstream(folder / "ears", "device", "openai", "whisper-c", "tts-c"))}
    devices += ["--device", ears["OpenAI-compatible"][1].url]
    for title, kind, path in (("OpenAI", "openai", "/v1"), ("Azure", "azure", "")):
        name = f"s{kind}"
        ears[title] = (f"{name}/", Upstream(folder / name, "provider", kind, "whisper-c", "tts-c"))
        config += ["[[providers]]", f'name = "{name}"', f'kind = "{kind}"', f'key_file = "{folder}/key"',
                   f'base_url = "{ears[title][1].url}{path}"', 'models = ["whisper-c", "tts-c"]']
        for model, measure in (("whisper-c", "minute"), ("tts-c", "million_chars")):
            config += ["[[prices]]", f'provider = "{name}"', f'model = "{model}"', "input = 0.0", "output = 0.0",
                       f"{measure} = 0.01"]
    for title, kind in DEVICES.items():
        model = "m-" + kind.replace(".", "")
        columns[title] = (model, Upstream(folder / model, "device", kind, model))
        devices += ["--device", columns[title][1].url]
    for title, kind in PROVIDERS.items():
        model = "m-" + kind
        stub = Upstream(folder / model, "provider", kind, model)
        columns[title] = (f"x{kind}/{model}", stub)
        base = stub.url + ("/v1" if kind == "openai" else "")
        config += ["[[providers]]", f'name = "x{kind}"', f'kind = "{kind}"', f'base_url = "{base}"',
                   f'key_file = "{folder}/key"', f'models = ["{model}"]',
                   "[[prices]]", f'provider = "x{kind}"', f'model = "{model}"', "input = 1.0", "output = 2.0"]
    (folder / "shoal.toml").write_text("\n".join(config) + "\n")
    node = kit.Node(folder / "node", "n1", ["up", "--config", folder / "shoal.toml"], more=devices)
    node.ready()
    kit.until("all models are listed", lambda: {model for model, _ in columns.values()} <= node.models())
    kit.until("models for recordings are listed", lambda: {"whisper-c", "sopenai/tts-c"} <= node.models())
    yield node, columns, ears
    for process in [node, *(stub for _, stub in [*columns.values(), *ears.values()])]:
        process.stop()


class Asker:
    """Asks one upstream through one API; tells what reached it."""

    def __init__(self, node, model, stub, form):
        self.node, self.model, self.stub, self.form, self.count = node, model, stub, form, 0

    def ask(self, field=None, value=None):
        self.count += 1
        # Each prompt is its own, or it would pass for a question asked again.
        prompt = f"{self.form.__name__} {self.model} {self.count} {field}: name a river. [[stub n=3]]"
        path, body = self.form(field, value, prompt)
        before = self.stub.log()["counts"]["requests"]
        if path.endswith("transcriptions"):
            answer = httpx.post(self.node.url + path, headers=self.node.auth(), timeout=kit.PATIENCE_S,
                                data={"model": self.model, **body}, files={"file": ("a.wav", b"RIFF", "audio/wav")})
        else:
            answer = self.node.post(path, {"model": self.model, **body})
        log = self.stub.log()
        arrived = log["counts"]["requests"] > before
        return answer, set(log["requests"][-1]["fields"]) if arrived else set()

    def verdict(self, field, value, plain):
        answer, fields = self.ask(field, value)
        name = field.rsplit(".", 1)[-1]
        if answer.status_code >= 400:
            error = answer.json()
            error = error["error"] if isinstance(error.get("error"), dict) else error
            return f"{answer.status_code} `{error.get('code')}`"
        # A container that only holds what is named beside it says nothing of its own.
        new = sorted(one for one in fields - plain if not any(other.startswith(one + ".") for other in fields))
        if any(one in (name, field) for one in new):
            return "as it is"
        if new:
            return ", ".join(f"`{one}`" for one in new)
        return "left out, said" if answer.headers.get("x-shoal-warnings") else "—"


def table(node, columns, ears):
    lines = []
    sound = [(title, form, fields, {name: (prefix + model, stub) for name, (prefix, stub) in ears.items()})
             for title, form, fields, model in SOUND_APIS]
    for title, form, fields, columns in [*((*api, columns) for api in APIS), *sound]:
        lines += [f"### {title}", "", "| field | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        askers = [Asker(node, model, stub, form) for model, stub in columns.values()]
        plain = []
        for asker in askers:
            answer, seen = asker.ask()
            assert answer.status_code == 200, f"{title}, {asker.model}: {answer.text}"
            plain.append(seen)
        for field, value in fields.items():
            verdicts = [asker.verdict(field, value, seen) for asker, seen in zip(askers, plain)]
            lines.append(f"| `{field}` | " + " | ".join(verdicts) + " |")
        lines.append("")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_what_happens(world):
    made = table(*world)
    page = DOCS.read_text()
    head, rest = page.split(BEGIN)
    written, tail = rest.split(END)
    if os.environ.get("SHOAL_WRITE_DOCS"):
        DOCS.write_text(f"{head}{BEGIN}\n\n{made}\n{END}{tail}")
        return
    assert made.strip() == written.strip(), "write it anew with SHOAL_WRITE_DOCS=1 if this is meant"


def test_every_api_tells_an_unknown_model_in_its_own_shape(world):
    node, _, _ = world
    for path, body, read in [
        ("/v1/chat/completions", {"messages": text("x")}, lambda e: e["error"]["code"]),
        ("/v1/responses", {"input": "x"}, lambda e: e["error"]["code"]),
        ("/v1/messages", {"messages": text("x"), "max_tokens": 5}, lambda e: e["error"]["type"]),
        ("/api/chat", {"messages": text("x")}, lambda e: e["error"]),
        ("/v1/audio/speech", {"input": "x", "voice": "alloy"}, lambda e: e["error"]["code"]),
    ]:
        answer = node.post(path, {"model": "nobody-has-it", **body})
        assert answer.status_code == 404, path
        assert read(answer.json()), path
