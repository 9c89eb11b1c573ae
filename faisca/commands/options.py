"""Options that several commands share, with the help that they show."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from faisca.config import sections

BackendName = Annotated[sections.BackendName, arg(help="what computes; auto: mlx on Apple silicon, torch elsewhere")]
DeviceName = Annotated[
    sections.DeviceName, arg(help="auto: the fastest that the backend finds; gpu: whichever GPU there is")
]
WeightsName = Annotated[
    Literal["float32", "bfloat16"],
    arg(help="what the blocks' weights are kept in: bfloat16 halves their memory, and rounds them"),
]
Source = Annotated[
    str,
    arg(
        name="data",
        metavar="SOURCE",
        help="headlines: sample (embedded), hub, hub:OWNER/NAME, or a file or folder",
    ),
]
OF_THE_RUN = "(default: the run's own)"
"""what a help text says of an option that a run has answered"""
OwnText = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint=OF_THE_RUN)]
OwnCount = Annotated[int | None, arg(metavar="N", help_behavior_hint=OF_THE_RUN)]
OwnShare = Annotated[float | None, arg(metavar="SHARE", help_behavior_hint=OF_THE_RUN)]


@dataclass(frozen=True)
class HeadlineOptions:
    """Which headlines are measured, as `faisca.config.DataConfig` says it; None is the run's own choice."""

    title_column: OwnText = None
    """column that holds the headline"""
    language_column: OwnText = None
    """column that holds the ISO language code"""
    url_column: OwnText = None
    """column that holds the address"""
    language: OwnText = None
    """keep titles in this language; empty keeps all (and needs no language column)"""
    max_title_characters: OwnCount = None
    """longer titles are no headlines: they are dropped"""
    validation_share: OwnShare = None
    """share of titles held out where the source has no validation split of its own"""


@dataclass(frozen=True)
class AddressOptions:
    """Which of them a stage keeps, as `faisca.config.TrainConfig` says it."""

    url_contains: OwnText = None
    """keep only titles whose address contains this; empty keeps all"""


def given(options: HeadlineOptions | AddressOptions) -> dict[str, Any]:
    """The options that were given, by name."""
    return {name: value for name, value in vars(options).items() if value is not None}


Checkpoint = Annotated[
    Positional[Path],
    arg(metavar="CHECKPOINT", help="a checkpoint folder, or a run folder (its latest checkpoint)"),
]
