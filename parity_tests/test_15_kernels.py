"""The numerical rungs also run under other kernels (kernels.py): here, that these are really other ones."""

import platform

import pytest
from cases import PAIRED
from kernels import KERNELS, Found, Kernel, choose, distinct, probe, runnable

pytestmark = pytest.mark.skipif(not PAIRED, reason="it multiplies with both frameworks, and only one is installed")
ONE, TWO, THREE = KERNELS[:3]


def found(kernel: Kernel, bits: str) -> Found:
    return Found(kernel.openblas, kernel.mkl, kernel.torch, bits, bits)


def test_what_the_environment_names_is_what_the_libraries_compute_with():
    """Every kernel that counts as runnable is named so by its library, and no two compute the same bits."""
    running, missing = runnable()
    native = probe(None)
    assert isinstance(native, Found) and set(running) | set(missing) == set(KERNELS)
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip(f"no kernels to choose from on this machine: {'; '.join(missing.values())}")
    for kernel, one in running.items():
        assert (one.openblas, one.mkl or kernel.mkl, one.torch.lower()) == (kernel.openblas, kernel.mkl, kernel.torch)
    assert len({(one.mlx_product, one.torch_product) for one in running.values()}) == len(running)
    chosen = choose(running, native)
    assert 1 <= len(chosen) <= 2 and not any(running[kernel].same_as(native) for kernel in chosen)


def test_a_kernel_that_the_library_does_not_have_is_not_taken_for_run():
    """OpenBLAS takes the nearest kernel it has for a name that it does not know: silently."""
    reason = probe(Kernel("Sapphirerapid", ONE.mkl, ONE.torch))
    assert isinstance(reason, str) and "instead of Sapphirerapid" in reason


def test_the_choice_leaves_out_what_computes_the_same():
    running = {ONE: found(ONE, "a"), TWO: found(TWO, "b"), THREE: found(THREE, "b")}
    assert choose(running, native=found(ONE, "a")) == [TWO]
    assert choose(running, native=found(TWO, "b")) == [ONE]
    assert choose(running, native=found(TWO, "c")) == [ONE, TWO]
    assert choose({}, native=found(ONE, "a")) == []


def test_a_kernel_that_computes_the_same_as_one_before_it_counts_once():
    probed = {ONE: found(ONE, "a"), TWO: "no such instruction", THREE: found(THREE, "a")}
    running, missing = distinct(probed)
    assert list(running) == [ONE]
    assert missing == {TWO: "no such instruction", THREE: f"computes the same as {ONE}"}
