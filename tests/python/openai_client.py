#!/usr/bin/env python3
"""Walks the whole loop with the stock `openai` client: upload, train, watch, chat.

    openai_client.py GATEWAY BASE      (http://host:port, the name of a decoder with a chat template)
"""

import io
import json
import sys
import time

import openai

PATIENCE_S = 120
# Tokens of the base that are no text; a random model says them too.
SPECIALS = ("<pad>", "</s>", "<unk>")


def main() -> None:
    gateway, base = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{gateway}/v1", api_key="none-is-asked-for", max_retries=0, timeout=60)

    models = [model.id for model in client.models.list()]
    check(models == [base], f"models are {models}")

    file = client.files.create(file=("rows.jsonl", io.BytesIO(rows(60))), purpose="fine-tune")
    check(file.object == "file" and file.status == "processed", f"uploaded {file}")
    check(file.id in [found.id for found in client.files.list()], "the file is not listed")
    check(client.files.retrieve(file.id).bytes == len(rows(60)), "the file has another size")
    check(client.files.retrieve(file.id).filename == "rows.jsonl", "the file has another name")
    files(client, file.id)
    print(f"file {file.id}: {file.bytes} bytes")

    job = client.fine_tuning.jobs.create(
        model=base, training_file=file.id, suffix="polite", seed=7,
        hyperparameters={"n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 2.0},
    )
    check(job.object == "fine_tuning.job" and job.fine_tuned_model is None, f"created {job}")
    job = wait(client, job.id)
    check(job.status == "succeeded", f"the job ended with {job}")
    check(job.fine_tuned_model == f"ft:{base}:polite@1", f"the model is {job.fine_tuned_model}")
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    losses = [event.data["train_loss"] for event in events if event.type == "metrics" and "train_loss" in event.data]
    check(len(losses) >= 3 and len({event.id for event in events}) == len(events), f"events are {events}")
    check(events[0].created_at >= events[-1].created_at, "the newest event comes first")
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    check([found.fine_tuned_model_checkpoint for found in checkpoints] == [job.fine_tuned_model], f"{checkpoints}")
    check(checkpoints[0].step_number == checkpoints[0].metrics.step > 0, f"{checkpoints}")
    check(job.id in [found.id for found in client.fine_tuning.jobs.list()], "the job is not listed")
    print(f"job {job.id}: {len(losses)} steps, loss {losses[-1]:.3f} to {losses[0]:.3f}")

    pause(client, base, file.id)

    models = [model.id for model in client.models.list()]
    check(f"{base}:polite@1" in models, f"models are {models}")
    check(client.models.retrieve(job.fine_tuned_model).id == f"{base}:polite@1", "the model cannot be retrieved")

    for model in (job.fine_tuned_model, f"{base}:polite@1", "polite@1", base):
        check(client.models.retrieve(model).id == model.removeprefix("ft:"), f"{model} cannot be retrieved")
        chat(client, model)
    turns(client, base)
    tools(client, base)
    choose(client, base)
    form(client, base)
    complete(client, base)
    refuse(client, base)

    client.files.delete(file.id)
    raises(openai.NotFoundError, lambda: client.files.retrieve(file.id))
    print("\nwalked the loop")


def rows(count: int) -> bytes:
    def row(number: int) -> str:
        question = {"role": "user", "content": f"what is {number}"}
        answer = {"role": "assistant", "content": f"it is {number}, thank you"}
        return json.dumps({"messages": [question, answer]})

    return "\n".join(row(number) for number in range(count)).encode()


def wait(client, job: str):
    for _ in range(PATIENCE_S * 2):
        found = client.fine_tuning.jobs.retrieve(job)
        if found.status in ("succeeded", "failed", "cancelled"):
            return found
        time.sleep(0.5)
    raise SystemExit(f"openai_client: job {job} did not end within {PATIENCE_S} s")


def pause(client, base: str, file: str) -> None:
    """Set aside while it trains, taken up again, and cancelled."""
    jobs = client.fine_tuning.jobs
    job = jobs.create(model=base, training_file=file, suffix="slow", hyperparameters={"n_epochs": 1000})
    for _ in range(PATIENCE_S * 2):
        if jobs.retrieve(job.id).status == "running":
            break
        time.sleep(0.5)
    check(jobs.pause(job.id).status == "paused", "it is not paused")
    time.sleep(1)
    check(jobs.retrieve(job.id).status == "paused", "it did not stay paused")
    check(jobs.resume(job.id).status in ("queued", "validating_files", "running"), "it is not resumed")
    check(jobs.cancel(job.id).status == "cancelled", "it is not cancelled")
    raises(openai.BadRequestError, lambda: jobs.pause(job.id))
    print(f"paused, resumed and cancelled job {job.id}")


def chat(client, model: str) -> None:
    """Streamed and whole, the answer is one."""
    request = {"model": model, "messages": [{"role": "user", "content": "what is 5"}], "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**request)
    text, choice = whole.choices[0].message.content, whole.choices[0]
    check(choice.finish_reason in ("stop", "length") and whole.usage.completion_tokens <= 24, f"answered {whole}")
    stream = client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    check(streamed == text, f"{model}: streamed {streamed!r}, whole {text!r}")
    check(chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens, "the last chunk has other figures")
    check(chunks[0].choices[0].delta.role == "assistant", "the first chunk names no role")
    print(f"{model}: {text!r}, by {whole.system_fingerprint[:15]}…")


def turns(client, model: str) -> None:
    """A conversation goes through the chat template turn by turn: `[s]…[u]…[a]…</s>[u]…[a]`."""
    system = {"role": "system", "content": "be brief"}
    asked = {"role": "user", "content": "one"}
    answered = {"role": "assistant", "content": "two"}
    counts = []
    for messages in ([asked], [system, asked], [system, asked, answered, {"role": "user", "content": [
            {"type": "text", "text": "one"}]}]):
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=1)
        counts.append(answer.usage.prompt_tokens)
    # Each character is a token; [s]be brief, then two</s> and [u]one[a] once more.
    check(counts == [9, 9 + 11, 9 + 11 + 4 + 9], f"prompts have {counts} tokens")
    print(f"prompts of {counts} tokens")


def tools(client, model: str) -> None:
    """Tools are written into the prompt by the template: `[t]` and the list as JSON. Each character is a token."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    request = {"model": model, "messages": [{"role": "user", "content": "one"}], "temperature": 0, "max_tokens": 1}
    counts = []
    for more in ({}, {"tools": [tool]}, {"tools": [tool], "tool_choice": "none"}):
        counts.append(client.chat.completions.create(**request, **more).usage.prompt_tokens)
    check(counts == [9, 9 + 3 + len(json.dumps([tool])), 9], f"prompts have {counts} tokens")
    print(f"tools make prompts of {counts} tokens")


def files(client, file: str) -> None:
    """The newest first; a file that was taken is there under its purpose alone, and its rows are not given back."""
    second = client.files.create(file=("more.jsonl", io.BytesIO(rows(61))), purpose="fine-tune")
    check([found.id for found in client.files.list()] == [second.id, file], "files are listed in another order")
    check([found.id for found in client.files.list(order="asc", limit=1)] == [file, second.id], "pages are not followed")
    check(list(client.files.list(purpose="batch")) == [], "a file has two purposes")
    error = raises(openai.BadRequestError, lambda: client.files.content(file))
    check("held-out rows" in error.message, f"refused with {error}")
    more = io.BytesIO(rows(62))
    error = raises(openai.BadRequestError, lambda: client.files.create(file=("more.jsonl", more), purpose="user_data"))
    check(error.param == "purpose", f"refused with {error}")
    client.files.delete(second.id)


def choose(client, model: str) -> None:
    request = {"model": model, "messages": [{"role": "user", "content": "what is 5"}], "max_tokens": 12}
    several = client.chat.completions.create(**request, n=3, temperature=1.5, seed=3)
    texts = [choice.message.content for choice in several.choices]
    check([choice.index for choice in several.choices] == [0, 1, 2] and len(set(texts)) > 1, f"said {texts}")
    again = client.chat.completions.create(**request, n=3, temperature=1.5, seed=3)
    check([choice.message.content for choice in again.choices] == texts, "one seed gives one answer")

    shown = client.chat.completions.create(**request, temperature=0, logprobs=True, top_logprobs=2)
    tokens = shown.choices[0].logprobs.content
    check(len(tokens) == shown.usage.completion_tokens, f"{len(tokens)} log-probabilities")
    check(all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in tokens), f"{tokens}")
    said = "".join(token.token for token in tokens if token.token not in SPECIALS)
    check(said == shown.choices[0].message.content, f"{said!r} of {tokens}")

    text = shown.choices[0].message.content
    likeliest = client.chat.completions.create(**request, temperature=2, top_p=0, seed=5)
    check(likeliest.choices[0].message.content == text, "top_p 0 keeps the likeliest token alone")
    stop = text[3]
    stopped = client.chat.completions.create(**request, temperature=0, stop=[stop, "never said"])
    check(stopped.choices[0].message.content == text[: text.index(stop)], f"stopped with {stopped}")
    check(stopped.choices[0].finish_reason == "stop", "it stopped by itself")

    banned = {str(first_token(client, model)): -100}
    other = client.chat.completions.create(**request, temperature=0, logit_bias=banned)
    check(other.choices[0].message.content[0] != text[0], "the bias bans a token")
    print(f"chose {texts}")


def first_token(client, model: str) -> int:
    """Specials are 0 to 2, the printable characters follow in order."""
    request = {"model": model, "messages": [{"role": "user", "content": "what is 5"}], "max_tokens": 1}
    answer = client.chat.completions.create(**request, temperature=0)
    return ord(answer.choices[0].message.content) - ord(" ") + 3


def form(client, model: str) -> None:
    schema = {
        "type": "object", "additionalProperties": False, "required": ["kind", "count"],
        "properties": {"kind": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    }
    request = {"model": model, "messages": [{"role": "user", "content": "what is 5"}], "max_tokens": 400, "temperature": 0}
    answer = client.chat.completions.create(
        **request, response_format={"type": "json_schema", "json_schema": {"name": "pets", "schema": schema}},
    )
    pets = json.loads(answer.choices[0].message.content)
    check(pets["kind"] in ("cat", "dog") and 0 <= pets["count"] <= 99, f"said {pets}")
    answer = client.chat.completions.create(**request, extra_body={"guided_regex": "[A-C]{4}"})
    text = answer.choices[0].message.content
    check(len(text) == 4 and set(text) <= set("ABC"), f"said {text!r}")
    # Without the format it would say the second alone.
    bias = {str(ord(character) - ord(" ") + 3): weight for character, weight in (("{", 50), ("}", 100))}
    answer = client.chat.completions.create(**request, response_format={"type": "json_object"}, logit_bias=bias)
    check(json.loads(answer.choices[0].message.content) == {}, f"said {answer.choices[0].message.content!r}")
    print(f"formed {pets} and {text!r}")


def complete(client, model: str) -> None:
    answer = client.completions.create(model=model, prompt=["ab", "cd"], max_tokens=5, temperature=0, logprobs=1)
    check([choice.index for choice in answer.choices] == [0, 1], f"completed {answer}")
    check(all(len(choice.logprobs.tokens) <= 5 for choice in answer.choices), f"completed {answer}")
    chunks = list(client.completions.create(
        model=model, prompt=["ab", "cde"], max_tokens=5, temperature=0, n=2, logprobs=1, stream=True,
        stream_options={"include_usage": True},
    ))
    check(chunks[-1].usage.prompt_tokens == 2 + 3, f"each prompt counts once in {chunks[-1].usage}")
    first = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == 0]
    text = "".join(choice.text for choice in first)
    check(text == answer.choices[0].text, f"streamed {text!r}, whole {answer.choices[0].text!r}")
    offsets = [offset for choice in first for offset in choice.logprobs.text_offset]
    check(offsets == answer.choices[0].logprobs.text_offset, f"offsets are {offsets}")
    said = ["" if token in SPECIALS else token for token in answer.choices[0].logprobs.tokens]
    check(offsets == [len("".join(said[:at])) for at in range(len(said))], f"offsets of {said} are {offsets}")
    print(f"completed {text!r}")


def refuse(client, model: str) -> None:
    """Errors are the client's own classes, with a sentence and the field."""
    asked = [{"role": "user", "content": "x"}]
    create = client.chat.completions.create
    error = raises(openai.NotFoundError, lambda: create(model="nobody", messages=asked))
    check(error.code == "model_not_found" and "nobody" in error.message, f"refused with {error}")
    error = raises(openai.BadRequestError, lambda: create(model=model, messages=asked, temperature=1000))
    check("temperature 1000" in error.message and error.type == "invalid_request_error", f"refused with {error}")
    error = raises(openai.BadRequestError, lambda: create(model=model, messages=asked, max_tokens=100_000))
    check("context of 512" in error.message, f"refused with {error}")
    error = raises(openai.BadRequestError, lambda: create(model=model, messages=asked, tool_choice="required"))
    check(error.param == "tool_choice", f"refused with {error}")
    error = raises(openai.BadRequestError, lambda: create(model=model, messages=asked, functions=[{"name": "f"}]))
    check(error.param == "functions", f"refused with {error}")
    error = raises(openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x", best_of=3))
    check(error.param == "best_of", f"refused with {error}")
    for retrieve in (lambda: client.models.retrieve("other:polite@1"), lambda: create(
            model="other:polite@1", messages=asked)):
        error = raises(openai.NotFoundError, retrieve)
        check(error.code == "model_not_found" and model in error.message, f"refused with {error}")
    rows = io.BytesIO(b'{"messages": "no list"}\n')
    raises(openai.BadRequestError, lambda: client.files.create(file=("bad.jsonl", rows), purpose="fine-tune"))
    raises(openai.NotFoundError, lambda: client.fine_tuning.jobs.create(model=model, training_file="file-nobody"))
    raises(openai.NotFoundError, lambda: client.embeddings.create(model=model, input="x"))
    print(f"refused: {error.message}")


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    except openai.APIError as error:
        raise SystemExit(f"openai_client: {kind.__name__} was due, and {error!r} came") from None
    raise SystemExit(f"openai_client: {kind.__name__} was due, and nothing came")


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise SystemExit(f"openai_client: {problem}")


if __name__ == "__main__":
    main()
