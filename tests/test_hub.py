"""The Hugging Face hub, by its own library in a process of its own, against a stand-in on this machine's loopback."""

import base64
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_ports import gpt2_folder, same_model, small_run, small_tokenizer

from faisca.porting.port import port, read_source

pytestmark = pytest.mark.xdist_group("porting")

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_stand_in"


class Hub(http.server.ThreadingHTTPServer):
    """Models as files by id; what was asked, and what was uploaded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.models: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    """The hub's API as far as `snapshot_download` and `upload_folder` ask: every file goes in the commit itself."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._note()
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(/revision/\w+)?", self.path.partition("?")[0]):
            files = self.server.models.get(found[1])
            if files is None:
                return self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in files]
            return self._say(200, {"id": found[1], "modelId": found[1], "sha": SHA, "siblings": siblings})
        if found := re.fullmatch(rf"/api/models/([\w-]+/[\w-]+)/tree/{SHA}", self.path.partition("?")[0]):
            files = self.server.models[found[1]]
            rows = [{"type": "file", "path": n, "size": len(c), "oid": f"{n}-{len(c)}"} for n, c in files.items()]
            return self._say(200, rows)
        if found := re.fullmatch(rf"/([\w-]+/[\w-]+)/resolve/{SHA}/([\w.-]+)", self.path):
            content = self.server.models[found[1]][found[2]]
            return self._send(200, content, {"ETag": f'"{found[2]}-{len(content)}"', "X-Repo-Commit": SHA})
        return self._say(404, {"error": f"the stand-in knows no {self.path}"})

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.path == "/api/validate-yaml":
            return self._say(200, {"errors": [], "warnings": []})
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            id = f"{wanted['organization']}/{wanted['name']}"
            if id.startswith("another/"):
                return self._say(403, {"error": "You have no rights there"})
            self.server.models.setdefault(id, {})
            return self._say(200, {"url": f"{self.server.address}/{id}", "name": id})
        id, work = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(preupload|commit)/main.*", self.path).groups()
        if work == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self._say(200, {"files": modes, "commitOid": SHA})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.models[id][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.server.address}/{id}/commit/{SHA}"
        return self._say(200, {"success": True, "commitOid": SHA, "commitUrl": url, "hookOutput": ""})

    def _note(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")

    def _say(self, status: int, value: Any, headers: dict[str, str] = {}) -> None:  # noqa: B006
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def faisca(folder: Path, address: str, *argv: object, **more: str) -> "subprocess.CompletedProcess[str]":
    """`faisca ARGV` in a folder, of which the library's cache and token are a part, with the hub at an address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "faisca", *map(str, argv)]
    return subprocess.run(command, cwd=folder, env={**kept, **own, **more}, capture_output=True, text=True, check=False)


def test_a_model_comes_from_the_hub_by_its_id(hub, tmp_path):
    source = gpt2_folder(tmp_path / "source", small_tokenizer())
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    hub.models["owner/small"] = {**files, "run.py": b"import os", "weights.onnx": b"x", "pytorch_model.bin": b"x"}
    done = faisca(tmp_path, hub.address, "port", "owner/small", "runs/small", "--to", "faisca", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert "owner/small: a Hugging Face gpt2 folder (float32)" in done.stdout
    same_model(read_source(source), read_source(tmp_path / "runs" / "small"))
    fetched = {ask.rpartition("/")[2] for ask in hub.asked if ask.startswith("GET") and "/resolve/" in ask}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched <= set(files)


def test_an_exported_folder_goes_to_the_hub_and_comes_back(hub, tmp_path):
    run = small_run(tmp_path / "run", small_tokenizer())
    words = ["port", run, tmp_path / "out", "--to", "hf", "--no-verify", "--push-to-hub", "me/small"]
    done = faisca(tmp_path, hub.address, *words, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed to {hub.address}/me/small"
    assert hub.models["me/small"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert b"# A " in hub.models["me/small"]["README.md"] and hub.tokens == {f"Bearer {TOKEN}"}
    back = faisca(tmp_path, hub.address, "port", "me/small", "back", "--to", "faisca", "--no-verify")
    assert back.returncode == 0, back.stderr
    same_model(read_source(run), read_source(tmp_path / "back"))


def test_nothing_goes_there_unasked(hub, tmp_path):
    run = small_run(tmp_path / "run", small_tokenizer())
    done = faisca(tmp_path, hub.address, "port", run, "out", "--to", "hf", "--no-verify", HF_TOKEN=TOKEN)
    assert done.returncode == 0 and hub.asked == []


def complaint(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line, on bad input."""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("faisca: NOT VERIFIED")]
    assert done.returncode == 2 and line.startswith("faisca: "), done.stderr
    return line


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (
            ["--to", "hf", "--push-to-hub", "me/small"],
            {},
            "--push-to-hub me/small needs a token: hf auth login",
        ),
        (["--to", "mlx", "--push-to-hub", "me/small"], {"HF_TOKEN": TOKEN}, "does not go with --to mlx"),
        (["--to", "hf", "--push-to-hub", "small"], {"HF_TOKEN": TOKEN}, "names no place on the hub: write OWNER/NAME"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_written(hub, tmp_path, words, more, said):
    run = small_run(tmp_path / "run", small_tokenizer())
    assert said in complaint(faisca(tmp_path, hub.address, "port", run, "out.npz", *words, **more))
    assert not (tmp_path / "out.npz").exists() and hub.asked == []


def test_a_hub_that_refuses_leaves_the_folder_and_says_so(hub, tmp_path):
    port(small_run(tmp_path / "run", small_tokenizer()), tmp_path / "other", "hf", verify=False)
    words = ["port", "run", "out", "--to", "hf", "--no-verify", "--push-to-hub", "another/small"]
    line = complaint(faisca(tmp_path, hub.address, *words, HF_TOKEN=TOKEN))
    assert "out is written, but did not go to the hub (" in line and "no rights" in line
    assert line.endswith("try hf upload another/small out .") and (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("how", ["unknown", "nobody answers", "offline"])
def test_a_model_that_cannot_be_had_is_one_line_with_the_way_round(hub, tmp_path, how):
    address = "http://127.0.0.1:9" if how == "nobody answers" else hub.address
    more = {"HF_HUB_OFFLINE": "1"} if how == "offline" else {}
    line = complaint(faisca(tmp_path, address, "port", "owner/missing", "run", "--to", "faisca", **more))
    assert "owner/missing does not exist here, and cannot be had from the hub (" in line
    assert "hf download owner/missing --local-dir missing" in line and not (tmp_path / "run").exists()
    assert bool(hub.asked) == (how == "unknown")
