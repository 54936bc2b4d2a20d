"""Makes tests/golden/text/metrics.json and chat.json: what the tools that people compare with give for our own texts.

Run with sacrebleu 2, nltk 3 and transformers 5.23:  python tests/golden/make_text.py
"""

import json
import random
import re
from pathlib import Path

from nltk.translate.gleu_score import sentence_gleu
from sacrebleu.metrics import CHRF
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent / "text"

WORDS = "the a small old dog cat house run runs ran home we they is are not , . ! quickly größe 日本 語 don't 3.5".split()


def words(text):
    return re.findall(r"\w+|[^\w\s]", text.replace("_", " _ "))


def metrics():
    draw = random.Random(7)
    pairs = []
    for _ in range(60):
        reference = [draw.choice(WORDS) for _ in range(draw.randint(1, 12))]
        prediction = [w if draw.random() < 0.8 else draw.choice(WORDS) for w in reference if draw.random() < 0.9]
        pairs.append((" ".join(prediction), " ".join(reference)))
    pairs += [("", "a b"), ("x", "y"), ("same text", "same text"), ("ab", "abcdef"), ("abcdef", "ab")]
    chrf = CHRF()
    rows = [dict(prediction=p, reference=r, chrf=chrf.sentence_score(p, [r]).score / 100,
                 gleu=sentence_gleu([words(r)], words(p)) if words(p) or words(r) else 1.0) for p, r in pairs]
    corpus = chrf.corpus_score([p for p, _ in pairs], [[r for _, r in pairs]]).score / 100
    return dict(rows=rows, corpus_chrf=corpus)


TEMPLATES = {
    "turns": "{% for message in messages %}\n  {% if message['role'] == 'user' %}\n[U] {{ message['content'] | trim }}"
             "{{ eos_token }}\n  {% elif message['role'] == 'assistant' %}\n[A] {{ message.content }}{{ eos_token }}\n"
             "  {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n[A] \n{%- endif %}\n",
    "system": "{{- bos_token }}{% if messages[0]['role'] == 'system' %}{% set lead = messages[0]['content'] + '\\n\\n' %}"
              "{% set rest = messages[1:] %}{% else %}{% set lead = '' %}{% set rest = messages %}{% endif %}"
              "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
              "{{ raise_exception('roles must alternate') }}{% endif %}{{ '<' + m.role.upper() + '>' }}"
              "{{ lead if loop.first else '' }}{{ m.content.strip().replace('\\n', ' / ') }}"
              "{{ ' ' if not loop.last }}{% endfor %}",
    "json": "{% set ns = namespace(seen=[]) %}{%- for m in messages -%}\n{%- set ns.seen = ns.seen + [m.role] -%}\n"
            "{{ m | tojson }}\n{%- endfor -%}\n{{ ns.seen | join('+') }} {{ messages | length }}"
            "{{ {'a': [1, 2.5, none, true], 'ü': '<&>'} | tojson(indent=2) }}{{ tools is none }}{{ not tools }}",
    "loops": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}:"
             "{{ m.content.split('\\n')[0][:5] }}|{{ m.content[-3:] }}{% if 'stop' in m.content %}{% break %}{% endif %}"
             "{% endfor %}{% macro end(x, y='!') %}({{ x }}{{ y }}){% endmacro %}{{ end('e') }}"
             "{{ messages | map(attribute='role') | list | last }}"
             "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "generation": "{% for m in messages %}{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
                  "{%- else %}{{ m.content }}{%- endif %} {% endfor %}",
}

CONVERSATIONS = [
    [dict(role="user", content="  Hello <b>\nworld ")],
    [dict(role="user", content="Why?"), dict(role="assistant", content=" Because\n 'so' ")],
    [dict(role="system", content="Be \"brief\"."), dict(role="user", content="größe 日本 stop"),
     dict(role="assistant", content="ok"), dict(role="user", content="more {{ x }}")],
    [dict(role="assistant", content="first"), dict(role="user", content="second")],
]


def chats():
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            for add in (False, True):
                try:
                    rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=add,
                                                        bos_token="<s>", eos_token="</s>")
                    result = rendered[0]
                except Exception:
                    result = None
                cases.append(dict(template=name, messages=messages, add_generation_prompt=add, rendered=result))
    return dict(templates=TEMPLATES, cases=cases)


def main():
    HERE.mkdir(exist_ok=True)
    for name, value in (("metrics", metrics()), ("chat", chats())):
        with open(HERE / f"{name}.json", "w") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")


if __name__ == "__main__":
    main()
