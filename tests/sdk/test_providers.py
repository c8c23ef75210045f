"""The provider stubs against the vendors' own clients: what satisfies those is a fair stand-in."""

import ollama
import openai
import pytest
from google import genai
from google.genai import errors, types

import kit

QUESTION = "Name a colour. [[stub n=6]]"


@pytest.fixture(scope="module", params=["openai", "gemini"])
def provider(request, tmp_path_factory):
    if not kit.LOADTEST:
        pytest.skip("shoal-loadtest is missing: set SHOAL_LOADTEST_BIN")
    stub = kit.Process(tmp_path_factory.mktemp("provider"), [
        kit.LOADTEST, "stub", "provider", "--kind", request.param, "--model", "m", "--key", "k"])
    found, _ = kit.until("stub listening", lambda: kit.re.search(r"^listening (http://\S+)$", stub.text(), kit.re.M))
    yield request.param, found.group(1)
    stub.stop()


def google(url, key="k"):
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url))


def test_an_answer_and_a_stream(provider):
    kind, url = provider
    if kind == "openai":
        client = openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)
        messages = [{"role": "user", "content": QUESTION}]
        answer = client.chat.completions.create(model="m", messages=messages)
        assert answer.usage.completion_tokens == 6 and answer.choices[0].finish_reason == "stop"
        chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
        assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks).split()) == 6
        return
    client = google(url)
    answer = client.models.generate_content(model="m", contents=QUESTION)
    assert len(answer.text.split()) == 6
    assert answer.usage_metadata.candidates_token_count == 6
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    chunks = list(client.models.generate_content_stream(model="m", contents=QUESTION))
    assert len("".join(chunk.text or "" for chunk in chunks).split()) == 6
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP


def test_a_tool_call(provider):
    kind, url = provider
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    if kind == "openai":
        client = openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)
        answer = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Weather?"}], tool_choice="required",
            tools=[{"type": "function", "function": {"name": "weather", "parameters": schema}}])
        assert answer.choices[0].message.tool_calls[0].function.name == "weather"
        return
    function = types.FunctionDeclaration(name="weather", parameters_json_schema=schema)
    config = types.GenerateContentConfig(
        system_instruction="Be brief.", max_output_tokens=20, tools=[types.Tool(function_declarations=[function])],
        tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY")),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True))
    client = google(url)
    answer = client.models.generate_content(model="m", contents="Weather?", config=config)
    assert answer.function_calls[0].name == "weather" and answer.function_calls[0].args == {"city": "stub"}


def test_errors_have_their_classes(provider):
    kind, url = provider
    if kind == "openai":
        client = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        return
    # Held by name: the vendor's client closes its connections when it is collected.
    stranger, client = google(url, "wrong"), google(url)
    with pytest.raises(errors.ClientError) as refused:
        stranger.models.generate_content(model="m", contents="x")
    assert refused.value.code == 400 and "API key not valid" in refused.value.message
    with pytest.raises(errors.ClientError) as throttled:
        client.models.generate_content(model="m", contents="[[stub err=429 retry_after=3]]")
    assert (throttled.value.code, throttled.value.status) == (429, "RESOURCE_EXHAUSTED")


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A stub that is Ollama, and its maker's own client."""
    if not kit.LOADTEST:
        pytest.skip("shoal-loadtest is missing: set SHOAL_LOADTEST_BIN")
    stub = kit.Process(tmp_path_factory.mktemp("ollama"), [
        kit.LOADTEST, "stub", "device", "--kind", "ollama", "--model", "m"])
    found, _ = kit.until("stub listening", lambda: kit.re.search(r"^listening (http://\S+)$", stub.text(), kit.re.M))
    yield ollama.Client(host=found.group(1))
    stub.stop()


def test_ollamas_own_client_is_content_with_its_stub(native):
    messages = [{"role": "user", "content": "Name a bird. [[stub n=6]]"}]
    answer = native.chat(model="m", messages=messages, options={"num_predict": 4})
    assert len(answer.message.content.split()) == 4 and answer.done_reason == "length" and answer.eval_count == 4
    parts = list(native.chat(model="m", messages=messages, stream=True))
    assert len("".join(part.message.content for part in parts).split()) == 6 and parts[-1].done
    weather = {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}}}}
    call = native.chat(model="m", messages=[{"role": "user", "content": "Rain? [[stub tool=1]]"}], tools=[weather])
    assert call.message.tool_calls[0].function.arguments == {"city": "stub"}
    with pytest.raises(ollama.ResponseError) as unknown:
        native.chat(model="none", messages=messages)
    assert unknown.value.status_code == 404
    assert native.list().models[0].model == "m" and native.ps().models[0].model == "m"
