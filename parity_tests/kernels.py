"""Other kernels on this processor: each instruction set has its own, and each adds in its own order.

    python parity_tests/kernels.py      the numerical rungs under two kernels that are not this processor's own

OpenBLAS (under MLX) and MKL (under torch) choose by processor, and the environment can choose for them, at the
start of a process. Whether it did is asked of the libraries: a kernel counts only where they name what was wanted.
MKL on other makers' processors names nothing: there OpenBLAS and torch have to, and bits have to differ.
"""

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNGS = ("02", "03", "04", "05")
THREADS = (1, 2)


@dataclass(frozen=True)
class Kernel:
    """A family of kernels by the names that OpenBLAS, MKL and torch give it."""

    openblas: str
    mkl: str
    torch: str

    def environment(self) -> dict[str, str]:
        return {
            "OPENBLAS_CORETYPE": self.openblas,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
            "ATEN_CPU_CAPABILITY": self.torch,
        }

    def __str__(self) -> str:
        return f"OpenBLAS {self.openblas}, MKL {self.mkl}"


KERNELS = (
    Kernel("Haswell", "AVX2", "avx2"),
    Kernel("SkylakeX", "AVX512", "avx512"),
    Kernel("Nehalem", "SSE4_2", "default"),
    Kernel("Sandybridge", "AVX2", "avx2"),
    Kernel("Nehalem", "AVX2", "avx2"),  # where MKL heeds nobody, as it may on other makers' processors
)
"""in the order in which tests want them; OpenBLAS's wheel has no newer ones: Zen is Haswell, Sapphirerapids SkylakeX"""
MKL_NAMES = {"(Intel(R) AVX-512)": "AVX512", "(Intel(R) AVX2)": "AVX2", "SSE4.2": "SSE4_2"}
"""what MKL calls them in its own report"""


@dataclass(frozen=True)
class Found:
    """What the libraries of a process say that they compute with, and a hash of what a product of each was."""

    openblas: str
    mkl: str
    """empty where MKL does not say, as on other makers' processors"""
    torch: str
    mlx_product: str
    torch_product: str

    def misses(self, kernel: Kernel) -> str:
        """Which library did not do as it was told, in words; empty where all did."""
        mkl = self.mkl or kernel.mkl  # whether it did anything then shows in the products' bits
        pairs = ((self.openblas, kernel.openblas), (mkl, kernel.mkl), (self.torch, kernel.torch))
        return ", ".join(
            f"{found or 'nothing'} instead of {wanted}" for found, wanted in pairs if found.lower() != wanted.lower()
        )

    def same_as(self, other: "Found") -> bool:
        """Whether both libraries computed the same bits."""
        return (self.mlx_product, self.torch_product) == (other.mlx_product, other.torch_product)


