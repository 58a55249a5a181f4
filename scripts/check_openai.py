#!/usr/bin/env python3
"""Checks a running `glan serve` with OpenAI's own client: scripts/check_openai.py URL [API_KEY]

Needs `pip install openai`. Greedy or seeded throughout, so that streamed and whole answers can be compared.
"""

import json
import sys

import openai

url = sys.argv[1].rstrip("/")
client = openai.OpenAI(base_url=f"{url}/v1", api_key=sys.argv[2] if len(sys.argv) > 2 else "none", max_retries=0)

model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model
asked = {
    "model": model,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 plus 4?"}],
    "temperature": 0.7,
    "seed": 5,
    "max_completion_tokens": 40,
}

whole = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=3)
assert [choice.index for choice in whole.choices] == [0, 1]
assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

texts, usage = {}, None
for chunk in client.chat.completions.create(**asked, n=2, stream=True, stream_options={"include_usage": True}):
    for choice in chunk.choices:
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    usage = chunk.usage or usage
assert [texts[0], texts[1]] == [choice.message.content for choice in whole.choices], (texts, whole)
assert usage == whole.usage, (usage, whole.usage)

schema = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["sum"],
    "additionalProperties": False,
}
response_format = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}}
reply = client.chat.completions.create(**asked, response_format=response_format)
assert 0 <= json.loads(reply.choices[0].message.content)["sum"] <= 99, reply

reply = client.chat.completions.create(**asked, extra_body={"guided_choice": ["yes", "no"], "top_k": 5})
assert reply.choices[0].message.content in ("yes", "no"), reply

reply = client.completions.create(model=model, prompt=["one", "two"], max_tokens=5, logprobs=1, temperature=0)
assert len(reply.choices) == 2 and len(reply.choices[0].logprobs.tokens) <= 5
streamed = client.completions.create(model=model, prompt="one", max_tokens=5, temperature=0, stream=True)
assert "".join(chunk.choices[0].text for chunk in streamed) == reply.choices[0].text

for error, wrong in [
    (openai.NotFoundError, {"model": "gpt-4"}),
    (openai.BadRequestError, {"temperature": -1}),
    (openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    (openai.BadRequestError, {"messages": [{"role": "user", "content": "word " * 100_000}]}),
]:
    try:
        client.chat.completions.create(**{**asked, **wrong})
    except error as refusal:
        assert refusal.body["message"], refusal
    else:
        raise AssertionError(f"{wrong} was served")

print(f"openai {openai.__version__}: all checks passed on `{model}`")
