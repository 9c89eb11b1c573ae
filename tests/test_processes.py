"""Several processes as one: who started them, what they say to one another, and what is refused."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from faisca import cli
from faisca.config import Config, GRPOConfig, RunConfig, TrainConfig
from faisca.errors import FaiscaError
from faisca.group import ALONE, PIECE, Processes
from faisca.processes.join import check_divisible, check_same, code_sha256
from faisca.processes.launched import first_process, launched

TORCH = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "first.local"}


class Line:
    """Threads that stand for processes, and meet at a barrier."""

    def __init__(self, size: int) -> None:
        self.barrier, self.sent = threading.Barrier(size), [np.zeros(0)] * size

    def exchange(self, rank: int, data: np.ndarray) -> list[np.ndarray]:
        self.sent[rank] = data.copy()
        self.barrier.wait(30)
        found = list(self.sent)
        self.barrier.wait(30)
        return found


class ThreadEngine:
    def __init__(self, line: Line, rank: int) -> None:
        self.line, self.rank, self.calls = line, rank, 0

    def gather(self, data: np.ndarray) -> np.ndarray:
        return np.stack(self.line.exchange(self.rank, data))

    def first(self, data: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.line.exchange(self.rank, data)[0]

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.sum(self.line.exchange(self.rank, values), axis=0, dtype=np.float32)

    def leave(self) -> None:
        pass


def in_each(size: int, work):
    """What `work` returns in each of so many processes; their first error is raised."""
    line, found = Line(size), [None] * size

    def one(rank: int) -> None:
        try:
            found[rank] = work(Processes(rank, size, ThreadEngine(line, rank)))
        except BaseException as error:
            found[rank] = error
            line.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, threading.BrokenBarrierError):
            raise one
    return found


# --- who started them ---------------------------------------------------------------------------


def test_torchrun():
    found = launched(TORCH)
    assert (found.launcher, found.engine, found.rank, found.size, found.host) == (
        "torchrun",
        "torch",
        1,
        4,
        "first.local",
    )
    assert launched(TORCH | {"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert (
        launched({}) is None and launched({"RANK": "0", "WORLD_SIZE": "2"}) is None
    )  # of some cluster, and not torchrun's


def test_every_engine_of_mlx(tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["10.0.0.1:5000", "10.0.1.1:5001"], ["10.0.0.2:5002"]]))
    ring = {"MLX_RANK": "1", "MLX_HOSTFILE": str(hosts)}
    assert launched(ring) == launched(ring | {"PATH": "x"})
    assert (launched(ring).size, launched(ring).host, launched(ring).engine) == (2, "10.0.0.1", "mlx")
    hosts.write_text("")
    assert launched(ring) is None  # mlx.launch of one process
    devices = tmp_path / "devices.json"
    devices.write_text("[[null, 1, 2], [1, null, 2], [1, 2, null]]")
    jaccl = {"MLX_RANK": "2", "MLX_IBV_DEVICES": str(devices), "MLX_JACCL_COORDINATOR": "10.0.0.7:1"}
    assert (launched(jaccl).rank, launched(jaccl).size, launched(jaccl).host) == (2, 3, "10.0.0.7")
    nccl = {"MLX_RANK": "0", "MLX_WORLD_SIZE": "8", "NCCL_HOST_IP": "10.0.0.9"}
    assert (launched(nccl).size, launched(nccl).host) == (8, "10.0.0.9")
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    assert (launched(mpi).launcher, launched(mpi).rank) == ("mpirun", 1)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(FaiscaError, match="RANK 'one' is no number"):
        launched(TORCH | {"RANK": "one"})
    with pytest.raises(FaiscaError, match=r"MLX_HOSTFILE .*none.json cannot be read"):
        launched({"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "none.json")})
    for name, value in TORCH.items():
        monkeypatch.setenv(name, value)
    assert not first_process()
    monkeypatch.setenv("RANK", "0")
    assert first_process()


# --- what they say ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_everyone_hears_the_same(size: int):
    def work(mine: Processes):
        return (
            mine.gather({"rank": mine.rank, "long": "x" * mine.rank * 1000}),
            mine.numbers([mine.rank, -1]).tolist(),
            (mine.any(mine.rank == 1), mine.any(False), mine.mean(mine.rank)),
            mine.first(lambda: f"of {mine.rank}"),
            mine.in_turn(list(range(mine.rank, 7, size))),
            mine.average({"b": np.full((2, 3), mine.rank, np.float32), "a": np.ones(1, np.float32)})["b"].tolist(),
        )

    found = in_each(size, work)
    assert all(one == found[0] for one in found)
    gathered, numbers, flags, first, turns, average = found[0]
    assert [one["rank"] for one in gathered] == list(range(size)) and len(gathered[-1]["long"]) == 1000 * (size - 1)
    assert numbers == [[rank, -1] for rank in range(size)]
    assert flags == (True, False, (size - 1) / 2) and first == "of 0" and turns == list(range(7))
    assert average == [[(size - 1) / 2] * 3] * 2


def test_what_is_long_goes_in_pieces(monkeypatch):
    monkeypatch.setattr("faisca.group.PIECE", 1000)
    assert PIECE > 1000
    sent = np.arange(5000, dtype=np.int32)

    def work(mine: Processes):
        return mine.first(lambda: sent), mine.engine.calls

    for found, calls in in_each(2, work):
        assert np.array_equal(found, sent) and calls > 20


@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_parts_are_neighbours_and_even(rows: int):
    for size in (1, 2, 4):
        parts = [range(rows)[Processes(rank, size).part(rows)] for rank in range(size)]
        assert [row for part in parts for row in part] == list(range(rows))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_sent():
    assert ALONE.gather("x") == ["x"] and ALONE.first(lambda: 3) == 3 and ALONE.in_turn([1, 2]) == [1, 2]
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.mean(7) == 7 and ALONE.writes
    assert ALONE.purpose("dropout") == "dropout" != Processes(1, 2).purpose("dropout")


# --- what is refused ----------------------------------------------------------------------------


def config_of(**sections) -> Config:
    return Config(**sections)


def test_what_cannot_be_split_is_refused():
    whole = config_of(run=RunConfig(stages=("pretrain",)), pretrain=TrainConfig(batch_size=8, micro_batch_size=2))
    check_divisible(whole, 4)
    with pytest.raises(FaiscaError, match=r"pretrain.batch_size 8 cannot be split over 3 processes"):
        check_divisible(whole, 3)
    with pytest.raises(FaiscaError, match="micro_batch_size 2 does not divide a process's 1 rows"):
        check_divisible(whole, 8)
    grpo = config_of(run=RunConfig(stages=("grpo",)), grpo=GRPOConfig(prompts=("O",), group_size=4, minibatch_size=4))
    with pytest.raises(FaiscaError, match=r"grpo.prompts_per_step 1 cannot be split over 2"):
        check_divisible(grpo, 2)


def test_what_shared_weights_do_not_go_with():
    shard = RunConfig(stages=("pretrain",), shard=True)
    muon = config_of(run=shard, pretrain=TrainConfig(optimizer="muon"))
    with pytest.raises(FaiscaError, match=r"pretrain.optimizer muon"):
        check_divisible(muon, 2)
    with pytest.raises(FaiscaError, match="does not go with grpo"):
        check_divisible(config_of(run=replace(shard, stages=("grpo",))), 2)


def test_processes_that_would_train_something_else_are_named():
    def work(other: str):
        def one(mine: Processes):
            facts = {"code": "a", "options": "b", "version of torch": "1"}
            check_same(mine, facts | ({other: "z"} if mine.rank == 1 else {}))

        return one

    in_each(
        2, lambda mine: check_same(mine, {"code": "a", f"version of {mine.rank}": "x"})
    )  # other backends, other facts
    for other in ("code", "options", "version of torch"):
        with pytest.raises(FaiscaError, match=f"process 1 has other {other} than process 0"):
            in_each(2, work(other))


def test_the_checksum_is_of_all_code(monkeypatch):
    before = code_sha256()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b" " if path.name == "losses.py" else b""))
    assert len(before) == 64 and code_sha256() != before


def test_commands_of_one_process(monkeypatch, capsys):
    for name, value in (TORCH | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    assert cli.main(["evaluate", "runs/none"]) == 2
    assert "faisca evaluate is done by one process: start it without torchrun" in capsys.readouterr().err
    assert cli.main(["launch", "-n", "2", "run"]) == 2
    assert "launch" in capsys.readouterr().err


def test_weights_are_not_shared_alone(tmp_path, capsys):
    assert cli.main(["run", "--preset", "tiny", "--run.shard", "--out", str(tmp_path / "run")]) == 2
    assert "this one is alone" in capsys.readouterr().err and not (tmp_path / "run").exists()
