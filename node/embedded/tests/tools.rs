//! Tools, calls and results in a prompt, word for word as each family was trained; the way back, from an answer to calls,
//! is tested beside the readers.

mod common;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Entry;
use common::Tiny;
use serde_json::{Value, json};
use shoal_embedded::{ChatMessage, Engine, LoadOptions};

/// Writes what the public description of FunctionGemma's format shows; the model's own template is under its own licence.
const FUNCTION_GEMMA: &str = r#"
{%- macro value(it) -%}
  {%- if it is string -%}<escape>{{ it }}<escape>
  {%- elif it is boolean -%}{{ 'true' if it else 'false' }}
  {%- elif it is mapping -%}{ {%- for k, v in it | dictsort -%}{{ k }}:{{ value(v) }}{% if not loop.last %},{% endif %}{%- endfor -%} }
  {%- elif it is iterable -%}[{%- for v in it -%}{{ value(v) }}{% if not loop.last %},{% endif %}{%- endfor -%}]
  {%- else -%}{{ it }}
  {%- endif -%}
{%- endmacro -%}
{%- macro parameter(it) -%}
  { {%- if it.description is defined -%}description:{{ value(it.description) }},{%- endif -%}
  {%- if it.enum is defined -%}enum:{{ value(it.enum) }},{%- endif -%}
  type:{{ value(it.type | upper) }}}
{%- endmacro -%}
{{ bos_token }}
{%- for message in messages -%}
  {%- if message.role == 'tool' -%}
    <start_function_response>response:{{ message.name }}{value:{{ value(message.content) }}}<end_function_response>
  {%- else -%}
    <start_of_turn>{{ 'model' if message.role == 'assistant' else 'developer' if message.role == 'system' else message.role }}{{ '\n' }}
    {{- message.content -}}
    {%- if loop.first and tools -%}
      {%- for tool in tools -%}
        {%- set f = tool.function -%}
        <start_function_declaration>declaration:{{ f.name }}{description:{{ value(f.description) }},parameters:{properties:{
        {%- for k, v in f.parameters.properties | dictsort -%}{{ k }}:{{ parameter(v) }}{% if not loop.last %},{% endif %}{%- endfor -%}
        },required:{{ value(f.parameters.required) }},type:{{ value(f.parameters.type | upper) }}}}<end_function_declaration>
      {%- endfor -%}
    {%- endif -%}
    {%- if message.tool_calls -%}
      {%- for call in message.tool_calls -%}
        <start_function_call>call:{{ call.function.name }}{{ value(call.function.arguments) }}<end_function_call>
      {%- endfor -%}
    {%- else -%}<end_of_turn>{{ '\n' }}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'tool' -%}<start_of_turn>model{{ '\n' }}{%- endif -%}
"#;

/// The part of Qwen 2.5's template (Apache-2.0) that shows tools and calls.
const QWEN: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {{- "You may call one or more functions to assist with the user query.\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"#;

fn engine(template: &str, control: &[&'static str], pieces: bool) -> Engine {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    let tiny = Tiny { context: 8_192, pieces, control: control.to_vec(), ..Tiny::new("llama") };
    let mut metadata = tiny.metadata();
    metadata.push(("tokenizer.chat_template".to_owned(), Entry::String(template.to_owned())));
    common::write(&path, &metadata, &tiny.weights(7), GgmlDType::F32);
    Engine::load(&path, &LoadOptions::default()).expect("a loaded model")
}

fn function_gemma() -> Engine {
    engine(
        FUNCTION_GEMMA,
        &["<start_function_call>", "<end_function_call>", "<escape>", "<start_function_response>"],
        true,
    )
}

fn weather() -> Value {
    json!([{ "type": "function", "function": {
        "name": "get_current_weather",
        "description": "Gets the current weather in a given location.",
        "parameters": {
            "type": "object",
            "properties": {
                "location": { "type": "string",
                    "description": "The city and state, e.g. \"San Francisco, CA\" or \"Tokyo, JP\"" },
                "unit": { "type": "string", "enum": ["celsius", "fahrenheit"],
                    "description": "The unit to return the temperature in." }
            },
            "required": ["location"]
        }
    } }])
}

fn called(name: &str, arguments: &str) -> ChatMessage {
    let mut message = ChatMessage::new("assistant", "");
    let call =
        json!([{ "id": "call_1", "type": "function", "function": { "name": name, "arguments": arguments } }]);
    message.tool_calls = Some(call);
    message
}

fn result(content: &str) -> ChatMessage {
    let mut message = ChatMessage::new("tool", content);
    message.tool_call_id = Some("call_1".to_owned());
    message
}

#[test]
fn function_gemma_is_shown_tools_calls_and_results_as_it_was_trained() {
    let conversation = [
        ChatMessage::new("user", "Hey, what's the weather in Tokyo right now?"),
        called("get_current_weather", r#"{"location": "Tokyo, Japan"}"#),
        result("sunny"),
    ];
    let prompt = function_gemma().render_chat(&conversation, Some(&weather())).expect("a prompt");
    // The declaration, the question and the call are those of the public description of the format.
    let expected = concat!(
        "<s><start_of_turn>developer\n",
        "You are a model that can do function calling with the following functions",
        "<start_function_declaration>declaration:get_current_weather{",
        "description:<escape>Gets the current weather in a given location.<escape>,",
        "parameters:{properties:{",
        "location:{description:<escape>The city and state, e.g. \"San Francisco, CA\" or \"Tokyo, JP\"<escape>,",
        "type:<escape>STRING<escape>},",
        "unit:{description:<escape>The unit to return the temperature in.<escape>,",
        "enum:[<escape>celsius<escape>,<escape>fahrenheit<escape>],type:<escape>STRING<escape>}},",
        "required:[<escape>location<escape>],type:<escape>OBJECT<escape>}}",
        "<end_function_declaration><end_of_turn>\n",
        "<start_of_turn>user\nHey, what's the weather in Tokyo right now?<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<start_function_call>call:get_current_weather{location:<escape>Tokyo, Japan<escape>}<end_function_call>",
        "<start_function_response>response:get_current_weather{value:<escape>sunny<escape>}<end_function_response>",
    );
    assert_eq!(prompt, expected);
    let own = [ChatMessage::new("developer", "Mine."), ChatMessage::new("user", "Hi")];
    let prompt = function_gemma().render_chat(&own, Some(&weather())).expect("a prompt");
    assert!(prompt.starts_with("<s><start_of_turn>developer\nMine.<start_function_declaration>"), "{prompt}");
    let none = function_gemma().render_chat(&own[1..], None).expect("a prompt");
    assert_eq!(none, "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n");
}

#[test]
fn qwen_is_shown_tools_calls_and_results_as_it_was_trained() {
    let conversation =
        [ChatMessage::new("user", "Oslo?"), called("f", r#"{"city":"Oslo","days":[1,2]}"#), result("cold")];
    let tools =
        json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }]);
    let prompt = engine(QWEN, &[], false).render_chat(&conversation, Some(&tools)).expect("a prompt");
    let expected = concat!(
        "<|im_start|>system\nYou may call one or more functions to assist with the user query.\n\n<tools>\n",
        "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\"}}}\n</tools>\n\n",
        "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n",
        "<|im_start|>user\nOslo?<|im_end|>\n",
        "<|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\", \"days\": [1, 2]}}\n</tool_call><|im_end|>\n",
        "<|im_start|>user\n<tool_response>\ncold\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    );
    assert_eq!(prompt, expected);
}
