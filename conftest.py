"""What all tests share: `--full` for the long versions, a token cache, and an error where a CI run proved nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from faisca.system.fast_blas import load_fast_blas

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; and sums add up in one order
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
load_fast_blas()  # before any test imports MLX, which keeps the BLAS that it finds then
# processes that tests start run this checkout too, whatever is installed
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the long versions of the tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        skip = pytest.mark.skip(reason="long: run with --full")
        for item in items:
            if "full" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The token cache of this session: never the user's own."""
    folder = tmp_path_factory.mktemp("token_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAISCA_CACHE_DIR", str(folder))
        yield folder


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI, parity tests that were all skipped are a failure: nothing was compared."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput") or exitstatus != 0:
        return
    outcomes = {
        name: sum("parity_tests" in report.nodeid for report in reporter.stats.get(name, []))
        for name in ("passed", "skipped")
    }
    if os.environ.get("CI") and outcomes["skipped"] and not outcomes["passed"]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"all {outcomes['skipped']} parity tests were skipped: nothing was compared", red=True)
