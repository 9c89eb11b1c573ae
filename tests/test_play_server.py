"""The page of `faisca play` and its server: who is let in, what garbage does, several tabs, and the worker."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st
from small_play import CLIENT, SETTINGS, Slow, ask, events, of, served, texts, write_stages

from faisca.backend import load_backend
from faisca.commands import play as command
from faisca.errors import FaiscaError
from faisca.play.asks import parse_request
from faisca.play.worker import WAITING, Job, Worker

pytest.importorskip("mlx.core", reason="the pages are of both backends")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stages(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="module")
def address(run: Path):
    with served(run) as found:
        yield found


def lives(address: str) -> bool:
    return texts(events(address, [ask("pretrain/torch")])) != []


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
@hypothesis.settings(max_examples=100, deadline=None)
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