def probe(kernel: Kernel | None) -> Found | str:
    """What a process under this kernel (None: as the processor has it) finds; a text says why it cannot run."""
    chosen = dict.fromkeys(KERNELS[0].environment(), "") if kernel is None else kernel.environment()
    done = subprocess.run(
        [sys.executable, __file__, "--probe"],
        env=environment(chosen, 1) | {"MKL_VERBOSE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:  # an instruction that this processor lacks ends the process
        return (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
    found = Found(mkl=_mkl_of(done.stdout), **json.loads(done.stdout.strip().splitlines()[-1]))
    return found if kernel is None else found.misses(kernel) or found


def environment(chosen: Mapping[str, str], threads: int) -> dict[str, str]:
    """This process's environment with kernels (an empty name: the library's own choice) and a number of threads."""
    patient = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "4"}  # or threads spin where cores are few
    numbers = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    changed = os.environ | patient | numbers | chosen
    return {name: value for name, value in changed.items() if value and not name.startswith("PYTEST_")}


def _mkl_of(output: str) -> str:
    report = next((line for line in output.splitlines() if line.startswith("MKL_VERBOSE oneMKL")), "")
    return next((name for words, name in MKL_NAMES.items() if words in report), "")


def _report() -> None:
    """Run by `probe`: multiply with both libraries, and print what they say."""
    import numpy as np
    import torch

    from faisca.system import fast_blas

    loaded = fast_blas.load_fast_blas().loaded
    import mlx.core as mx

    a, b = (np.random.default_rng(seed).standard_normal((96, 515)).astype(np.float32) for seed in (0, 1))
    with mx.stream(mx.cpu):
        products = np.array(mx.array(a) @ mx.array(b).T), (torch.from_numpy(a) @ torch.from_numpy(b).T).numpy()
    core = ""
    if loaded:
        name = ctypes.CDLL(str(fast_blas._renamed_copy()))[fast_blas.PREFIX + "scipy_openblas_get_corename"]
        name.restype = ctypes.c_char_p
        core = name().decode()
    hashes = [hashlib.sha256(product.tobytes()).hexdigest()[:12] for product in products]
    capability = torch.backends.cpu.get_cpu_capability().replace("NO AVX", "default")
    print(
        "\n"
        + json.dumps(
            dict(zip(("openblas", "torch", "mlx_product", "torch_product"), (core, capability, *hashes), strict=True))
        )
    )


def runnable() -> tuple[dict[Kernel, Found], dict[Kernel, str]]:
    """The kernels that this machine runs and that compute bits of their own, and why not the others."""
    with ThreadPoolExecutor(2) as pool:
        probed = dict(zip(KERNELS, pool.map(probe, KERNELS), strict=True))
    return distinct(probed)


def distinct(probed: Mapping[Kernel, Found | str]) -> tuple[dict[Kernel, Found], dict[Kernel, str]]:
    """What was found, without kernels that compute the same as one before them; and why each of the others is left."""
    found: dict[Kernel, Found] = {}
    missing: dict[Kernel, str] = {}
    for kernel, one in probed.items():
        twins = [earlier for earlier, other in found.items() if isinstance(one, Found) and one.same_as(other)]
        if isinstance(one, str) or twins:
            missing[kernel] = one if isinstance(one, str) else f"computes the same as {twins[0]}"
        else:
            found[kernel] = one
    return found, missing


def choose(found: Mapping[Kernel, Found], native: Found, wanted: int = 2) -> list[Kernel]:
    """Kernels, `wanted` or as many as there are, whose bits differ from the native one's and from each other's."""
    chosen: list[Kernel] = []
    for kernel, one in found.items():
        if not any(one.same_as(other) for other in (native, *(found[earlier] for earlier in chosen))):
            chosen.append(kernel)
    return chosen[:wanted]


def run_rungs(kernel: Kernel) -> tuple[int, str]:
    """Exit status and report of the numerical rungs under a kernel, with each number of threads in turn."""
    files = sorted(str(path) for rung in RUNGS for path in (ROOT / "parity_tests").glob(f"test_{rung}_*.py"))
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    status, reports = 0, []
    for threads in THREADS:
        done = subprocess.run(
            command, env=environment(kernel.environment(), threads), cwd=ROOT, capture_output=True, text=True
        )
        lines = done.stdout.strip().splitlines()
        reports.append(f"{kernel}, {threads} thread{'s'[: threads > 1]}: {lines[-1] if lines else done.stderr}")
        if done.returncode:
            status = 1
            reports.append(done.stdout)
    return status, "\n".join(reports)


def main() -> int:
    """The numerical rungs under two other kernels, side by side; 1 where one fails."""
    native, (found, missing) = probe(None), runnable()
    if isinstance(native, str):
        print(f"the numerical rungs need both backends here, and {native}")
        return 1
    for kernel, reason in missing.items():
        print(f"skipped {kernel}: {reason}")
    chosen = choose(found, native)
    print(f"this processor's own: OpenBLAS {native.openblas or '-'}, MKL {native.mkl or '-'}")
    for kernel in chosen:
        print(f"rungs {', '.join(RUNGS)} run under {kernel}, threads {' and '.join(map(str, THREADS))}", flush=True)
    if not chosen:
        print("no other kernel can be chosen here: the rungs have run under the one that there is")
        return 0
    with ThreadPoolExecutor(len(chosen)) as pool:
        outcomes = list(pool.map(run_rungs, chosen))
    for _, report in outcomes:
        print(report)
    return max(status for status, _ in outcomes)


if __name__ == "__main__":
    sys.exit(_report() if sys.argv[1:] == ["--probe"] else main())
