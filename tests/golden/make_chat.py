"""Makes tests/golden/text/chats.json: templates of our own that use the constructs of the families' real ones, and what
transformers' apply_chat_template makes of them: the text or a refusal, and which tokens the assistant said.

Run with transformers 5.23:  python tests/golden/make_chat.py
"""

import datetime
import json
from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent / "text"
SPECIAL = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
NOW = datetime.datetime(2024, 7, 26, 13, 20, 5)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def user(content, **more):
    return dict(role="user", content=content, **more)


def assistant(content, **more):
    return dict(role="assistant", content=content, **more)


def system(content):
    return dict(role="system", content=content)


def call(name, arguments, **more):
    return dict(type="function", function=dict(name=name, arguments=arguments), **more)


WEATHER = dict(type="function", function=dict(
    name="weather", description="The weather of a place, in °C & more <now>.",
    parameters=dict(type="object", properties=dict(
        place=dict(type="string", description="A town's \"name\""), days=dict(type="integer", minimum=1, default=None),
        unit=dict(type="string", enum=["C", "F"])), required=["place"], additionalProperties=False), strict=True))
CLOCK = dict(type="function", function=dict(name="clock", description="", parameters=dict(type="object", properties={})))

PLAIN = [user("  Hello <b>\nworld ")]
PAIR = [user("Why?"), assistant(" Because\n 'so' ")]
LONG = [system("Be \"brief\"."), user("größe 日本 stop"), assistant("ok"), user("more {{ x }} {% y %}")]
WRONG = [assistant("first"), user("second")]
SYSTEM_LATE = [user("a"), system("b"), user("c")]
TOOLS = [system("Use tools."), user("Weather in Köln?"),
         assistant("", tool_calls=[call("weather", dict(place="Köln", days=2, exact=True, unit=None))]),
         dict(role="tool", name="weather", content="{\"sky\": \"grey\"}", tool_call_id="abcdefghi"),
         dict(role="tool", content="second answer", tool_call_id="123456789"), assistant("It is grey."), user("And the time?")]
CALLS_ONLY = [user("x"), dict(role="assistant", content=None, tool_calls=[
    call("clock", {}, id="abcdefghi"), call("weather", dict(place="a\"b", n=[1, 2.5, -3e20, 1e-7], deep=dict(k=False)), id="123456789")])]
ARGUMENTS_AS_TEXT = [user("x"), assistant("said", tool_calls=[call("weather", "{\"place\": \"Köln\"}")])]
PARTS = [user([dict(type="text", text="one"), dict(type="image"), dict(type="text", text=" two ")]),
         assistant([dict(type="text", text="three")]), user([])]
THINKING = [user("1+1?"), assistant("<think>\nhm\n\nwell\n</think>\n\n2"), user("2+2?"), assistant("4", reasoning_content="two and two\n"),
            user("sure?")]

CONVERSATIONS = dict(plain=PLAIN, pair=PAIR, long=LONG, wrong=WRONG, late=SYSTEM_LATE, tools=TOOLS, calls=CALLS_ONLY,
                     text_arguments=ARGUMENTS_AS_TEXT, parts=PARTS, thinking=THINKING)

