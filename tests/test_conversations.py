"""Fine-tuning on conversations: which tokens are learnt, which rows are refused, and a run on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_chats import CHATML, MISTRAL, chat_run, chat_tokenizer, turns, write_conversations
from small_models import TWINS, open_twin, same_arrays
from small_runs import KilledError, die_in

import faisca
from faisca.cli import main
from faisca.data.chat import ChatTemplate
from faisca.data.conversations import Conversations, answers, encode_rows, read_rows
from faisca.errors import FaiscaError
from faisca.runs.checkpoint import load_checkpoint
from faisca.runs.log import read_records

TOKENIZER = chat_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
BRIEF = "--sft.batch-size 4 --sft.micro-batch-size 2 --sft.max-steps 6 --sft.epochs 9 --sample.counted 2 --device cpu"
FEW = "--pretrain.max-validation-titles 20 --sft.max-validation-titles 20 --run.log-every 1 --run.checkpoint-every 2"


def rows_of(path: Path, *lines: object):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return read_rows(str(path))


def learnt(path: Path, line: object, template: ChatTemplate = TEMPLATE) -> list[str]:
    """The stretches of a row that count, each as written; inputs and targets are one token apart."""
    (row,) = rows_of(path, line)
    inputs, targets = answers(row, template)
    engine = template.tokenizer.encoding.engine
    ids = template.ids(row.messages)
    assert inputs == ids[: len(inputs)] and len(targets) == len(inputs)
    assert all(target in (-1, ids[n + 1]) for n, target in enumerate(targets)) and targets[-1] >= 0
    parts, before = list[list[int]](), -1
    for target in targets:
        if target >= 0:
            parts = [*parts, []] if before < 0 else parts
            parts[-1].append(target)
        before = target
    return [engine.decode(part, skip_special_tokens=False) for part in parts]


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        ({"messages": turns("Olá", "Bom dia")}, ["Bom dia<|im_end|>"]),
        ({"messages": turns("a", "b c", "d", "e", system="Breve")}, ["b c<|im_end|>", "e<|im_end|>"]),
        ({"messages": turns("a", "b", "c")}, ["b<|im_end|>"]),
        ({"prompt": "Olá", "completion": "Bom dia"}, ["Bom dia<|im_end|>"]),
        ({"prompt": turns("a", "b", "c"), "completion": [{"role": "assistant", "content": "d"}]}, ["d<|im_end|>"]),
        ({"prompt": "a", "completion": ""}, ["<|im_end|>"]),
    ],
)
def test_answers_and_what_closes_them_are_learnt(tmp_path: Path, line: dict, counted: list[str]):
    assert learnt(tmp_path / "x.jsonl", line) == counted


def test_templates_that_close_answers_otherwise(tmp_path: Path):
    mistral = ChatTemplate(chat_tokenizer(MISTRAL))
    line = {"messages": turns("a", "b", "c", "d")}
    assert learnt(tmp_path / "x.jsonl", line, mistral) == [" b<|im_end|>", " d<|im_end|>"]


OPEN = CHATML.replace("<|im_end|>\n", "\n")
FORGETS = "{% for m in messages %}{{ m.role + m.content if loop.last else '' }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("line", "template", "said"),
    [
        ("no", CHATML, "x.jsonl, line 2 is no JSON"),
        ({"text": "a"}, CHATML, "line 2 has neither messages nor prompt and completion, but text"),
        ([1], CHATML, "line 2 has neither"),
        ({"messages": []}, CHATML, "line 2: messages are a list, or none"),
        ({"messages": [{"role": "user", "content": None}]}, CHATML, "line 2: message 1 has content None"),
        ({"prompt": 1, "completion": "a"}, CHATML, "line 2: messages are a int"),
        ({"messages": turns("a")}, CHATML, "line 2: no message of the assistant's"),
        ({"messages": turns("a", "b", "c", "d")}, FORGETS, "line 2: message 2 does not go on from what comes before"),
        (
            {"messages": turns("a", "b")},
            CHATML.replace("assistant\n'", "assistant:'"),
            "line 2: message 2 does not go on",
        ),
        ({"messages": turns("a", "b")}, OPEN, "line 2: the chat template closes message 2 with none of the model's"),
        ({"messages": turns("a", "b", system="x")}, MISTRAL, "line 2: the model's chat template does not take these"),
    ],
)
def test_a_row_that_cannot_be_learnt_is_named_by_its_line(tmp_path: Path, line: object, template: str, said: str):
    with pytest.raises(FaiscaError, match=said) as raised:
        for row in rows_of(tmp_path / "x.jsonl", "", line):
            answers(row, ChatTemplate(chat_tokenizer(template)))
    assert "\n" not in str(raised.value)


def splits(path: Path, window: int, share: float = 0.3):
    return encode_rows(read_rows(str(path)), TEMPLATE, window=window, share=share, seed=1, told=lambda _: None)


def test_rows_are_padded_on_the_right_where_nothing_is_learnt(tmp_path: Path):
    done = splits(write_conversations(tmp_path / "x.jsonl"), 60)
    assert len(done.train) + len(done.validation) == 40 and len(done.validation) > 3
    expected = {tuple(map(tuple, answers(row, TEMPLATE))) for row in read_rows(str(tmp_path / "x.jsonl"))}
    for split in (done.train, done.validation):
        inputs, targets = split.batch(np.arange(len(split)))
        assert inputs.shape == targets.shape == (len(split), 60) and inputs.dtype == targets.dtype == np.int32
        for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
            length = 60 - next(n for n, value in enumerate(reversed(target)) if value >= 0)
            assert (tuple(row[:length]), tuple(target[:length])) in expected
            assert not any(row[length:]) and set(target[length:]) <= {-1}


def test_long_rows_are_dropped_and_counted_and_the_held_out_stay_so(tmp_path: Path):
    path = write_conversations(tmp_path / "x.jsonl")
    longest = max(len(answers(row, TEMPLATE)[0]) for row in read_rows(str(path)))
    done = splits(path, longest - 1)
    dropped = 40 - len(done.train) - len(done.validation)
    assert dropped > 0 and f"dropped: {dropped} longer than data.window {longest - 1}" in done.report
    every = splits(path, longest)
    assert "dropped" not in every.report and len(every.train) + len(every.validation) == 40
    held_out = [{row[0, : longest - 1].tobytes() for row in some.validation.tokens} for some in (done, every)]
    assert held_out[0] <= held_out[1]
    with pytest.raises(FaiscaError, match=f"of 40 conversations 0 that differ fit data.window 5 .*{longest} tokens"):
        splits(path, 5)


def test_the_last_batch_of_a_measurement_is_filled_with_what_does_not_count():
    tokens = np.arange(5 * 2 * 3, dtype=np.int32).reshape(5, 2, 3)
    batches = list(Conversations(tokens).evaluation_batches(2))
    assert [inputs.shape for inputs, _ in batches] == [(2, 3)] * 3
    assert (batches[2][1][1] == -1).all() and batches[2][1][0].tolist() == tokens[4, 1].tolist()
    assert len(list(Conversations(tokens).evaluation_batches(2, most=1))) == 1


def sft(base: Path, out: Path, backend: str, conversations: Path) -> list[str]:
    where = ["--from", str(base), "--out", str(out), "--backend", backend, "--sft.conversations", str(conversations)]
    return ["sft", *where, *BRIEF.split(), *FEW.split(), "--data.validation-share", "0.2"]


@pytest.mark.parametrize("backend", TWINS)
def test_a_run_learns_answers_and_resumes_exactly(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch):
    twin = open_twin(backend)
    base, chats = chat_run(tmp_path / "base"), write_conversations(tmp_path / "x.jsonl")
    steps, original = [], twin.train_step
    monkeypatch.setattr(twin, "train_step", lambda **given: (steps.append(given), original(**given))[1])
    assert main(sft(base, tmp_path / "whole", backend, chats)) == 0
    monkeypatch.setattr(twin, "train_step", original)
    # what it learnt: whole conversations, other ones at each step; and the loss of the first step
    batches = [step["targets"].tobytes() for step in steps]
    assert len(steps) == 6 == len(set(batches))
    first, start = steps[0], faisca.load(base, backend=backend, device="cpu")
    counted = int((first["targets"] >= 0).sum())
    assert 0 < counted < first["targets"].size / 2
    nats = start.setup.backend.evaluate(model=start.model, inputs=first["inputs"], targets=first["targets"])
    records = [record for record in read_records(tmp_path / "whole") if "loss" in record]
    assert records[0]["loss"] == pytest.approx(nats / counted, rel=1e-5)
    assert records[-1]["loss"] < records[0]["loss"]
    # killed and resumed, it is the same to the last bit
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        die_in(patch, backend, "train_step", 4, lambda: (_ for _ in ()).throw(KilledError))
        main(sft(base, tmp_path / "killed", backend, chats))
    assert main(["run", "--resume", str(tmp_path / "killed")]) == 0
    whole, killed = (load_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert same_arrays(*(dict(sorted(done.parameters.items())) for done in (whole, killed)))
    assert not len(whole.seen) or "sft" not in whole.state.stages  # no title was seen
    assert faisca.load(tmp_path / "whole", backend=backend).chat(turns("Peru"), max_new_tokens=3) is not None


def test_what_is_measured_is_the_loss_of_held_out_answers(tmp_path: Path, capsys):
    base, chats = chat_run(tmp_path / "base"), write_conversations(tmp_path / "x.jsonl")
    assert main(sft(base, tmp_path / "out", "auto", chats)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "held-out conversations from 40 rows, loss on" in said and "SFT validation loss" in said
    last = [record for record in read_records(tmp_path / "out") if "portugal_validation_loss" in record][-1]
    rows = read_rows(str(chats))
    model = faisca.load(tmp_path / "out")
    seed = model.checkpoint.state.hold_out_seed
    done = encode_rows(rows, TEMPLATE, window=64, share=0.2, seed=seed, told=lambda _: None)
    inputs, targets = done.validation.batch(np.arange(len(done.validation)))
    nats = model.setup.backend.evaluate(model=model.model, inputs=inputs, targets=targets)
    assert last["portugal_validation_loss"] == pytest.approx(nats / (targets >= 0).sum(), rel=1e-4)


def test_a_model_without_a_template_is_refused_before_the_folder_is_touched(tmp_path: Path, capsys):
    base, chats = chat_run(tmp_path / "base", ""), write_conversations(tmp_path / "x.jsonl")
    assert main(sft(base, tmp_path / "out", "auto", chats)) == 2
    assert "the model has no chat template" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(sft(base, tmp_path / "out", "auto", tmp_path / "none.jsonl")) == 2
    assert main(["sft", *sft(chat_run(tmp_path / "b2"), tmp_path / "o2", "auto", tmp_path / "none.jsonl")[1:]]) == 2
    assert "none.jsonl cannot be read" in capsys.readouterr().err
