"""Chat templates: our text and ids are transformers'; and conversations on the command line."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_chats import STYLES, chat_run, chat_tokenizer, theirs, turns
from small_ports import small_run

import faisca
from faisca.cli import main
from faisca.data.chat import ChatTemplate
from faisca.errors import FaiscaError

CONVERSATIONS = [
    turns("Olá"),
    turns("Olá", " Bom dia! ", 'Quanto é 2 < 3 & "4"?'),
    turns("Um", "Dois", "Três", "Quatro\n"),
    turns("O fim <|im_end|> no meio", "<|endoftext|>", "…"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat") / "run")


@pytest.mark.parametrize("style", STYLES)
def test_the_text_and_the_ids_are_those_of_transformers(style: str, tmp_path: Path):
    tokenizer = chat_tokenizer(STYLES[style])
    ours, other = ChatTemplate(tokenizer), theirs(tokenizer, tmp_path / "theirs")
    systems = [turns("Olá", system=" Sê breve ")] if style != "mistral" else []
    for messages in [*CONVERSATIONS, *systems]:
        for answer in (False, True):
            asked = {"add_generation_prompt": answer}
            assert ours.text(messages, answer) == other.apply_chat_template(messages, tokenize=False, **asked)
            ids = other.apply_chat_template(messages, return_dict=False, **asked)
            assert ours.ids(messages, answer) == ids
    # the template alone says whether a token begins the text: one, not two
    assert ours.ids(CONVERSATIONS[0]).count(tokenizer.end_of_text - 2) == (style in ("llama3", "mistral"))


def test_a_template_in_the_configuration_is_taken_unless_there_is_a_file(tmp_path: Path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert ChatTemplate(chat_tokenizer("", chat_template=named)).text(turns("a")) == "yes"
    assert ChatTemplate(chat_tokenizer("", chat_template="one")).text(turns("a")) == "one"
    both = chat_tokenizer("file", chat_template="configuration")
    assert ChatTemplate(both).text(turns("a")) == "file"
    assert theirs(both, tmp_path / "theirs").apply_chat_template(turns("a"), tokenize=False) == "file"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "the model has no chat template: take an instruct model"),
        ("{% if %}", "cannot be read"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content + 1 }}", "does not take these messages"),
        ("{{ messages.__class__.__mro__ }}", "does not take these messages"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template: str, said: str):
    with pytest.raises(FaiscaError, match=said) as raised:
        ChatTemplate(chat_tokenizer(template)).text(turns("a"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_model_answers_from_the_end_of_its_prompt(run: Path, backend: str):
    model = faisca.load(run, backend=backend, device="cpu")
    messages = turns("Olá", "Bom dia", "Adeus")
    ids = ChatTemplate(model.tokenizer).ids(messages, answer=True)
    answer = model.chat(messages, temperature=0, max_new_tokens=1)
    token = int(model.logits(np.array([ids]))[0, -1].argmax())
    assert answer == model.tokenizer.decode([token]).strip()
    assert model.chat(messages, seed=1, temperature=1.0, top_k=0) != model.chat(messages, temperature=1.0, top_k=0)


def test_a_conversation_that_fills_the_context_is_one_line(run: Path):
    with pytest.raises(FaiscaError, match=r"the conversation has \d+ tokens, but the model's context is 64"):
        faisca.load(run).chat(turns("palavra " * 40))


@pytest.mark.parametrize("messages", [[], "Olá", [{"role": "user"}], [{"role": "user", "content": ["Olá"]}], ["Olá"]])
def test_what_are_no_messages_is_refused(run: Path, messages):
    with pytest.raises(FaiscaError, match="message"):
        faisca.load(run).chat(messages)


def test_the_command_answers_each_prompt(run: Path, capsys):
    asked = ["generate", str(run), "--chat", "--system", "Breve", "--max-new-tokens", "6", "--json"]
    assert main([*asked, "-p", "Olá"]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = faisca.load(run).chat(turns("Olá", system="Breve"), max_new_tokens=6)
    assert said["generated"] == [{"prompt": "Olá", "texts": [expected]}] and said["settings"]["max_new_tokens"] == 6


def test_a_conversation_goes_on_line_by_line(run: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    model, said = faisca.load(run), []
    history: list[dict[str, str]] = []
    for n, line in enumerate(("Olá", "Adeus")):
        history.append({"role": "user", "content": line})
        said.append(model.chat(history, seed=n, max_new_tokens=4))
        history.append({"role": "assistant", "content": said[-1]})
    monkeypatch.setattr("sys.stdin", io.StringIO("Olá\n\nAdeus\n"))
    assert main(["generate", str(run), "--chat", "--max-new-tokens", "4"]) == 0
    from faisca.text import printable

    assert capsys.readouterr().out == "".join(f"{printable(text)}\n" for text in said)


def written(*argv: object, spoken: str | None = None) -> subprocess.CompletedProcess[str]:
    """What `faisca generate --chat` prints as a process of its own."""
    command = [sys.executable, "-c", "import sys; from faisca.cli import main; sys.exit(main())", "generate", *argv]
    words = [*map(str, command), "--chat", "--backend", "torch", "--device", "cpu"]
    return subprocess.run(words, check=True, capture_output=True, text=True, input=spoken)


@pytest.fixture(scope="module")
def deaf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that never ends its answers, and one that ends them at once."""
    folder = tmp_path_factory.mktemp("deaf")
    tokenizer = chat_tokenizer()
    for name, token in (("never", tokenizer.encode("a")[0]), ("at once", tokenizer.end_of_text)):
        small_run(folder / name, tokenizer, context=64, favourite=token)
    return folder


def test_an_answer_that_is_cut_short_says_so_and_how_to_get_more(deaf: Path):
    done = written(deaf / "never", "-p", "a", "--max-new-tokens", 5)
    assert done.stdout == "aaaaa\n"
    assert done.stderr == "faisca: the answer is cut after 5 tokens: for more of it, use a larger --max-new-tokens\n"
    done = written(deaf / "never", "-p", "a", "--json")
    (text,) = json.loads(done.stdout)["generated"][0]["texts"]
    assert set(text) == {"a"} and 0 < len(text) < 64
    full = "faisca: the answer is cut where the model's context of 64 tokens is full: begin a new one\n"
    assert done.stderr == full
    assert written(deaf / "never", "--max-new-tokens", 2, spoken="a\nb\n").stderr.count("cut after 2 tokens") == 2
    done = written(deaf / "at once", "-p", "a", "--max-new-tokens", 1)  # it ended, though there was no more room
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--system", "x"], "--system is for conversations: add --chat"),
        (["--chat", "-n", "3"], "-n 3 does not go with --chat"),
        (["--chat", "--json"], "--json does not go with a conversation"),
    ],
)
def test_options_that_do_not_go_together(run: Path, more: list[str], said: str, capsys):
    assert main(["generate", str(run), *more]) == 2
    assert said in capsys.readouterr().err
