"""Models with tokenizers of SentencePiece's kinds: brought in, trained on, asked, and exported for both libraries."""

import json
from pathlib import Path

import numpy as np
import pytest
import small_sentencepiece as small
from small_families import family_folder
from small_ports import complaint, edit_json, same_model, small_tokenizer, transformers

import faisca
from faisca.cli import main
from faisca.data.chat import ChatTemplate
from faisca.porting import libraries
from faisca.porting.port import port, read_source

pytest.importorskip("mlx_lm", reason="mlx_lm is missing")
HOSTILE = ("  a  b ", "Governo  anuncia", "漢字 😀👩‍👩‍👧‍👦", "\n\tx\r\n", "</s>", "<s> não", "")
FAMILY = {"llama 2": "llama", "tinyllama": "llama", "mistral": "mistral", "gemma": "llama", "unigram": "llama"}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def model_folder(folder: Path, style: str) -> Path:
    """A folder with small weights, as a model of this style has it."""
    family_folder(folder, FAMILY[style], small_tokenizer(), vocab_size=small.TOKENS, **ENDS)
    return small.write(folder, small.files(style))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small model that has Llama 2's tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    port(model_folder(folder / "in", "llama 2"), folder / "run", "faisca", verify=False)
    return folder / "run"


@pytest.mark.parametrize("style", small.STYLES)
def test_it_comes_in_and_goes_out_with_the_same_ids_and_texts(style, tmp_path):
    (model_folder(tmp_path / "in", style) / "generation_config.json").unlink()  # then ours is written
    port(tmp_path / "in", tmp_path / "run", "faisca", verify=False)
    done = port(tmp_path / "run", tmp_path / "out", "hf")  # both libraries are asked nine texts
    assert [(row.library, row.equal_texts) for row in done.comparisons] == [("transformers", 9), ("mlx_lm", 9)]
    ours, before = read_source(tmp_path / "run").tokenizer, small.files(style)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    stated = json.loads((tmp_path / "out" / "generation_config.json").read_bytes())
    assert (stated["bos_token_id"], stated["eos_token_id"]) == (ours.beginning[0], 2)
    assert (theirs.eos_token_id, theirs.unk_token, theirs.bos_token_id) == (2, "<unk>", 1)
    assert theirs("a").input_ids == [*ours.beginning[: style != "unigram"], *ours.encode("a")]
    for text in (*HOSTILE, *small.titles(50)):
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours.encode(text) == ids and (2 in ids or ours.decode(ids) == theirs.decode(ids))
    # all but the class stays as it was
    after = {name: (tmp_path / "out" / name).read_bytes() for name in before}
    assert json.loads(after["tokenizer_config.json"])["tokenizer_class"] == "PreTrainedTokenizerFast"
    edit_json(tmp_path / "out" / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    if style != "unigram":
        assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_bytes()) == small.CONFIG
    del before["tokenizer_config.json"]
    assert all(after[name] == content for name, content in before.items())
    assert "a vocabulary of 600 tokens" in (tmp_path / "out" / "README.md").read_text()
    same_model(read_source(tmp_path / "in"), read_source(tmp_path / "out"))


def test_llamas_own_class_would_read_another_tokenizer(tmp_path):
    """Why the class is not kept: where this fails, transformers reads the file as it is, and `_plain_class` can go."""
    folder = small.write(tmp_path / "own", small.files("llama 2") | {"config.json": b'{"model_type": "llama"}'})
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(" a", add_special_tokens=False).input_ids != small.tokenizer("llama 2").encode(" a")


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_it_writes_headlines_and_answers(llama, backend, capsys):
    model = faisca.load(llama, backend=backend, device="cpu")
    prompt = [1, *model.tokenizer.encode("Governo")]
    (said,) = model.generate("Governo", temperature=0, max_new_tokens=1)
    token = int(model.logits(np.array([prompt]))[0, -1].argmax())
    assert said == " ".join(model.tokenizer.decode([*prompt, token]).split())
    messages = [{"role": "user", "content": "Olá"}]
    ids = ChatTemplate(model.tokenizer).ids(messages, answer=True)
    assert model.chat(messages, temperature=0, max_new_tokens=4) == model.chat(
        messages, temperature=0, max_new_tokens=4
    )
    assert ids[:1] == [1] and ids.count(1) == 1
    asked = ["generate", str(llama), "-p", "Governo", "-n", "2", "--backend", backend, "--device", "cpu"]
    assert main(asked) == 0 and len(capsys.readouterr().out.splitlines()) == 2