# Templates of whole families' manners, run over every conversation.
FAMILIES = {
    "chatml": """{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set lead = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set lead = false %}{% endif %}{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}{% endif %}\
{% if loop.index0 == 0 and lead != false %}{% set content = '[SYS]\\n' + lead + '\\n[/SYS]\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama3": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|head|>system<|end_head|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: tools\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "Functions:\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|turn|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content'] | trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("No first user message to put the tools in") }}
    {%- endif %}
    {{- '<|head|>user<|end_head|>\\n\\nFunctions:\\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|turn|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '<|end_head|>\\n\\n'+ message['content'] | trim + '<|turn|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("Only one call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|head|>assistant<|end_head|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|turn|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|head|>ipython<|end_head|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|turn|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|end_head|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant/user/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Call ids should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[RESULTS] {"content": ' + content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Result ids should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
""",
    "qwen25": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You help.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\n<call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}\\n</call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<answer>\\n' }}
        {{- message.content }}
        {{- '\\n</answer>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "qwen3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<answer>') and message.content.endswith('</answer>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<answer>\\n' + content + '\\n</answer>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "gemma2": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}""",
    "gemma3": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    "generation": """{% for message in messages %}
{%- if message.role == 'assistant' %}
<|assistant|>
{% generation %}
{{ message.content }}{{ eos_token }}
{% endgeneration %}
{%- else %}
<|{{ message.role }}|>
{{ message.content }}
{% endif %}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}""",
}

# One construct each; run over one conversation.
CONSTRUCTS = {
    # loops
    "previtem": "{% for m in messages %}{% if loop.previtem is defined %}{{ loop.previtem.role }}>{% endif %}{{ m.role }}{% if loop.nextitem is defined %}<{{ loop.nextitem.role }}{% endif %};{% endfor %}",
    "loop fields": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.cycle('a', 'b') }};{% endfor %}",
    "loop changed": "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}",
    "break and continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% if 'stop' in m.content %}{% break %}{% endif %}{% endfor %}",
    "for if else": "{% for m in messages if m.role == 'nobody' %}x{% else %}none{% endfor %}{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }} {% endfor %}",
    "recursive loop": "{% for x in [[1, [2]], 3] recursive %}{% if x is sequence %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
    "unpacking": "{% for a, b in [(1, 'x'), [2, 'y']] %}{{ a }}{{ b }}{% endfor %}{% for k, v in {'a': 1, 'b': none}.items() %}{{ k }}={{ v }},{% endfor %}",
    "scope of set": "{% set x = 1 %}{% for m in messages %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}",
    "range": "{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(4, 0, -2) %}{{ i }}{% endfor %}{{ range(3) | list }}",
    "loop over a mapping": "{% for k in messages[0] %}{{ k }} {% endfor %}{{ messages[0] | length }}{{ messages[0].keys() | list }}{{ messages[0].values() | list }}",
    "loop over a text": "{% for c in 'aß🙂' %}{{ c }}.{% endfor %}{{ 'aß🙂' | length }}{{ 'aß🙂' | list }}{{ 'aß🙂'[1:] }}{{ 'aß🙂'[-1] }}",
    # slices
    "slices": "{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ messages[-1].role }}{{ messages[:-1] | length }}{{ messages[-2:] | length }}{{ 'abcdef'[::2] }}{{ 'abcdef'[::-1] }}{{ [1, 2, 3, 4][1:3] }}{{ 'abc'[5:] }}{{ [1,2,3][-5:2] }}{{ (1, 2, 3)[1:] }}",
    "out of range": "[{{ messages[99] }}][{{ messages[99] is defined }}]",
    # values as Python prints them
    "literals": "{{ true }} {{ false }} {{ none }} {{ True }} {{ None }} {{ 1 }} {{ 1.0 }} {{ -2.50 }} {{ 1e3 }} {{ 'a' }} {{ [] }} {{ {} }} {{ () }}",
    "lists": "{{ [1, 'a', none, true, 2.5, ['x'], {'k': 'v'}, (1,), (1, 2)] }}",
    "quotes": "{{ [\"it's\", 'say \"x\"', 'both \\' and \"', 'back\\\\slash', 'line\\n', 'tab\\t', 'ü', '\\u200b', '\\x07', '🙂'] }}",
    "mapping": "{{ {'a': 1, 2: 'b', 'c': {'d': [none]}, true: 1.5} }}",
    "messages": "{{ messages }}",
    "message": "{{ messages[0] }}{{ messages[0] | string | length }}",
    "floats": "{{ 0.1 + 0.2 }} {{ 1e16 }} {{ 1e15 }} {{ 123456789.123 }} {{ 1e-5 }} {{ 0.0001 }} {{ 1.5e300 }} {{ 2.0 }} {{ 100000000000000000000.0 }} {{ [1e16, 1e-7] }}",
    "numbers": "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 1 + true }} {{ 3 * 'ab' }} {{ 'ab' * 2 }} {{ [1] + [2] }} {{ 10 - 2 - 3 }} {{ 2 ** 3 ** 2 }}",
    "big numbers": "{{ 9223372036854775807 + 1 }} {{ 2 ** 70 }} {{ 123456789012345678901234567890 }}",
    "number filters": "{{ 2.567 | round(2) }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 2.4 | round(0, 'ceil') }} {{ '12' | int }} {{ 3.9 | int }} {{ '2.5' | float }} {{ -3 | abs }} {{ 5 | float }} {{ 'x' | int(7) }}",
    "int of no number": "{{ 'x' | int }}",
    "formats": "{{ '%s is %d and %.2f' | format('a', 3, 2.345) }} {{ '%05d|%-5s|%x' | format(42, 'ab', 255) }} {{ '{} {1} {name}' | string }} {{ 'a{}b{}'.format(1, 'c') }} {{ '{0}-{name:>4}'.format('x', name='y') }} {{ '{:.1f}'.format(2.25) }}",
    "percent of several": "{{ '%s-%s' % ('a', 2) }}",
    "undefined": "[{{ nothing }}][{{ messages[0].nothing }}][{{ nothing is defined }}][{{ nothing | default('d') }}][{{ '' | default('d') }}][{{ '' | default('d', true) }}][{{ none | default('d') }}][{{ nothing or 'o' }}][{{ nothing == none }}][{{ nothing ~ 'x' }}][{{ nothing | length }}][{{ not nothing }}]",
    "undefined of undefined": "{{ nothing.more }}",
    "undefined plus": "{{ nothing + 'x' }}",
    "undefined looped": "{% for x in nothing %}x{% endfor %}ok{{ nothing | join(',') }}{{ nothing | list }}",
    "undefined called": "{{ nothing() }}",
    "undefined compared": "{{ nothing > 1 }}",
    "undefined in a list": "{{ [nothing] }}",
    "undefined to json": "{{ nothing | tojson }}",
    "undefined in": "{{ 'x' in nothing }}",
    "none plus": "{{ none + 'x' }}",
    "none in text": "{{ 'x' in none }}",
    "none trimmed": "[{{ none | trim }}][{{ 5 | trim }}][{{ true | upper }}][{{ [1] | trim }}]",
    "number plus text": "{{ 1 + 'x' }}",
    "text plus number": "{{ 'x' + 1 }}",
    "text plus list": "{{ 'x' + [1] }}",
    "list plus tuple": "{{ [1] + (2,) }}",
    "joined": "{{ 'a' ~ 1 ~ none ~ true ~ 2.0 ~ [1] ~ {'a': 'b'} }}",
    "comparisons": "{{ 1 == 1.0 }}{{ '1' == 1 }}{{ true == 1 }}{{ 'a' < 'b' }}{{ [1, 2] == [1, 2] }}{{ [1,2] < [1,3] }}{{ none == false }}{{ {} == {} }}{{ (1,) == [1] }}{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 'ab' == 'a' ~ 'b' }}{{ not 1 == 2 }}",
    "mixed comparison": "{{ 1 < 'a' }}",
    "containment": "{{ 'a' in 'abc' }}{{ 'a' not in ['a'] }}{{ 'role' in messages[0] }}{{ 'x' in messages[0] }}{{ 2 in (1, 2) }}{{ '' in '' }}{{ none in [none] }}{{ 1 in [true] }}",
    "booleans": "{{ 'a' and 'b' }}{{ '' or 'c' }}{{ [] or none }}{{ not [] }}{{ 0 or 0.0 }}{{ 'x' if '' else 'y' }}{{ 'only' if false }}|{{ ('a' or 'b') and 'c' }}",
    "ternaries": "{{ 'a' if messages[0].role == 'user' else 'b' if true else 'c' }}{{ (1 if false) is defined }}",
    # tests
    "types": "{% for x in ['s', 1, 1.5, true, none, [1], {'a': 1}, (1,), range(2)] %}{{ x is string }},{{ x is number }},{{ x is integer }},{{ x is float }},{{ x is boolean }},{{ x is none }},{{ x is mapping }},{{ x is sequence }},{{ x is iterable }};\n{% endfor %}",
    "type of undefined": "{{ nothing is string }}{{ nothing is none }}{{ nothing is mapping }}{{ nothing is iterable }}{{ nothing is sequence }}{{ nothing is undefined }}{{ nothing is number }}",
    "other tests": "{{ 3 is odd }}{{ 4 is even }}{{ 9 is divisibleby 3 }}{{ 'a' is eq 'a' }}{{ 1 is in [1] }}{{ 'a' is lower }}{{ 'A' is upper }}{{ 2 is gt 1 }}{{ none is sameas none }}{{ true is true }}{{ 1 is true }}{{ false is false }}{{ 3 is ne 4 }}{{ 'x' is not string }}",
    "filters and tests that exist": "{{ 'tojson' is filter }}{{ 'nope' is filter }}{{ 'mapping' is test }}",
    # text methods
    "strip": "[{{ '  a b \\n'.strip() }}][{{ 'xxaxx'.strip('x') }}][{{ ' a '.lstrip() }}][{{ ' a '.rstrip() }}][{{ 'abc'.lstrip('ab') }}][{{ '\\u200b\\xa0a\\u3000'.strip() }}][{{ '\\x1ca\\x1f'.strip() }}][{{ '\\x1ca\\x85' | trim }}][{{ 'xax' | trim('x') }}]",
    "split": "{{ 'a,b,,c'.split(',') }}{{ ' a  b\\nc '.split() }}{{ 'a,b,c'.split(',', 1) }}{{ ''.split() }}{{ ''.split(',') }}{{ 'abc'.split('') if false else '' }}{{ 'a b c'.rsplit(' ', 1) }}{{ 'a<b>c'.partition('<') }}{{ 'a.b.c'.rpartition('.') }}",
    "split by keyword": "{{ 'a b c'.split(maxsplit=1) }}{{ 'a,b,c'.split(sep=',', maxsplit=1) }}",
    "splitlines": "{{ 'a\\nb\\r\\nc\\rd\\x0be\\u2028f\\n'.splitlines() }}{{ 'a\\n'.splitlines(true) }}",
    "case": "{{ 'aB cD'.upper() }}{{ 'aB'.lower() }}{{ 'hello wORLD'.title() }}{{ 'hELLO'.capitalize() }}{{ 'ß'.upper() }}{{ 'they\\'re bill\\'s' .title() }}{{ \"they're\" | title }}{{ 'x-ray ab_c' | title }}{{ 'hELLO wORLD' | capitalize }}",
    "swapcase": "{{ 'aB'.swapcase() }}",
    "casefold": "{{ 'ß'.casefold() }}",
    "replace": "{{ 'aaa'.replace('a', 'b') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ 'abc' | replace('b', '') }}{{ 'aaa' | replace('a', 'x', 1) }}{{ 'ab'.replace('', '-') }}",
    "searches": "{{ 'abcabc'.find('c') }}{{ 'abc'.find('z') }}{{ 'abcabc'.rfind('c') }}{{ 'aXbX'.count('X') }}{{ 'abc'.index('b') }}{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}{{ 'größe'.find('e') }}",
    "start of a search": "{{ 'abc'.startswith('b', 1) }}",
    "prefixes": "{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.py'.removesuffix('.py') }}{{ 'a'.ljust(3, '.') }}{{ 'a'.rjust(3) }}{{ 'a'.center(5, '*') }}{{ '7'.zfill(3) }}",
    "asks": "{{ '12'.isdigit() }}{{ '½'.isnumeric() }}{{ 'ab'.isalpha() }}{{ 'a1'.isalnum() }}{{ ' '.isspace() }}{{ 'Ab'.isupper() }}{{ 'ab'.islower() }}{{ '12'.isdecimal() }}",
    "digits of Unicode": "{{ '½'.isdigit() }}{{ '²'.isdigit() }}",
    "istitle": "{{ 'Ab Cd'.istitle() }}",
    "join": "{{ ', '.join(['a', 'b']) }}{{ ['a', 1, none] | join('-') }}{{ messages | map(attribute='role') | join('+') }}{{ messages | join('|', attribute='role') }}{{ 'abc' | join('.') }}",
    "join of numbers": "{{ ', '.join([1, 2]) }}",
    "unknown method": "{{ 'a'.nothing() }}",
    "encode": "{{ 'a'.encode() }}",
    # lists and mappings
    "list methods": "{{ [1, 2, 1].count(1) }}{{ [1, 2].index(2) }}{{ (1, 2).index(1) }}",
    "append": "{% set x = [] %}{% set _ = x.append(1) %}{{ x }}",
    "mapping methods": "{% set d = {'b': 1, 'a': 2} %}{{ d.get('b') }}{{ d.get('z') }}{{ d.get('z', 0) }}{{ d.items() | list }}{{ d.keys() | list }}{{ d.values() | list }}{{ d['a'] }}{{ d.a }}{{ d | dictsort }}{{ d | dictsort(by='value') }}{{ d | dictsort(reverse=true) }}{{ d | items | list }}{{ d | list }}{{ d | first }}",
    "views": "{{ {'a': 1}.items() }}{{ {'a': 1}.keys() }}{{ {'a': 1}.values() }}",
    "mapping update": "{% set d = {} %}{% set _ = d.update({'a': 1}) %}{{ d }}",
    "a key named as a method": "{{ {'items': 5}['items'] }}{{ {'items': 5, 'a': 1}.items() | list }}{{ {'get': 1}.get('get') }}",
    "attr and item": "{{ messages[0]['role'] }}{{ messages[0].role }}{{ messages[0] | attr('role') }}{{ messages.0.role }}{{ messages[0]['ro' ~ 'le'] }}",
    "dict": "{{ dict(a=1, b='x') }}{{ dict({'a': 1}, b=2) }}",
    "dict of pairs": "{{ dict([('k', 'v')]) }}",
    "filters of lists": "{{ [3, 1, 2] | sort }}{{ [3, 1] | sort(reverse=true) }}{{ ['b', 'A', 'c'] | sort }}{{ ['b', 'A'] | sort(case_sensitive=true) }}{{ [1, 1, 2] | unique | list }}{{ [1, 2] | first }}{{ [1, 2] | last }}{{ [] | first }}{{ [1, 2, 3] | sum }}{{ [1, 5, 2] | max }}{{ [1, 5] | min }}{{ [1, 2] | reverse | list }}{{ 'abc' | reverse }}{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2, 3] | slice(2) | list }}",
    "select": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | list }}{{ [1, 2, 3] | select('odd') | list }}{{ [0, 1, ''] | select | list }}{{ [1, 2] | reject('odd') | list }}{{ messages | selectattr('nothing') | list }}{{ messages | selectattr('nothing', 'defined') | list }}{{ [1, none] | reject('none') | list }}",
    "map": "{{ ['a', 'b'] | map('upper') | list }}{{ [' a '] | map('trim') | join }}{{ messages | map(attribute='nothing', default='d') | list }}{{ messages | map('length') | list }}{{ ['a'] | map('replace', 'a', 'b') | list }}",
    "groupby": "{% for role, group in messages | groupby('role') %}{{ role }}:{{ group | length }},{% endfor %}",
    # JSON
    "tojson": "{{ {'a': [1, 2.5, none, true, 'ü<&>\\'\"\\n'], 'b': {}, 'c': []} | tojson }}{{ 'x' | tojson }}{{ 1.0 | tojson }}{{ [1e16, 1e-7, 0.1, 1e22] | tojson }}{{ (1, 2) | tojson }}{{ '\\x7f\\u2028🙂' | tojson }}",
    "tojson with indent": "{{ {'a': [1, {'b': 'c'}], 'e': [], 'f': {}} | tojson(indent=2) }}{{ [1] | tojson(indent=0) }}{{ {'a': 1} | tojson(indent='\\t') }}{{ {'a': 1} | tojson(indent=none) }}",
    "tojson options": "{{ {'b': 'ü🙂', 'a': 1} | tojson(ensure_ascii=true) }}{{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true) }}{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}{{ {'a': [1]} | tojson(indent=1, separators=(',', ': ')) }}{{ 'ü' | tojson(true) }}",
    "tojson of keys": "{{ {1: 'a', none: 'b', true: 'c', 1.5: 'd'} | tojson }}",
    "tojson of a view": "{{ {'a': 1}.items() | tojson }}",
    "tojson of slices": "{{ messages[1:] | tojson }}{{ ([1] + [2]) | tojson }}{{ messages[::-1] | map(attribute='role') | list | tojson(indent=1) }}{{ [1, 2, 3][1:] }}",
    "tojson of a message": "{{ messages[0] | tojson }}{{ messages | tojson(indent=4) }}",
    # statements
    "namespace": "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.seen | join('+') }}{{ ns.nothing is defined }}{% set ns2 = namespace({'a': 1}) %}{{ ns2.a }}",
    "namespace of a private name": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns._x }}",
    "macros": "{% macro turn(role, text='none') %}<{{ role }}>{{ text }}{% if caller is defined %}c{% endif %}{% endmacro %}{{ turn('a') }}{{ turn('b', text='t') }}{{ turn(text='u', role='c') }}{% set x = turn('d') %}{{ x | upper }}",
    "macro with rest": "{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, k=3) }}",
    "macro that sees outside": "{% set x = 1 %}{% macro f() %}{{ x }}{{ messages | length }}{% endmacro %}{% set x = 2 %}{{ f() }}",
    "recursive macro": "{% macro f(v) %}{% if v is mapping %}{{ '{' }}{% for k, w in v | dictsort %}{{ k }}:{{ f(w) }}{{ ',' if not loop.last }}{% endfor %}{{ '}' }}{% elif v is string %}'{{ v }}'{% elif v is iterable %}[{% for w in v %}{{ f(w) }}{% endfor %}]{% else %}{{ v }}{% endif %}{% endmacro %}{{ f({'b': [1, 'x'], 'a': {'c': none}}) }}",
    "call block": "{% macro wrap(x) %}<{{ x }}>{{ caller() }}</{{ x }}>{% endmacro %}{% call wrap('p') %}in{% endcall %}",
    "call block with arguments": "{% macro each(xs) %}{% for x in xs %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(x) each([1, 2]) %}({{ x }}){% endcall %}",
    "set block": "{% set x %}  a{{ 1 }}\n{% endset %}[{{ x }}][{{ x | trim }}]{% set y | upper %}b{% endset %}{{ y }}",
    "set of several": "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d) = [3, 4] %}{{ c }}{{ d }}",
    "with": "{% with x = 1, y = 'z' %}{{ x }}{{ y }}{% endwith %}{{ x is defined }}",
    "filter block": "{% filter upper %}a{{ 'b' }}{% endfilter %}",
    "raw": "{% raw %}{{ x }} {% y %}{% endraw %}{# note #}z",
    "escapes": "{{ 'a\\tb\\n\\'c\\' \\\\ \\x41 \\u00e9 \\U0001F642 \\101 \\q' }}",
    "whitespace": "a\n  {% if true %}\n  b\n  {%- if true -%}\n  c  {% endif %}\n{% endif %}\n  {# note #}\n d {{- ' e ' -}} f\n{%+ if true %}\n g{% endif +%}\nh\n",
    "whitespace at the end": "a\n\n",
    "one newline at the end": "a\n",
    "no newline": "{% for m in messages %}\n{{ m.role }}\n{% endfor %}\n\nend",
    "carriage returns": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc",
    "tabs before blocks": "\t{% if true %}x{% endif %}\n\t {{ 1 }}",
    "line that starts with a comment": "   {# c #}\nx\n   {#- c -#}  \ny",
    "raise": "{{ raise_exception('The first message must be from system, not ' ~ messages[0].role) }}",
    "raise in an expression": "{{ 'x' if messages | length > 0 else raise_exception('no') }}{{ messages[0].role == 'system' or raise_exception('must be system') }}",
    "dates": "{{ strftime_now('%Y-%m-%d %d %B %b %H:%M:%S %A %a %j %y %e %p %I %%') }}{{ strftime_now('%-d %-m') }}",
    "rare dates": "{{ strftime_now('%F %T %D %U %w %u %C %h %R %n%t|%c|%x|%X') }}",
    "date is defined": "{{ strftime_now is defined }}{{ raise_exception is defined }}{{ nothing is defined }}",
    "tools as none": "{{ tools is none }}{{ tools is defined }}{{ not tools }}{{ documents is none }}{{ tools }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}[{{ pad_token }}]{{ pad_token is defined }}{{ cls_token is defined }}{{ sound_token }}",
    "generation prompt": "{{ add_generation_prompt }}",
    "extends": "{% extends 'x' %}",
    "include": "{% include 'x' %}",
    "import": "{% import 'x' as y %}",
    "blocks": "{% block a %}x{% endblock %}",
    "autoescape": "{{ '<a>' }}{{ '<a>' | e }}{{ '<a>' | escape }}{{ '<a>' | safe }}{{ ('<' | e) ~ '<' }}",
    "unknown tag": "{% nothing %}",
    "unknown filter": "{{ 'a' | nothing }}",
    "unknown filter not reached": "{% if false %}{{ 'a' | nothing }}{% endif %}x",
    "unknown test": "{{ 'a' is nothing }}",
    "private": "{{ ''.__class__ }}",
    "private item": "{{ messages[0]['__class__'] is defined }}{{ messages.__len__ is defined }}",
    "wordcount": "{{ 'a b c' | wordcount }}",
    "truncate": "{{ 'abcdef' | truncate(5) }}",
    "center filter": "{{ 'ab' | center(6) }}",
    "indent": "{{ 'a\\nb' | indent(2) }}{{ 'a\\nb' | indent(2, true) }}{{ 'ab' | indent(width=1, first=true) }}{{ 'a\\n\\nb' | indent }}",
    "filesizeformat": "{{ 1234567 | filesizeformat }}",
    "striptags": "{{ '<b>x</b>' | striptags }}",
    "pprint": "{{ {'a': 1} | pprint }}",
    "urlencode": "{{ 'a b' | urlencode }}",
    "wordwrap": "{{ 'abc def' | wordwrap(3) }}",
    "what is defined": "{{ cycler is defined }}{{ joiner is defined }}{{ range is defined }}{{ dict is defined }}{{ namespace is defined }}{{ debug is defined }}{{ loop is defined }}{{ zip is defined }}",
    "lipsum": "{{ lipsum() | length > 0 }}",
    "callable": "{{ range is callable }}",
    "joiner": "{% set sep = joiner(', ') %}{% for m in messages %}{{ sep() }}{{ m.role }}{% endfor %}",
    "cycler": "{% set row = cycler('a', 'b') %}{{ row.next() }}{{ row.next() }}{{ row.next() }}{{ row.current }}",
    "do": "{% do 1 %}",
    "tuples": "{{ (1, 2) }}{{ (1,) }}{{ () }}{{ ('a', 'b') | join }}{{ (1, 2) | list }}{{ [(1, 2)] }}",
    "bare tuple": "{{ 1, 2 }}",
    "text in text": "{{ 'a' 'b' }}",
    "inline if without else in a sum": "{{ 'a' + ('b' if false) }}",
    "chained filters": "{{ messages | map(attribute='content') | map('trim') | map('upper') | join(' / ') | replace('\\n', ' ') }}",
    "negative and precedence": "{{ -1 | abs }}{{ 2 + 3 | float }}{{ 'a' ~ 'b' | upper }}{{ not true or true }}{{ 1 + (2 ~ 3) | int }}{{ 1 ~ 2 + 3 }}{{ 'x' in 'xy' and 1 }}",
    "attribute of a number": "{{ (5).nothing is defined }}",
    "floor of floats": "{{ 7.5 // 2 }}{{ 7.5 % 2 }}{{ 1 / 3 }}{{ 10 // 3.0 }}{{ 1 // 1 }}",
    "division by zero": "{{ 1 / 0 }}",
    "floor by zero": "{{ 1 // 0 }}",
    "modulo by zero": "{{ 1 % 0 }}",
    "minus before a filter": "{{ -messages | length }}",
    "joined before plus": "{{ 1 + 2 ~ 3 }}",
    "deep": "{{ messages[0].content[0].type }}",
    "text as a list": "{{ messages[0].content[0] }}{{ messages[0].content[0].type is defined }}",
    "call of none": "{{ none() }}",
    "item of none": "{{ none.x is defined }}",
    "length of a number": "{{ 5 | length }}",
    "sum of texts": "{{ ['a'] | sum }}",
    "unpack too few": "{% for a, b in [[1]] %}x{% endfor %}",
    "loop over a number": "{% for x in 5 %}x{% endfor %}",
    "reasoning aliases": "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }};{% endfor %}",
    "null fields": "{% for m in messages %}{{ 'content' in m }}{{ m.content is none }}{{ m.x is defined }};{% endfor %}",
}

