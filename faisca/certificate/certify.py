"""The verdict on one configuration of a device, and the search for one that passes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from faisca.backend import Backend, Rollouts, Runtime
from faisca.backends import BACKENDS
from faisca.certificate.alternatives import alternatives
from faisca.certificate.compare import Finding, compare, judge_alone
from faisca.certificate.observe import STEPS, Observation, Side, has_dropout, observe, observe_dropout
from faisca.certificate.rollout import observe_rollout, roll_out
from faisca.certificate.work import Work, nudged
from faisca.config import RunConfig
from faisca.parameters import count_parameters

REFERENCE = RunConfig(device="cpu", dtype="float32", compile="off", attention="explicit")
"""what a device is compared with: the plainest way through a step"""
MOST_EXACT = 2**31
"""parameters times different tokens up to which the CPU computes in float64, where the twin can: about a second"""
NUDGES = 3
"""how many times the weights are moved at random to see how sensitive a step is, where something is off"""
TF32_SHARE = 0.5
"""share of the gradients that are off where products, and not one kernel, are the reason"""


@dataclass(frozen=True)
class Certificate:
    """What was found of one configuration."""

    runtime: Runtime
    reference: str
    """what the CPU computed with, in words"""
    findings: tuple[Finding, ...]

    @property
    def precision(self) -> str:
        """float32 or bfloat16, as asked for; tf32 where that is how the device's float32 computes."""
        dtype = self.runtime.dtype
        if dtype != "float32" or not self._failing(dtype):
            return dtype
        gradients = [finding for finding in self.findings if finding.kind == "gradient"]
        off = sum(not finding.passes(dtype) for finding in gradients)
        return "tf32" if off > TF32_SHARE * len(gradients) and not self._failing("tf32") else dtype

    @property
    def failures(self) -> list[Finding]:
        """What is further off than is allowed, the furthest first."""
        return sorted(self._failing(self.precision), key=lambda finding: -finding.distance)

    @property
    def passed(self) -> bool:
        """Whether the device may train with this."""
        return not self.failures

    @property
    def reason(self) -> str:
        """The worst failure of the first step that has one, in words: what follows is its consequence."""
        failing = self._failing(self.precision)
        worst = max((f for f in failing if f.what == failing[0].what), key=lambda finding: finding.distance)
        return worst.words(self.precision)

    def _failing(self, dtype: str) -> list[Finding]:
        return [finding for finding in self.findings if not finding.passes(dtype)]


class Reference:
    """The same twin on the CPU, not compiled, with the same work: computed once for all configurations."""

    def __init__(self, backend: Backend, work: Work, tick: Callable[[], None] = lambda: None) -> None:
        tokens = work.rows if work.grpo else work.distinct
        exact = work.length * tokens * count_parameters(work.model) <= MOST_EXACT
        runtime = backend.open_runtime(config=REFERENCE)
        exact = exact and BACKENDS[runtime.backend].computes_in_float64
        self.side = Side(backend, REFERENCE, exact=exact, whole=False)
        self.words = f"{runtime.backend} on the CPU in float{64 if exact else 32}"
        self.work, self.tick = work, tick
        self.given: list[Rollouts[np.ndarray]] = []
        self.observations = list(self._ticked(observe(self.side, work, self.given)))

    def certify(self, config: RunConfig) -> Certificate:
        """Compare what a configuration computes with the reference; MLX's device is left where the reference was."""
        side, work = Side(self.side.backend, config), self.work
        runtime = side.open()
        found = list(self._ticked(observe(side, work, self.given)))
        findings = self._compared(found)
        if not all(finding.passes(runtime.dtype) for finding in findings):
            findings = self._excused(findings, runtime.dtype)
        for alone in self._ticked(observe_dropout(side, work)):
            findings += judge_alone(alone)
        if work.grpo:
            findings += judge_alone(observe_rollout(self.side, work, roll_out(side, work)))
            self.tick()
        return Certificate(runtime, self.words, tuple(findings))

    def _compared(self, found: list[Observation]) -> list[Finding]:
        return list(chain(*(compare(*pair) for pair in zip(self.observations, found, strict=True))))

    def _excused(self, findings: list[Finding], dtype: str) -> list[Finding]:
        """The findings, each with the most that moving the weights by a last place changes in its step, on the CPU."""
        most: dict[tuple[str, str], float] = {}
        for nudge in range(NUDGES):
            moved = replace(self.work, parameters=nudged(self.work.parameters, dtype, nudge))
            for finding in self._compared(list(observe(self.side, moved, self.given))):
                key = (finding.kind, finding.what)
                most[key] = max(most.get(key, 0.0), finding.distance)
        return [replace(finding, sensitivity=most[finding.kind, finding.what]) for finding in findings]

    def _ticked(self, observations: Iterator[Observation]) -> Iterator[Observation]:
        for observation in observations:
            self.tick()
            yield observation


def units(work: Work) -> int:
    """How many times `tick` is called where the first configuration passes."""
    return 2 * (1 + 3 * STEPS) + (work.grpo is not None) + has_dropout(work)


@dataclass(frozen=True)
class Verdict:
    """What a search came to: the certificate that counts, and what was changed for it."""

    config: RunConfig
    certificate: Certificate
    """that passes, or where nothing does the first"""
    changed: str = ""
    """what differs from the configuration that was asked for, in words"""
    because: str = ""
    """what was wrong with that one"""
    tried: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For the log and the summary."""
        verdict = "failed" if not self.certificate.passed else "changed" if self.changed else "passed"
        return {
            "verdict": verdict,
            "precision": self.certificate.precision,
            "reference": self.certificate.reference,
            "changed": self.changed,
            "because": self.because,
            "seconds": round(self.seconds, 2),
        }


def find_safe(
    backend: Backend, config: RunConfig, work: Work, say: Callable[[str], None], tick: Callable[[], None]
) -> Verdict:
    """Certify a configuration, and where it fails the alternatives in their order: the first that passes counts."""
    began = time.perf_counter()
    reference = Reference(backend, work, tick)
    first = reference.certify(config)
    verdict = Verdict(config, first, because="" if first.passed else first.reason)
    if not first.passed:
        say(f"preflight of {work.stage} on {first.runtime.device}: {first.reason}")
        for words, other in alternatives(config, first.runtime):
            certificate = reference.certify(other)
            say(f"  with {words}: {'passes' if certificate.passed else certificate.reason}")
            verdict = replace(verdict, tried=(*verdict.tried, words))
            if certificate.passed:
                verdict = replace(verdict, config=other, certificate=certificate, changed=words)
                break
    backend.open_runtime(config=verdict.config)  # MLX's device is a global, and the reference's was the CPU
    return replace(verdict, seconds=time.perf_counter() - began)
