"""`faisca play`: who is let in, what garbage does, several tabs, and that it writes what `faisca generate` writes."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from small_chats import CHATML, chat_run, chat_tokenizer, turns
from small_play import CLIENT, SETTINGS, Slow, ask, events, ids, loaded, of, served, softmax, texts, write_stages
from small_runs import is_one_clear_line

from faisca import backends
from faisca.backend import Sampling, load_backend
from faisca.cli import main
from faisca.commands import play as command
from faisca.errors import FaiscaError
from faisca.play.alternatives import probabilities
from faisca.play.asks import parse_request
from faisca.play.stages import find_places, find_stages
from faisca.play.worker import WAITING, Job, Worker
from faisca.play.writing import Row
from faisca.streams import uniforms
from faisca.text import printable
from faisca.training.generate import encode_prompt

pytest.importorskip("starlette", reason="starlette is missing: make install brings it")
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


def lives(address: str) -> bool:
    return texts(events(address, [ask("pretrain/torch")])) != []


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
        assert " ".join("".join(piece["text"] for piece in pieces).split()) == " ".join(text.split())
        assert len(ids(found, row)) >= len(pieces) > 0


def test_pieces_are_whole_characters():
    tokenizer = chat_tokenizer()
    row, text = Row(tokenizer, tokenizer.encode("a")), "ção 😀 fim"
    pieces = [piece for token in tokenizer.encode(text) for piece in row.add(token)]
    assert "".join(piece["text"] for piece in pieces) == text and "\ufffd" not in text
    assert next(piece for piece in pieces if piece["text"].strip() == "😀")["ids"] == tokenizer.encode("😀")
    half = Row(tokenizer, [])
    assert half.add(tokenizer.encode("😀")[0]) == []
    ended = half.add(tokenizer.end_of_text)
    assert [piece["text"] for piece in ended] == ["\ufffd", ""] and ended[1]["end"]
    assert half.pieces == ended and half.rest() == []


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


# --- who is let in ------------------------------------------------------------------------------


def get(address: str, path: str = "", **headers: str) -> httpx.Response:
    return CLIENT.get(address + path, headers=headers)


def test_every_answer_has_the_policy(address):
    for path in ("", "run", "assets/page.js", "assets/play.css", "assets/report.css", "nothing", "../x/"):
        answer = get(address, path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert answer.headers["referrer-policy"] == "no-referrer" and "access-control" not in str(answer.headers)
    assert get(address).text.startswith("<!doctype html>")
    assert {get(address, path).status_code for path in ("nothing", "assets/nothing", "assets/..%2fapp.py")} == {404}


def test_the_page_names_no_other_place(address):
    names = ["", *(f"assets/{path.name}" for path in (Path(command.__file__).parent.parent / "play/assets").iterdir())]
    assert len(names) > 8
    for name in names:
        text = get(address, name).text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http:" not in text and "https:" not in text and "eval(" not in text and "innerHTML" not in text


@pytest.mark.parametrize("path", ["/", "/a-tokem/", "/a-token-/", "//a-token/", "/%FF/", "/a-token", "/favicon.ico"])
def test_without_its_token_nothing_is_answered(address, path):
    origin = address.removesuffix("/a-token/")
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        answer = CLIENT.request(method, origin + path)
        assert answer.status_code == 403 and "<html" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:1"},
        {"host": "evil.example@127.0.0.1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_other_names_and_other_pages_are_refused(address, headers):
    assert get(address, "run", **headers).status_code == 403
    body = {"asks": [ask("sft/torch")], "settings": SETTINGS}
    assert CLIENT.post(address + "write", json=body, headers=headers).status_code == 403


def test_the_pages_own_requests_are_let_in(address):
    port = httpx.URL(address).port
    for name in (f"127.0.0.1:{port}", f"localhost:{port}"):
        own = {"host": name, "origin": f"http://{name}", "sec-fetch-site": "same-origin"}
        assert get(address, "run", **own).status_code == 200


def test_only_this_machine_is_listened_to(address):
    with pytest.raises(OSError):  # a server of all addresses would answer here too
        socket.create_connection(("127.0.0.2", httpx.URL(address).port), timeout=2)


def test_a_form_of_another_page_is_not_read(address):
    """What a browser sends without asking first: text, a form, nothing."""
    body = json.dumps({"asks": [ask("sft/torch")], "settings": SETTINGS})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert CLIENT.post(address + "write", content=body, headers={"content-type": kind}).status_code == 415


# --- garbage ------------------------------------------------------------------------------------

NAMES = ["asks", "settings", "column", "prompt", "messages", "row", "after", "role", "content", *SETTINGS]
GOOD = {"asks": [ask("sft/torch")], "settings": SETTINGS}
GARBAGE = [
    b"",
    b"\x00\xff",
    b"[]",
    b"null",
    b"[" * 200_000,
    b'{"asks": 1e999}',
    b"9" * 5000,
    json.dumps(GOOD).replace("0.9", "NaN").encode(),
    *(
        json.dumps(changed).encode()
        for changed in [
            {"asks": []},
            {"asks": [ask("sft/torch")]},
            {**GOOD, "asks": [ask("sft/torch")] * 17},
            {**GOOD, "more": 1},
            {**GOOD, "asks": [3]},
            {**GOOD, "asks": [ask("sft/jax")]},
            {**GOOD, "asks": [ask("../torch")]},
            {**GOOD, "asks": [{"column": "sft/torch"}]},
            {**GOOD, "asks": [{"column": ["sft"], "prompt": "a"}]},
            {**GOOD, "asks": [ask("sft/torch", messages=[])]},
            {**GOOD, "asks": [ask("sft/torch", after=[1])]},
            {**GOOD, "asks": [ask("sft/torch", row=0, after=[-1])]},
            {**GOOD, "asks": [ask("sft/torch", row=0, after=["a"])]},
            {**GOOD, "asks": [ask("sft/torch", row=99)]},
            {**GOOD, "asks": [ask("sft/torch", "\ud800")]},
            {**GOOD, "asks": [{"column": "sft/torch", "messages": [{"role": "user", "content": "\udfff"}]}]},
            {**GOOD, "asks": [{"column": "sft/torch", "messages": "Olá"}]},
            *(
                {**GOOD, "settings": SETTINGS | {name: value}}
                for name in SETTINGS
                for value in (-1e300, "1", None, True)
            ),
            {**GOOD, "settings": SETTINGS | {"rows": 9}},
            {**GOOD, "settings": SETTINGS | {"max_new_tokens": 1025}},
        ]
    ),
]


def test_garbage_is_refused_in_a_line(address):
    for body in GARBAGE:
        for path in ("write", "alternatives"):
            answer = CLIENT.post(address + path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, body[:80]
            assert answer.text.count("\n") == 1 and len(answer.text) < 300 and ": " in answer.text, answer.text
    assert lives(address)


@pytest.mark.parametrize(
    ("more", "settings", "said"),
    [
        ({}, {"temperature": -1}, "temperature"),
        ({}, {"top_p": 0}, "top_p"),
        ({}, {"top_p": 1.5}, "top_p"),
        ({"prompt": "palavra " * 60}, {}, "context is 40"),
        ({"row": 0, "after": [5] * 60}, {}, "context of 40 tokens is full"),
        ({"row": 0, "after": [2**31 - 1]}, {}, "outside the vocabulary"),
    ],
)
def test_what_a_model_cannot_do_is_said_in_its_column(address, more, settings, said):
    for path in ("write", "alternatives"):
        found = events(address, [ask("sft/torch", **more)], path, **settings)
        (error,) = of(found, "error")
        assert said in error["message"] and of(found, "end") and not of(found, "done")


def test_what_is_no_http_does_no_harm(address):
    port = httpx.URL(address).port
    for sent in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 99, b"GET /" + b"a" * 100_000, b"POST"):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(sent)
    open_ones = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]  # that say nothing
    assert lives(address)
    for client in open_ones:
        client.close()
    assert CLIENT.put(address + "write").status_code == 405
    large = CLIENT.post(address + "write", content=b" " * 300_000, headers={"content-type": "application/json"})
    assert large.status_code == 413


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=5),
    max_leaves=12,
)


@hypothesis.given(
    st.builds(json.dumps, JSON | st.builds(lambda more: GOOD | more, st.dictionaries(st.sampled_from(NAMES), JSON)))
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_whatever_is_sent_is_read_or_refused_in_a_line(text):
    try:
        asks, settings = parse_request(text.encode())
    except FaiscaError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert asks and vars(settings).keys() == SETTINGS.keys()


def test_a_good_request_is_read():
    asks, settings = parse_request(json.dumps(GOOD).encode())
    assert vars(settings) == SETTINGS and [one.column for one in asks] == ["sft/torch"]


# --- several tabs -------------------------------------------------------------------------------


@pytest.fixture
def slow(run):
    """The page of a run whose torch is slow, and that backend."""
    backend = Slow(load_backend("torch"))
    with served(run, backend.load) as address:
        events(address, [ask("sft/torch", row=0, after=[])], "alternatives")  # loads it
        yield address, backend


def begin(address: str, column: str = "sft/torch") -> socket.socket:
    """A client that asks, and reads nothing."""
    url = httpx.URL(address)
    body = json.dumps({"asks": [ask(column)], "settings": SETTINGS}).encode()
    head = f"POST {url.path}write HTTP/1.1\r\nHost: 127.0.0.1:{url.port}\r\nContent-Type: application/json\r\n"
    client = socket.create_connection(("127.0.0.1", url.port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


def test_several_tabs_at_once_get_their_own(address):
    prompts = ["Governo", "Lisboa", "Porto", "Saúde", "", "novas"]
    alone = [texts(events(address, [ask("sft/torch", prompt)])) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        both = [[ask(column, prompt) for column in ("sft/torch", "grpo/mlx")] for prompt in prompts]
        found = list(pool.map(events, [address] * len(prompts), both))
    assert [texts(one, "sft/torch") for one in found] == alone
    assert all(len(of(one, "end")) == 2 and not of(one, "error") for one in found)


def test_a_closed_tab_ends_its_work(slow):
    address, backend = slow
    client = begin(address)
    assert backend.begun.acquire(timeout=20) and not backend.left.acquire(timeout=0.3)
    client.close()
    assert backend.left.acquire(timeout=20), "it goes on for nobody"


def test_tabs_take_turns_and_a_slow_one_holds_up_nobody(slow):
    """Texts without end, read by nobody, on the same backend: others are answered all the same."""
    address, backend = slow
    readers = [begin(address) for _ in range(3)]
    for _ in readers:
        assert backend.begun.acquire(timeout=20)
    asked = time.monotonic()
    found = events(address, [ask("sft/torch", row=0, after=[5])], "alternatives")
    assert len(of(found, "alternatives")) == 1 and texts(events(address, [ask("sft/mlx")]))
    assert time.monotonic() - asked < 10
    for client in readers:
        client.close()
    for _ in readers:
        assert backend.left.acquire(timeout=20)


# --- a worker -----------------------------------------------------------------------------------


def job(work, said: list) -> Job:
    return Job(Path("x"), work, said.append)


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


def test_a_fault_is_said_on_the_page_and_the_worker_lives(capsys):
    def broken(model):
        yield {"event": "begin"}
        raise ZeroDivisionError("a bug")

    worker, said = Worker("torch", lambda folder: None), []
    for _ in range(2):
        worker.submit(job(broken, said))
    until(lambda: sum(event["event"] == "end" for event in said) == 2)
    worker.stop()
    assert sum(event.get("message") == "a fault of faisca's: a bug" for event in said) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_columns_that_begin_together_load_their_model_once():
    loads, said = [], []
    worker = Worker("torch", loads.append)
    for _ in range(4):
        worker.submit(job(lambda model: iter([{"event": "begin"}]), said))
    until(lambda: sum(event["event"] == "end" for event in said) == 4)
    worker.stop()
    assert len(loads) == 1


def test_too_many_texts_are_refused_and_a_stopped_worker_says_so():
    go, said, full = threading.Event(), [], []

    def waits(model):
        go.wait()
        yield {"event": "begin"}

    worker = Worker("torch", lambda folder: None)
    worker.submit(job(waits, said))
    until(lambda: not worker._waiting)
    for _ in range(WAITING):
        worker.submit(job(waits, said))
    worker.submit(job(waits, full))
    assert [event["event"] for event in full] == ["error", "end"] and "try again" in full[0]["message"]
    go.set()
    until(lambda: sum(event["event"] == "end" for event in said) == WAITING + 1)
    worker.stop()
    late: list = []
    worker.submit(job(waits, late))
    assert [event["event"] for event in late] == ["error", "end"] and "has ended" in late[0]["message"]


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
        said = {one["name"]: one["problem"] for one in get(address, "run").json()["backends"]}
        assert said["torch"] == "" and "mlx is not installed here: pip install" in said["mlx"]
        assert texts(events(address, [ask("sft/torch")]))
        refused = CLIENT.post(address + "write", json={"asks": [ask("sft/mlx")], "settings": SETTINGS})
    assert refused.status_code == 400 and "mlx is not installed here" in refused.text


def test_the_page_is_told_what_there_is(run, address):
    found = get(address, "run").json()
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
    with CLIENT.stream("POST", address + "write", json=GOOD) as told:
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