def test_sft_and_grpo_train_it_on_and_its_files_go_out(llama, tmp_path):
    sizes = ["--backend", "torch", "--device", "cpu", "--preset", "tiny", "--data.window", "32", "--data.stride", "32"]
    tuned, led, out = tmp_path / "tuned", tmp_path / "led", tmp_path / "out"
    assert main(["sft", "--from", str(llama), "--out", str(tuned), *sizes, "--sft.max-steps", "2"]) == 0
    few = ["--grpo.steps", "2", "--grpo.prompts", "Governo", "", "--grpo.max-new-tokens", "8"]
    assert main(["grpo", "--from", str(tuned), "--out", str(led), *sizes, *few]) == 0
    done = port(led, out, "hf")
    assert [row.equal_texts for row in done.comparisons] == [9, 9]
    assert (out / "tokenizer.json").read_bytes() == small.files("llama 2")["tokenizer.json"]
    assert transformers.AutoTokenizer.from_pretrained(out)("a").input_ids == [
        1,
        *small.tokenizer("llama 2").encode("a"),
    ]


def test_conversations_teach_it_answers(llama, tmp_path):
    rows = [{"prompt": f"Capital {n}?", "completion": f"Lisboa {n}"} for n in range(8)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = ["--backend", "torch", "--device", "cpu", "--data.window", "48", "--data.stride", "48"]
    more = ["--preset", "tiny", "--sft.conversations", str(tmp_path / "chats.jsonl"), "--sft.max-steps", "2"]
    assert (
        main(["sft", "--from", str(llama), "--out", str(tmp_path / "tuned"), *sizes, *more, "--sft.batch-size", "2"])
        == 0
    )


# --- a tokenizer.model alone ---


@pytest.fixture
def slow(tmp_path) -> Path:
    """A Llama 2 folder as the authors published it: SentencePiece's own file."""
    folder = model_folder(tmp_path / "in", "llama 2")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(small.trained("bpe"))
    return folder


@pytest.mark.parametrize("missing", [None, "transformers", "mlx_lm"])
def test_a_tokenizer_model_is_converted_by_a_library_that_is_there(slow, tmp_path, missing, monkeypatch):
    real = libraries.missing_package
    monkeypatch.setattr(libraries, "missing_package", lambda name: name if name == missing else real(name))
    found = read_source(slow)
    library = "mlx_lm" if missing == "transformers" else "transformers"
    assert found.notes == (f"{slow} has no tokenizer.json: {library} made one of its tokenizer.model",)
    assert found.tokenizer.beginning == (1,) and found.tokenizer.end_of_text == 2
    own = small.sentencepiece.SentencePieceProcessor(model_proto=small.trained("bpe"))
    for text in (*small.titles(200), "漢 😀", "a  b"):
        assert found.tokenizer.encode(text) == own.encode(text) and found.tokenizer.decode(own.encode(text)) == text
    if missing is None:
        port(slow, tmp_path / "run", "faisca", verify=False)
        assert [row.equal_texts for row in port(tmp_path / "run", tmp_path / "out", "hf").comparisons] == [9, 9]


def test_a_tokenizer_model_that_nothing_converts_is_one_line(slow, tmp_path, monkeypatch, capsys):
    asked = (slow, tmp_path / "run", "--to", "faisca", "--no-verify")
    (slow / "tokenizer.model").write_bytes(b"no protobuf" * 9)
    line = complaint(capsys, *asked)
    assert "cannot convert" in line and "pip install sentencepiece protobuf" in line
    monkeypatch.setattr(libraries, "missing_package", lambda name: name)
    line = complaint(capsys, *asked)
    assert "has a tokenizer.model and no tokenizer.json, and nothing here converts it" in line
    assert "name its tokenizer.json with --tokenizer FILE" in line and not (tmp_path / "run").exists()
