"""Conversations as transformers writes them by chat templates in the manner of published ones: `chat_templates.json`."""

import json

from common import MODELS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import TokenizersBackend

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_SYSTEM = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one tool call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""
GENERATION = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
THINKING = """{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.seen and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.seen = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set reasoning = '' %}
    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
        {%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.index0 > ns.last and (loop.last or reasoning) %}
        {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
FEATURES = """{% macro head(role) %}<{{ role|upper }}>{% endmacro %}
{% for message in messages if message.role != 'tool' %}
  {% if message.content is none or message.content is undefined %}
  {% continue %}
  {% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
{{ head(message.role) }} {{ loop.index }}/{{ loop.length }} {{ message.content|replace('a', 'A') }} {{ true }} {{ none }} {{ 3 // 2 }} {{ 7 % 4 }} {{ 1 / 2 }}
{% for key, value in message.items() %}{{ key }}={{ value|length }};{% endfor %}

{{ {'b': [1, 2.5, none, true], 'a': 'é"<&>'}|tojson }} {{ {'b': [1, {}], 'a': []}|tojson(indent=2) }} {{ message.get('name', 'nobody') }}
{% endfor %}
{{ messages|map(attribute='role')|join(', ') }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ 'x' if add_generation_prompt else 'y' }} {{ ' s '.strip() ~ 'T e'.lower().split(' ')[1] }}
{# a comment #}   
{{ "%s and %d" % ("one", 2) if false else (messages[-1]['content'] or '')[:5] }}{{ messages[0].content[-3:] }}
"""
TEMPLATES = {
    "chatml": CHATML,
    "chatml-system": CHATML_SYSTEM,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "zephyr": ZEPHYR,
    "mistral": MISTRAL,
    "generation": GENERATION,
    "thinking": THINKING,
    "features": FEATURES,
}


def message(role, content, **more):
    return {"role": role, "content": content} | more


CHATS = {
    "one": [message("user", "Hello there, <b>you</b> & \"they\"!")],
    "system": [message("system", "Be brief.\n"), message("user", "  What is 1 + 1?  ")],
    "turns": [
        message("user", "Hi"),
        message("assistant", "Hello! "),
        message("user", "And café\nagain?"),
        message("assistant", "Sure, 中文."),
    ],
    "all": [
        message("system", "Be kind"),
        message("user", "a"),
        message("assistant", "b", name="burn"),
        message("user", "c"),
        message("assistant", "<think>\nhm\n</think>\n\nd"),
    ],
    "reasoning": [message("user", "q"), message("assistant", "a", thinking="because", tool_calls=None)],
    "tools": [
        message("user", "weather?"),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "get", "arguments": {"place": "Köln", "n": [1, 2]}}}]},
        message("tool", "{\"t\": 3}"),
        message("assistant", "3 degrees"),
    ],
}


def main():
    # A character is a token, so that tokens are places in the text.
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = TokenizersBackend(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    cases = []
    for name, template in TEMPLATES.items():
        for chat, messages in CHATS.items():
            for answer in [False, True]:
                case = {"template": name, "chat": chat, "answer": answer}
                try:
                    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=answer, tokenize=False)
                except Exception as error:  # the template's own refusal
                    case["error"] = str(error)
                    cases.append(case)
                    continue
                case["text"] = text
                if "endgeneration" in template and not answer:
                    from transformers.utils.chat_template_utils import render_jinja_template

                    _, spans = render_jinja_template([messages], chat_template=template, return_assistant_tokens_mask=True)
                    case["turns"] = [text[start:end] for start, end in spans[0]]
                cases.append(case)
    golden = {"tokens": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "templates": TEMPLATES, "chats": CHATS}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    parts = [f'"{key}":{json.dumps(value, ensure_ascii=False)}' for key, value in golden.items()] + [f'"cases":[\n{lines}\n]']
    (MODELS / "chat_templates.json").write_text("{" + ",\n".join(parts) + "}\n")
    print(len(cases), "cases,", sum("error" in case for case in cases), "refused")


if __name__ == "__main__":
    main()
