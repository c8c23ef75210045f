"""The provider stubs against the vendors' own clients: what satisfies those is a fair stand-in."""

import anthropic
import ollama
import openai
import pytest
from google import genai
from google.genai import errors, types

import kit

QUESTION = "Name a colour. [[stub n=6]]"
ASKED = [{"role": "user", "content": QUESTION}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.fixture(scope="module")
def stub(request, tmp_path_factory):
    if not kit.LOADTEST:
        pytest.skip("shoal-loadtest is missing: set SHOAL_LOADTEST_BIN")
    started = {}

    def of(kind):
        if kind not in started:
            process = kit.Process(tmp_path_factory.mktemp(kind), [
                kit.LOADTEST, "stub", "provider", "--kind", kind, "--model", "m", "--key", "k"])
            found, _ = kit.until("stub listening", lambda: kit.re.search(
                r"^listening (http://\S+)$", process.text(), kit.re.M))
            started[kind] = (process, found.group(1))
        return started[kind][1]
    yield of
    for process, _ in started.values():
        process.stop()


def openai_like(stub, form, key="k"):
    """OpenAI's client at OpenAI, and at both of Azure's addresses."""
    if form == "openai":
        return openai.OpenAI(base_url=stub("openai") + "/v1", api_key=key, max_retries=0)
    if form == "azure-v1":
        # The newer addresses take the ordinary client; the key then travels in Azure's header.
        return openai.OpenAI(base_url=stub("azure") + "/openai/v1", api_key="unused", max_retries=0,
                             default_headers={"api-key": key})
    return openai.AzureOpenAI(azure_endpoint=stub("azure"), api_key=key, api_version="2024-10-21", max_retries=0)


def google(url, key="k"):
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url, api_version="v1beta"))


def claude(url, key="k"):
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)


@pytest.mark.parametrize("form", ["openai", "azure", "azure-v1"])
class TestOpenAiAndAzure:
    def test_an_answer_and_a_stream(self, stub, form):
        client = openai_like(stub, form)
        answer = client.chat.completions.create(model="m", messages=ASKED)
        assert answer.usage.completion_tokens == 6 and answer.choices[0].finish_reason == "stop"
        chunks = list(client.chat.completions.create(model="m", messages=ASKED, stream=True))
        # Azure's filter reports first, in a chunk without choices.
        assert (not chunks[0].choices) == form.startswith("azure")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert len(text.split()) == 6

    def test_a_tool_call(self, stub, form):
        answer = openai_like(stub, form).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Weather?"}], tool_choice="required",
            tools=[{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}])
        assert answer.choices[0].message.tool_calls[0].function.name == "weather"

    def test_errors_have_their_classes(self, stub, form):
        with pytest.raises(openai.AuthenticationError):
            openai_like(stub, form, "wrong").chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.RateLimitError) as throttled:
            openai_like(stub, form).chat.completions.create(
                model="m", messages=[{"role": "user", "content": "[[stub err=429 retry_after=3]]"}])
        assert throttled.value.response.headers["retry-after"] == "3"


class TestResponses:
    def test_an_answer_a_stream_and_a_call(self, stub):
        client = openai_like(stub, "openai")
        answer = client.responses.create(model="m", input=QUESTION)
        assert len(answer.output_text.split()) == 6 and answer.status == "completed"
        assert answer.usage.output_tokens == 6
        with client.responses.stream(model="m", input=QUESTION) as stream:
            words = [event.delta for event in stream if event.type == "response.output_text.delta"]
            assert len(words) == 6 and stream.get_final_response().status == "completed"
        called = client.responses.create(
            model="m", input="Weather?", tool_choice="required",
            tools=[{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}])
        assert (called.output[0].type, called.output[0].name) == ("function_call", "weather")


class TestAnthropic:
    def test_an_answer_and_a_stream(self, stub):
        client = claude(stub("anthropic"))
        answer = client.messages.create(model="m", max_tokens=50, messages=ASKED, system="Be brief.")
        assert len(answer.content[0].text.split()) == 6
        assert (answer.stop_reason, answer.usage.output_tokens) == ("end_turn", 6)
        cut = client.messages.create(model="m", max_tokens=2, messages=ASKED)
        assert cut.stop_reason == "max_tokens"
        with client.messages.stream(model="m", max_tokens=50, messages=ASKED) as stream:
            assert len("".join(stream.text_stream).split()) == 6
            whole = stream.get_final_message()
        assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 6)

    def test_a_tool_call_and_its_result(self, stub):
        client = claude(stub("anthropic"))
        tools = [{"name": "weather", "input_schema": SCHEMA}]
        asked = [{"role": "user", "content": "Weather?"}]
        for stream in (False, True):
            if stream:
                with client.messages.stream(model="m", max_tokens=50, messages=asked, tools=tools,
                                            tool_choice={"type": "any"}) as running:
                    answer = running.get_final_message()
            else:
                answer = client.messages.create(model="m", max_tokens=50, messages=asked, tools=tools,
                                                tool_choice={"type": "any"})
            call = answer.content[0]
            assert (call.name, call.input, answer.stop_reason) == ("weather", {"city": "stub"}, "tool_use")
        turns = [*asked, {"role": "assistant", "content": answer.content},
                 {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]}]
        assert client.messages.create(model="m", max_tokens=50, messages=turns, tools=tools).stop_reason == "end_turn"
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="m", max_tokens=50, messages=turns[:2] + asked, tools=tools)

    def test_errors_have_their_classes(self, stub):
        url = stub("anthropic")
        with pytest.raises(anthropic.AuthenticationError):
            claude(url, "wrong").messages.create(model="m", max_tokens=9, messages=ASKED)
        with pytest.raises(anthropic.RateLimitError) as throttled:
            claude(url).messages.create(model="m", max_tokens=9, messages=[
                {"role": "user", "content": "[[stub err=429 retry_after=3]]"}])
        assert throttled.value.response.headers["retry-after"] == "3"
        with pytest.raises(anthropic.APIStatusError), claude(url).messages.stream(
                model="m", max_tokens=90, messages=[{"role": "user", "content": "[[stub inband=2 n=9]]"}]) as stream:
            stream.get_final_message()


class TestGemini:
    def test_an_answer_and_a_stream(self, stub):
        client = google(stub("gemini"))
        answer = client.models.generate_content(model="m", contents=QUESTION)
        assert len(answer.text.split()) == 6
        assert answer.usage_metadata.candidates_token_count == 6
        assert answer.candidates[0].finish_reason == types.FinishReason.STOP
        chunks = list(client.models.generate_content_stream(model="m", contents=QUESTION))
        assert len("".join(chunk.text or "" for chunk in chunks).split()) == 6
        assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP

    def test_a_tool_call(self, stub):
        function = types.FunctionDeclaration(name="weather", parameters_json_schema=SCHEMA)
        config = types.GenerateContentConfig(
            system_instruction="Be brief.", max_output_tokens=20, tools=[types.Tool(function_declarations=[function])],
            tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY")),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True))
        client = google(stub("gemini"))
        answer = client.models.generate_content(model="m", contents="Weather?", config=config)
        assert answer.function_calls[0].name == "weather" and answer.function_calls[0].args == {"city": "stub"}

    def test_errors_have_their_classes(self, stub):
        # Held by name: the vendor's client closes its connections when it is collected.
        stranger, client = google(stub("gemini"), "wrong"), google(stub("gemini"))
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
