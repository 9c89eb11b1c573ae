"""Porting a real model, with --full: SmolLM2-135M-Instruct in, in both twins, and out to transformers and mlx-lm.

FAISCA_SMOLLM2 may name its folder; without it `benchmarks/smollm2.py` makes one, which needs pip and a minute.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_ports import torch, transformers

import faisca
from faisca.data.chat import ChatTemplate
from faisca.porting.port import port

pytest.importorskip("mlx_lm", reason="mlx_lm is missing")
pytestmark = [pytest.mark.full, pytest.mark.xdist_group("smollm2")]

PROMPT = "The capital of Portugal is"
QUESTIONS = (
    "What is the capital of Portugal?",
    "Write a haiku about the sea.",
    "Explica em duas frases o que é a fotossíntese. 😀",
)
NEW_TOKENS = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as transformers saves it."""
    if named := os.environ.get("FAISCA_SMOLLM2"):
        return Path(named)
    target = tmp_path_factory.mktemp("smollm2") / "smollm2"
    script = Path(__file__).parent.parent / "benchmarks" / "smollm2.py"
    done = subprocess.run([sys.executable, str(script), str(target)], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"SmolLM2 cannot be made here: {done.stderr.splitlines()[-1]}")
    return target


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a run folder, compared with transformers in both twins."""
    target = tmp_path_factory.mktemp("runs") / "smollm2"
    done = port(folder, target, "faisca")
    assert done.answered_by == "transformers"
    assert [row.library for row in done.comparisons] == ["faisca_torch", "faisca_mlx"]
    assert all(row.equal_tokens == row.tokens for row in done.comparisons)
    return target


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_both_twins_compute_what_transformers_does(folder, run, backend):
    ours = faisca.load(run, backend=backend, device="cpu", dtype="float32")
    ids = ours.tokenizer.encode(PROMPT)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    logits = ours.logits(np.array([ids]))
    assert np.abs(logits - expected).max() < 1e-4
    assert ours.tokenizer.decode([int(logits[0, -1].argmax())]) == " Lisbon"


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[tuple[str, list[int], str]]:
    """To each question what transformers makes of it: the prompt's text and ids, and the greedy answer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        rows = model.generate(**given, do_sample=False, max_new_tokens=NEW_TOKENS)
        ids = given["input_ids"][0].tolist()
        found.append((text, ids, tokenizer.decode(rows[0, len(ids) :], skip_special_tokens=True)))
    return found


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_an_answer_is_that_of_transformers(expected, run, backend):
    ours = faisca.load(run, backend=backend, device="cpu", dtype="float32")
    template = ChatTemplate(ours.tokenizer)
    for question, (text, ids, answer) in zip(QUESTIONS, expected, strict=True):
        messages = [{"role": "user", "content": question}]
        assert template.text(messages, answer=True) == text and template.ids(messages, answer=True) == ids
        said = ours.chat(messages, temperature=0, top_k=0, top_p=1, max_new_tokens=NEW_TOKENS)
        assert said == answer.strip() and len(said) > 40


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_goes_out_to_both_libraries(folder, run, tmp_path, dtype):
    done = port(run, tmp_path / "out", "hf", dtype=dtype)
    assert [row.library for row in done.comparisons] == ["transformers", "mlx_lm"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes(), name
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(tmp_path / "out"), "--temp", "0"]
    asked = ["--ignore-chat-template", "--prompt", PROMPT, "--max-tokens", "4"]
    said = subprocess.run([*command, *asked], check=True, capture_output=True, text=True)
    assert "Lisbon" in said.stdout
    back = port(tmp_path / "out", tmp_path / "back", "faisca", verify=False)
    assert back.source.dtype == dtype
