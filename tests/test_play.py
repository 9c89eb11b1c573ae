"""`faisca play` writes what `faisca generate` writes, and says what a token could have been; and its command."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_chats import CHATML, chat_run, chat_tokenizer, turns
from small_play import CLIENT, SETTINGS, ask, events, ids, loaded, of, served, softmax, texts, write_stages
from small_runs import is_one_clear_line

from faisca import backends
from faisca.backend import Sampling
from faisca.cli import main
from faisca.commands import play as command
from faisca.data.tokenizer import Tokenizer
from faisca.play.alternatives import probabilities
from faisca.play.stages import find_places, find_stages
from faisca.play.writing import Row
from faisca.streams import uniforms
from faisca.text import printable
from faisca.training.generate import encode_prompt

pytest.importorskip("mlx.core", reason="the pages are of both backends")

COLUMNS = ["pretrain/torch", "sft/mlx", "grpo/torch", "grpo/mlx"]
SAMPLINGS = [
    {"temperature": 0},
    {"temperature": 1.3, "top_k": 0, "top_p": 1},
    {"temperature": 0.7, "top_k": 5, "top_p": 1},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.8},
    {"temperature": 0.5, "top_k": 30, "top_p": 0.9, "max_new_tokens": 64},  # longer than the context
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stages(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="module")
def address(run: Path):
    with served(run) as found:
        yield found


# --- what it writes -----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SAMPLINGS, ids=str)
def test_it_writes_what_generate_writes(run, address, settings):
    settings = SETTINGS | settings
    found = events(address, [ask(column, "  Governo ") for column in COLUMNS], **settings)
    named = {name: settings[name] for name in ("temperature", "top_k", "top_p", "max_new_tokens", "seed")}
    for column in COLUMNS:
        assert texts(found, column) == loaded(run, column).generate("Governo", 2, **named)
    assert not of(found, "error") and len(of(found, "end")) == len(COLUMNS)


def test_the_command_that_it_shows_prints_the_same(address, capsys):
    found = events(address, [ask("grpo/torch", "O 'fim' é")])
    (begun,) = of(found, "begin")
    words = shlex.split(begun["command"])
    assert words[0] == "faisca" and main(words[1:]) == 0
    assert capsys.readouterr().out.splitlines() == list(map(printable, texts(found)))


def test_the_pieces_are_the_text(address):
    found = events(address, [ask("sft/mlx", "")], temperature=1.5, rows=4)
    for row, text in enumerate(texts(found)):
        pieces = [piece for event in of(found, "tokens") for n, piece in event["tokens"] if n == row]
        assert "".join(piece["text"] for piece in pieces).split() == printable(text).split()
        assert len(ids(found, row)) >= len(pieces) > 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return chat_tokenizer()


def test_pieces_are_whole_characters(tokenizer):
    row, text = Row(tokenizer, tokenizer.encode("a")), "ção 😀 fim"
    pieces = [piece for token in tokenizer.encode(text) for piece in row.add(token)]
    assert "".join(piece["text"] for piece in pieces) == text and "\ufffd" not in text
    assert next(piece for piece in pieces if piece["text"].strip() == "😀")["ids"] == tokenizer.encode("😀")
    half = Row(tokenizer, [])
    assert half.add(tokenizer.encode("😀")[0]) == []
    ended = half.add(tokenizer.end_of_text)
    assert [piece["text"] for piece in ended] == ["\ufffd", ""] and ended[1]["end"]
    assert half.pieces == ended and half.rest() == []


@given(data=st.binary(max_size=12) | st.text(max_size=6).map(str.encode))
@example(data=b"\x80\x80\x80\xc7\xb4")  # once, the fourth byte of garbage hid the character that it begins
@example(data=b"\xf0\x9f\x98\xc7\xb4\xf0\x9f")
def test_pieces_are_the_text_whatever_the_bytes(tokenizer, data):
    """Nothing that a model may sample is lost, or there twice: an untrained one samples any bytes."""
    sampled = [tokenizer.token_bytes.index(bytes([byte])) for byte in data]
    row = Row(tokenizer, [])
    pieces = [piece for token in sampled for piece in row.add(token)] + row.rest()
    assert "".join(piece["text"] for piece in pieces) == printable(tokenizer.decode(sampled))
    assert [i for piece in pieces for i in piece["ids"]] == sampled and all(piece["ids"] for piece in pieces)


def test_the_scores_are_the_models_own_probabilities(run, address):
    for column in ("pretrain/torch", "pretrain/mlx"):
        found = events(address, [ask(column)], temperature=1.7)
        model = loaded(run, column)
        prompt = encode_prompt(model.tokenizer, "Governo", 40)
        for row, scores in of(found, "scores")[0]["scores"]:
            whole = [*prompt, *ids(found, row)]
            own = np.exp(model.token_log_probs(np.array([whole]))[0][len(prompt) - 1 :])
            pieces = [piece for event in of(found, "tokens") for n, piece in event["tokens"] if n == row]
            ends = np.cumsum([len(piece["ids"]) for piece in pieces])
            expected = [float(part.prod()) for part in np.split(own, ends)[:-1]]
            assert scores == pytest.approx(expected, rel=1e-4)


# --- other tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["sft/torch", "sft/mlx"])
def test_the_same_token_again_changes_nothing(address, column):
    first = events(address, [ask(column)])
    for row in (0, 1):
        known = ids(first, row)
        for length in (1, len(known) // 2, len(known)):
            again = events(address, [ask(column, row=row, after=known[:length])])
            assert ids(again, row) == known and texts(again) == texts(first)[row : row + 1]


@pytest.mark.parametrize("column", ["sft/torch", "sft/mlx"])
def test_another_token_goes_on_with_the_draws_of_its_row(run, address, column):
    first, model = events(address, [ask(column)]), loaded(run, column)
    other = next(i for i in range(5, 200) if i != ids(first, 1)[1])
    found = events(address, [ask(column, row=1, after=[ids(first, 1)[0], other])])
    assert ids(found, 1)[:2] == [ids(first, 1)[0], other] and len(ids(found, 1)) > 2
    draws = uniforms(SETTINGS["seed"], "generate", step=0, rows=2, columns=12)[1]
    tokens = [*encode_prompt(model.tokenizer, "Governo", 40), *ids(found, 1)[:2]]
    sampling = Sampling(0.9, 20, 0.95, 1)
    for place in range(2, len(ids(found, 1))):
        probs = probabilities(model.logits(np.array([tokens]))[0, -1], sampling)
        token = int((probs.cumsum() <= draws[place]).sum())
        assert ids(found, 1)[place] == token
        tokens.append(token)


def test_nothing_follows_the_end(run, address):
    end = loaded(run, "sft/torch").tokenizer.end_of_text
    found = events(address, [ask("sft/torch", row=0, after=[5, end])])
    assert ids(found, 0) == [5, end] and of(found, "done")[0]["texts"][0][2] == ""


@pytest.mark.parametrize("settings", SAMPLINGS, ids=str)
def test_alternatives_are_those_of_the_logits(run, address, settings):
    settings, after = SETTINGS | settings, [7, 8]
    answers = {}
    for column in ("grpo/torch", "grpo/mlx"):
        (found,) = of(events(address, [ask(column, row=0, after=after)], "alternatives", **settings), "alternatives")
        model = loaded(run, column)
        logits = model.logits(np.array([[*encode_prompt(model.tokenizer, "Governo", 40), *after]]))[0, -1]
        own = softmax(logits)
        shown = found["alternatives"]
        assert [one["own"] for one in shown] == pytest.approx(np.sort(own)[::-1][:12], rel=1e-4)
        assert [one["own"] for one in shown] == pytest.approx([own[one["id"]] for one in shown], rel=1e-4)
        assert sum(one["own"] for one in shown) + found["rest"] == pytest.approx(1)
        answers[column] = [(one["id"], one["text"], pytest.approx(one["drawn"], abs=1e-4)) for one in shown]
    assert answers["grpo/torch"] == answers["grpo/mlx"]


@pytest.mark.parametrize("settings", SAMPLINGS[1:], ids=str)
def test_drawn_is_how_often_the_samplers_draw_it(settings):
    """Against both twins' own filters."""
    import mlx.core as mx
    import torch

    from faisca_mlx.generate import filter_logits as mlx_filter
    from faisca_torch.generate import filter_logits as torch_filter

    logits = (3 * np.random.default_rng(0).standard_normal((20, 101))).astype(np.float32)
    chosen = [settings["temperature"], settings["top_k"], settings["top_p"]]
    filtered = torch_filter(torch.from_numpy(logits), *chosen), mlx_filter(mx.array(logits), *chosen)
    for found in filtered:
        weights, tokens = (np.array(part.tolist()) for part in found)
        for row in range(20):
            expected = np.zeros(101)
            expected[tokens[row]] = weights[row] / weights[row].sum()
            ours = probabilities(logits[row], Sampling(*chosen, 1))
            assert ours == pytest.approx(expected, abs=1e-6) and ours.sum() == pytest.approx(1)