CONVERSATIONS |= dict(
    aliases=[user("a", thinking="t"), assistant("b", reasoning="r"), assistant("c", reasoning_content="q", thinking="w")],
    empty_aliases=[assistant("b", reasoning_content=""), assistant("b", thinking=None, reasoning="")],
    nulls=[user(None, x=None), assistant("b", x=0), assistant("")],
    odd=[user("a", thinking="t", n=1.0, big=12345678901234567890, deep=dict(z=None, a=[True]), list=["it's", None, {"k": "\n"}])],
    none=[],
)

# Constructs in other circumstances: template, conversation, options.
MORE = [
    ("reasoning aliases", "aliases", {}),
    ("reasoning aliases", "empty_aliases", {}),
    ("null fields", "nulls", {}),
    ("tojson of a message", "odd", {}),
    ("messages", "odd", {}),
    ("messages", "none", {}),
    ("special tokens", "plain", dict(variables=dict(bos_token="<other>", pad_token="<p>"))),
    ("generation prompt", "plain", dict(add_generation_prompt=True)),
    ("tools as none", "plain", dict(tools=[])),
    ("tools as none", "plain", dict(tools=["clock"])),
    ("tools as none", "plain", dict(documents=[dict(title="t", text="x")])),
    ("undefined", "plain", dict(variables=dict(nothing="set"))),
    ("undefined in", "plain", dict(variables=dict(nothing=["x", 1.0, None]))),
    ("types", "plain", {}),
]
TOOL_SCHEMAS = dict(weather=WEATHER, clock=CLOCK)
TEMPLATES = FAMILIES | CONSTRUCTS


