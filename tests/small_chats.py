"""A small model with a chat template, and conversations for it."""

import json
from pathlib import Path

from small_ports import small_run, small_tokenizer, transformers
from tokenizers import Tokenizer as Engine

from faisca.data.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = """{%- if tools %}{{- 'tools: ' + tools | tojson }}{%- endif %}
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are <helpful> & \"kind\".<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(count=0) %}
{%- for message in messages %}
    {%- set seen.count = seen.count + 1 %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | tojson + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|im_start|>system\\n\\nToday: ' + strftime_now('%Y') + '\\n' + system + '<|im_end|>' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
STYLES = {"chatml": CHATML, "qwen": QWEN, "llama3": LLAMA3, "mistral": MISTRAL}
CAPITALS = {"Portugal": "Lisboa", "Galiza": "Santiago", "Peru": "Lima", "Cuba": "Havana", "Egito": "Cairo"}


def chat_tokenizer(template: str = CHATML, tokens: int = 300, **config: object) -> Tokenizer:
    """A tokenizer as an instruct model has it: two ends of text, and a template."""
    engine = Engine.from_str(small_tokenizer(tokens).json_text())
    engine.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    ends = [engine.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>")]
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    files = {
        "tokenizer.json": engine.to_str().encode(),
        "tokenizer_config.json": json.dumps(named | config).encode(),
        "generation_config.json": json.dumps({"eos_token_id": ends}).encode(),
    }
    return Tokenizer.from_files(files | ({"chat_template.jinja": template.encode()} if template else {}), "test")


def theirs(tokenizer: Tokenizer, folder: Path):
    """The same as transformers reads it from a folder."""
    folder.mkdir()
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(folder)


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    roles = [("user", "assistant")[i % 2] for i in range(len(contents))]
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, *({"role": role, "content": text} for role, text in zip(roles, contents, strict=True))]


def write_conversations(path: Path, copies: int = 4) -> Path:
    """Rows of every form, of many lengths."""
    rows: list[dict] = []
    for n in range(copies):
        for country, capital in CAPITALS.items():
            rows.append({"prompt": f"{country}{n}", "completion": capital})
            rows.append({"messages": turns(country, f"{capital}{n}", "e?", "sim")})
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def chat_run(folder: Path, template: str = CHATML, **model: object) -> Path:
    """A run folder with a model of initial values that has a chat template."""
    return small_run(folder, chat_tokenizer(template), **{"context": 64, **model})
