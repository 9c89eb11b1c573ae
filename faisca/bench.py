"""`faisca bench`: speed and memory of both backends, and of baselines, on the same work and machine.

The machine's speed changes while it is measured, so what is compared is timed in turns: a round
times one case in each process after the other, and the table has medians over the rounds. A
baseline is timed only where it computes the same loss from the same weights.
"""

import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from faisca.bench_chart import draw_chart
from faisca.bench_data import measure_preparation
from faisca.bench_machine import describe_machine
from faisca.bench_results import DERIVED, FORMAT, Results, Row, format_value, merge, rows, summarise
from faisca.bench_work import CASES, Work, make_work
from faisca.bench_worker import SubjectSpec, Worker, load_baseline
from faisca.backend import PACKAGES, installed_backends
from faisca.cli import parse
from faisca.config import RunConfig
from faisca.errors import FaiscaError, VerificationError
from faisca.files import write_atomically

LOSS_TOLERANCE = 1e-4
"""largest relative difference of a baseline's loss: other orders of summation, no other model"""