def cases():
    for name in FAMILIES:
        for conversation in list(CONVERSATIONS)[:10]:
            yield name, conversation, {}
            yield name, conversation, dict(add_generation_prompt=True)
            yield name, conversation, dict(tools=["weather", "clock"])
    for thinking in (True, False):
        yield "qwen3", "thinking", dict(add_generation_prompt=True, variables=dict(enable_thinking=thinking))
        yield "llama3", "tools", dict(tools=["weather"], variables=dict(tools_in_user_message=thinking, date_string="1 May 2030"))
    for name in CONSTRUCTS:
        yield name, "long", {}
    yield from MORE


def render(tokenizer, template, conversation, tools=None, variables={}, **options):
    tools = None if tools is None else [TOOL_SCHEMAS[name] for name in tools]
    return tokenizer.apply_chat_template(CONVERSATIONS[conversation], chat_template=TEMPLATES[template], tokenize=False, tools=tools,
                                         **options, **variables)


def table():
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({}, [])), **SPECIAL,
                                                     extra_special_tokens=dict(sound_token="<sound>"))
    rows = []
    for template, conversation, options in cases():
        case = dict(template=template, conversation=conversation, **options)
        try:
            rows.append(dict(case, rendered=render(tokenizer, template, conversation, **options)))
        except Exception as error:  # whatever a template's author would see
            rows.append(dict(case, refused=f"{type(error).__name__}: {error}"))
    return rows


