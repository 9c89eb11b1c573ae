"""Prompts from a file: which lines are taken, in which order, and what rewards are told of them."""

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from setups import small_setup
from small_chats import chat_tokenizer
from small_models import TWINS, open_twin, small_model
from stand_in import StandIn

from faisca.config import Config, GRPOConfig
from faisca.data.chat import ChatTemplate
from faisca.data.prompts import Task, open_tasks
from faisca.data.tokenizer import Tokenizer
from faisca.errors import FaiscaError
from faisca.loaded_model import _own_reward
from faisca.rewards.judge import Judge
from faisca.rewards.samples import Samples
from faisca.training.grpo import pack, roll_out, with_log_probs
from faisca.training.start import check_tasks, note_data, open_judge, with_prompts_at_hand

TOKENIZER = Tokenizer.train(["O vento sopra", "O Porto vence"] * 5, 270)
LINES = [{"prompt": "O" * n, "answer": n, "kind": "o"} for n in range(1, 6)]


def write(folder: Path, lines: list[Any], name: str = "prompts.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def test_a_file_has_a_prompt_and_columns_a_line(tmp_path):
    file = write(tmp_path, [LINES[0], "", LINES[1]])
    tasks = open_tasks(("left out",), file)
    assert [(task.prompt, dict(task.columns)) for task in tasks.all] == [
        ("O", {"answer": 1, "kind": "o"}),
        ("OO", {"answer": 2, "kind": "o"}),
    ]
    assert tasks.columns == ["answer", "kind"] and tasks.all[1].where == f"{file}, line 3"


def test_messages_are_a_prompt_under_either_name(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    tasks = open_tasks((), write(tmp_path, [{"messages": messages}, {"prompt": messages}]))
    assert [task.prompt for task in tasks.all] == [messages, messages]
    assert tasks.all[0].text == "2 + 2? →"


GOOD = {"prompt": "O", "answer": 1}
BAD = {
    "no JSON": ("{prompt", "is no JSON"),
    "no object": ("[1]", "has neither of prompt and messages"),
    "no prompt": ({"text": "O"}, "has neither of prompt and messages"),
    "two prompts": ({"prompt": "O", "messages": []}, "has both of prompt and messages"),
    "a number": ({"prompt": 3, "answer": 1}, "messages are a int, or none"),
    "no messages": ({"messages": [], "answer": 1}, "messages are a list, or none"),
    "no role": ({"messages": [{"content": "x"}], "answer": 1}, "message 1 has role"),
    "an answer": ({"messages": [{"role": "assistant", "content": "x"}], "answer": 1}, "ends with an answer"),
    "mixed": ({"messages": [{"role": "user", "content": "x"}], "answer": 1}, "mixes texts and messages"),
    "a column less": ({"prompt": "O"}, "has no column answer"),
    "a column more": ({"prompt": "O", "answer": 1, "zeta": 2}, "alone has a column zeta"),
    "a reserved column": ({"prompt": "O", "answer": 1, "prompts": 2}, "has a column prompts"),
    "another encoding": ("\udcff", "is no JSON"),
}


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_in_one_line(tmp_path, line, words):
    path = tmp_path / "p.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes(f"{json.dumps(GOOD)}\n{text}\n".encode(errors="surrogateescape"))
    with pytest.raises(FaiscaError) as caught:
        open_tasks((), str(path))
    assert str(caught.value).startswith(f"{path}, line 2") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_empty_or_not_there(tmp_path):
    with pytest.raises(FaiscaError, match=r"cannot be read .*: name a file of JSON"):
        open_tasks((), str(tmp_path / "none.jsonl"))
    with pytest.raises(FaiscaError, match="is empty: write a prompt a line"):
        open_tasks((), write(tmp_path, [""]))


# --- order --------------------------------------------------------------------------------------


def test_each_pass_over_a_file_has_every_prompt_once_in_an_order_of_its_own(tmp_path):
    tasks = open_tasks((), write(tmp_path, LINES))
    passes = [[task.text for task in tasks.chosen(5 * turn, 5, seed=3)] for turn in range(3)]
    assert all(sorted(one) == sorted(line["prompt"] for line in LINES) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    # a pure function of the seed and the number of the prompt, however many are taken at a time
    flat = [task.text for start in range(0, 15, 3) for task in tasks.chosen(start, 3, seed=3)]
    assert flat == [text for one in passes for text in one]
    assert flat != [task.text for task in tasks.chosen(0, 15, seed=4)]


def test_prompts_of_the_configuration_take_turns_as_ever():
    tasks = open_tasks(("a", "b", "c"), "")
    assert [task.text for task in tasks.chosen(2, 5, seed=1)] == ["c", "a", "b", "c", "a"]
    assert tasks.sha256 == "" and tasks.columns == []


# --- rollouts -----------------------------------------------------------------------------------


def grpo_setup(twin: Any, file: str, tokenizer: Tokenizer = TOKENIZER, **grpo: Any) -> Any:
    grpo = {"group_size": 2, "minibatch_size": 2, "max_new_tokens": 3, "prompts_per_step": 3, "epochs": 1} | grpo
    config = GRPOConfig(prompts_file=file, **grpo)
    return small_setup(twin, tokenizer, {"grpo": config}, context=grpo.pop("context", 64))


def test_rows_of_a_group_share_prompt_and_columns(twin, tmp_path):
    setup = grpo_setup(twin, write(tmp_path, LINES))
    written = roll_out(setup, small_model(twin, setup.model_config), 1)
    given = Samples.of_tasks(written.tasks, ["x"] * 6, written.completions)
    assert given.prompts[::2] == given.prompts[1::2] and len(set(given.prompts)) >= 2
    assert given.columns["answer"] == [len(prompt) for prompt in given.prompts]
    for task, ids in zip(written.tasks, written.prompts, strict=True):
        assert ids == [TOKENIZER.end_of_text, *TOKENIZER.encode(task.prompt)]


def test_prompts_of_other_lengths_beside_a_row_do_not_change_it(twin, tmp_path):
    """Log-probabilities of the rows of a step are those of each row alone."""
    setup = grpo_setup(twin, write(tmp_path, LINES))
    model = small_model(twin, setup.model_config)
    written = roll_out(setup, model, 0)
    assert len({len(ids) for ids in written.prompts}) > 1
    rollouts = with_log_probs(setup, pack(setup, written, np.zeros(6)), model, model)
    for row in range(6):
        prompt, completion = written.prompts[row], written.completions[row]
        tokens = np.array([prompt + completion], np.int32)
        alone = twin.token_log_probs(model=model, tokens=tokens, temperature=1.0, places=None)[0]
        counted = rollouts.old_log_probs[row][rollouts.mask[row] > 0]
        np.testing.assert_allclose(counted, alone[len(prompt) - 1 :], atol=1e-5)


def test_messages_are_written_by_the_chat_template(tmp_path):
    tokenizer = chat_tokenizer()
    messages = [{"role": "user", "content": "Lisboa?"}]
    twin = open_twin(TWINS[0])
    setup = grpo_setup(twin, write(tmp_path, [{"messages": messages, "answer": "sim"}]), tokenizer)
    check_tasks(setup)
    written = roll_out(setup, small_model(twin, setup.model_config), 0)
    assert written.prompts[0] == ChatTemplate(tokenizer).ids(messages, answer=True)
    assert written.tasks[0].columns == {"answer": "sim"}


def test_what_does_not_fit_or_lacks_a_template_is_named_with_its_line(tmp_path):
    long = grpo_setup(StandIn(), write(tmp_path, [{"prompt": "x"}, {"prompt": "O vento " * 99}]))
    with pytest.raises(FaiscaError, match=r"prompts\.jsonl, line 2: prompt 'O vento .* context is 64"):
        check_tasks(long)
    chat = grpo_setup(StandIn(), write(tmp_path, [{"messages": [{"role": "user", "content": "x"}]}]))
    with pytest.raises(FaiscaError, match="line 1: the model has no chat template"):
        check_tasks(chat)


def test_a_reward_that_asks_for_a_column_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def f(completions, answer, level): return []\n")
    for reward, absent in (("exact:solution", "solution"), (f"{tmp_path}/mine.py:f", "level")):
        setup = grpo_setup(StandIn(), write(tmp_path, LINES), reward=(reward,))
        setup = dataclasses.replace(setup, reward=open_judge(setup.config.grpo))
        with pytest.raises(FaiscaError) as caught:
            check_tasks(setup)
        assert f"asks for {absent!r}" in str(caught.value) and "columns answer, kind" in str(caught.value)
    setup = small_setup(StandIn(), TOKENIZER, {"grpo": GRPOConfig(reward=("exact:answer",))})
    setup = dataclasses.replace(setup, reward=open_judge(setup.config.grpo))
    with pytest.raises(FaiscaError, match=r"grpo\.prompts has no columns"):
        check_tasks(setup)


def test_another_content_of_the_file_is_noted_on_resume(tmp_path):
    from faisca.runs.state import Progress

    said: list[str] = []
    progress = Progress("grpo")
    for lines in (LINES, LINES, LINES[:2]):
        note_data(progress, open_tasks((), write(tmp_path, lines)).sha256, said.append)
    assert said == ["the training data have changed since the checkpoint: the run goes on with the new ones"]


def test_a_checkpoint_from_elsewhere_does_without_its_file(tmp_path):
    here = Config(grpo=GRPOConfig(prompts_file=write(tmp_path, LINES), reward=("exact:answer", "length:1-9")))
    gone = dataclasses.replace(here, grpo=dataclasses.replace(here.grpo, prompts_file="gone.jsonl"))
    said: list[str] = []
    assert with_prompts_at_hand(here, said.append) == here and not said
    without = with_prompts_at_hand(gone, said.append)
    assert without.grpo.prompts_file == "" and said == [
        "grpo.prompts_file gone.jsonl is not here: grpo.prompts stand in for it"
    ]
    judge = _own_reward(here)
    assert judge is not None and judge.labels == ["exact", "length"]
    assert _own_reward(without) is None, "nothing has the column"
    assert _own_reward(Config()) is None, "football is measured anyway"


def test_tasks_of_texts_are_what_was_given():
    assert open_tasks(("O vento",), "").all == (Task("O vento"),)


# --- the tasks of benchmarks/tasks.py -----------------------------------------------------------


def test_checkable_tasks_are_tasks_whose_answers_are_right(tmp_path):
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    try:
        import tasks as script
    finally:
        sys.path.pop(0)
    paths, again = (script.write(tmp_path / name, 300, seed=4) for name in ("a", "b"))
    other = script.write(tmp_path / "c", 300, seed=5)
    assert [paths[name].read_bytes() for name in paths] == [again[name].read_bytes() for name in paths]
    assert paths["train"].read_bytes() != other["train"].read_bytes()
    train, held_out = (open_tasks((), str(paths[name])).all for name in ("train", "held_out"))
    assert (len(train), len(held_out)) == (270, 30) and not {t.text for t in train} & {t.text for t in held_out}
    kinds = Counter(task.columns["kind"] for task in (*train, *held_out))
    assert sorted(kinds) == ["copy", "count", "sum"] and min(kinds.values()) > 90
    for task in train:
        *shown, question = [message["content"] for message in task.prompt]
        for asked, answer in (shown, (question, task.columns["answer"])):
            words = asked.rstrip(" =?").split()
            match task.columns["kind"]:
                case "copy":
                    assert words[1] == answer
                case "count":
                    assert str(words[4].count(words[2])) == answer != "0"
                case "sum":
                    assert str(int(words[0]) + int(words[2])) == answer
    samples = Samples.of_tasks(train, [f" {task.columns['answer']}\n" for task in train], [[]] * 270)
    assert Judge(("exact:answer",)).score(samples).total.all()