# --- conversations ------------------------------------------------------------------------------


def test_a_conversation_is_answered_as_chat_answers_it(tmp_path):
    run = write_stages(tmp_path, chat_tokenizer(CHATML), context=128)
    assert [stage.chats for stage in find_stages(run)] == [True] * 3
    named = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "max_new_tokens": 12}
    with served(run) as address:
        for said in (turns("Olá"), turns("Olá", "Bom dia", "Adeus")):
            for column in ("pretrain/torch", "grpo/mlx"):
                found = events(address, [{"column": column, "messages": said}])
                expected = loaded(run, column).chat(said, seed=SETTINGS["seed"] + len(said) // 2, **named)
                assert texts(found) == [expected]
                known = ids(found, 0)
                again = events(address, [{"column": column, "messages": said, "row": 0, "after": known[:2]}])
                assert ids(again, 0) == known
        assert of(events(address, [{"column": column, "messages": turns("palavra " * 99)}]), "error")


def test_a_ported_model_is_one_column(tmp_path):
    (stage,) = find_stages(chat_run(tmp_path / "run"))
    assert (stage.title, stage.chats) == ("Imported", True)


def test_a_run_without_a_template_has_none(run, address):
    assert [stage.chats for stage in find_stages(run)] == [False] * 3
    (error,) = of(events(address, [{"column": "sft/torch", "messages": turns("Olá")}]), "error")
    assert "the model has no chat template" in error["message"]


# --- what is missing ----------------------------------------------------------------------------


def test_a_damaged_checkpoint_leaves_the_others(tmp_path, capsys):
    run = write_stages(tmp_path / "run")
    weights = run / "checkpoints" / "sft-000007" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with served(run) as address:
        found = events(address, [ask("sft/torch"), ask("grpo/torch")])
    (error,) = of(found, "error")
    assert error["column"] == "sft/torch" and "does not match its checksum" in error["message"]
    assert len(texts(found, "grpo/torch")) == 2


def test_a_backend_that_is_missing_is_said_and_the_other_plays(run, monkeypatch):
    monkeypatch.setattr(backends, "importable", lambda module: not module.startswith("mlx"))
    places = find_places()
    with served(run, places=places) as address:
        said = {one["name"]: one["problem"] for one in CLIENT.get(address + "run").json()["backends"]}
        assert said["torch"] == "" and "mlx is not installed here: pip install" in said["mlx"]
        assert texts(events(address, [ask("sft/torch")]))
        refused = CLIENT.post(address + "write", json={"asks": [ask("sft/mlx")], "settings": SETTINGS})
    assert refused.status_code == 400 and "mlx is not installed here" in refused.text


def test_the_page_is_told_what_there_is(run, address):
    found = CLIENT.get(address + "run").json()
    assert [(one["name"], one["checkpoint"]) for one in found["stages"]] == [
        ("pretrain", "pretrain-000009"),
        ("sft", "sft-000007"),
        ("grpo", "grpo-000004"),
    ]
    assert [one["name"] for one in found["backends"]] == ["torch", "mlx"]
    (alone,) = find_stages(run / "checkpoints" / "sft-000007")
    assert alone.name == "sft"


# --- the command --------------------------------------------------------------------------------


def start(*argv: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "faisca", "play", *map(str, argv), "--no-browser", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_command_prints_its_address_and_ctrl_c_ends_it(run):
    process = start(run)
    line = process.stdout.readline()
    address = line.split()[0]
    assert address.startswith("http://127.0.0.1:") and len(address.split("/")[3]) >= 20 and "Ctrl-C ends it" in line
    with CLIENT.stream("POST", address + "write", json={"asks": [ask("sft/torch")], "settings": SETTINGS}) as told:
        said = map(json.loads, told.iter_lines())
        assert next(said)["event"] == "loading"
        process.send_signal(signal.SIGINT)  # while it loads
        assert [event["event"] for event in said] == ["error", "end"]
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (0, "", "")


def complaint(capsys, *argv: object) -> str:
    assert main(["play", *map(str, argv), "--no-browser"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and is_one_clear_line(said.err)
    return said.err


def test_a_port_that_is_taken_is_one_line(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} cannot be had" in complaint(capsys, run, "--port", port)
    assert "--port 70000 cannot be had" in complaint(capsys, run, "--port", 70000)


def test_what_is_no_run_is_one_line(tmp_path, capsys, monkeypatch):
    assert "is no checkpoint: name a run folder" in complaint(capsys, tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    assert "has no checkpoint yet" in complaint(capsys, tmp_path)
    monkeypatch.setattr(command, "importable", lambda name: name != "uvicorn")
    assert 'needs uvicorn, not installed here: pip install ".[play]"' in complaint(capsys, tmp_path)