def byte_level():
    """A tokenizer of bytes and a few merges, with special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "l"), ("Ġ", "a"), ("o", "k"), ("t", "h"), ("th", "e"), ("Ċ", "Ċ"), ("h", "i")]
    vocabulary = {piece: n for n, piece in enumerate(letters + ["".join(pair) for pair in merges])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in
                                  ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|assistant|>", "<|user|>")])
    return tokenizer


MASKED = {
    "family": FAMILIES["generation"],
    "chatml": """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}{% generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}""",
    "whitespace": "{% for m in messages %}\n  {%- if m.role == 'assistant' -%}\n [A] {%- generation -%}  {{ m.content }}  {%- endgeneration -%}  {% else %}\n[U] {{ m.content }}\n  {% endif %}\n{% endfor %}",
    "lines": "{% for m in messages %}\n{% if m.role == 'assistant' %}\n  {% generation %}\n  {{ m.content }}\n  {% endgeneration %}\n{% else %}\n{{ m.content }}\n{% endif %}\n{% endfor %}",
    "scope": "{% set x = 'out' %}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 'in' %}{{ x }}{{ m.content }}{{ loop.index }}{% endgeneration %}{% endif %}[{{ x }}]{% endfor %}",
    "two in one": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %} | {% generation %}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "loop inside": "{% generation %}{% for m in messages %}{{ m.content }};{% endfor %}{% endgeneration %}end",
    "none": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "empty": "{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' %}{% generation %}{% endgeneration %}{% endif %};{% endfor %}",
    "comment": "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ '{% generation %}' }}{% endgeneration %}{% endif %}{% endfor %}",
}

TURNS = [
    [user("hi"), assistant("hello all"), user("ok?"), assistant("the end")],
    [system("be"), user("größe"), assistant("日本 語x"), user("🙂"), assistant("ü!"), user("last")],
    [user("a"), assistant("one\n\ntwo </s> three"), user("b")],
    [user("only")],
]


def masks():
    tokenizer = byte_level()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    rows = []
    for name, template in MASKED.items():
        for turns, messages in enumerate(TURNS):
            out = fast.apply_chat_template(messages, chat_template=template, return_dict=True,
                                           return_assistant_tokens_mask=True)
            rows.append(dict(template=name, turns=turns, ids=out["input_ids"], mask=out["assistant_masks"],
                             rendered=fast.apply_chat_template(messages, chat_template=template, tokenize=False)))
    return dict(templates=MASKED, turns=TURNS, tokenizer=json.loads(tokenizer.to_str()), settings=SPECIAL, rows=rows)


def main():
    chat_template_utils.datetime = Clock
    golden = dict(now=int(NOW.replace(tzinfo=datetime.UTC).timestamp()), special=SPECIAL | dict(sound_token="<sound>"),
                  templates=TEMPLATES, conversations=CONVERSATIONS, tools=TOOL_SCHEMAS, cases=table(), masks=masks())
    with open(HERE / "chats.json", "w") as file:
        # One case a line.
        text = json.dumps(golden, ensure_ascii=False)
        file.write(text.replace('{"template": ', '\n{"template": ') + "\n")


if __name__ == "__main__":
    main()
