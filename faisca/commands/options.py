"""Options that several commands share, with the help that they show."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from faisca.config import sections

BackendName = Annotated[sections.BackendName, arg(help="what computes; auto: mlx on Apple silicon, torch elsewhere")]
DeviceName = Annotated[
    sections.DeviceName, arg(help="auto: the fastest that the backend finds; gpu: whichever GPU there is")
]
Source = Annotated[
    str,
    arg(
        name="data",
        metavar="SOURCE",
        help="headlines: sample (embedded), hub, hub:OWNER/NAME, or a file or folder",
    ),
]
Checkpoint = Annotated[
    Positional[Path],
    arg(metavar="CHECKPOINT", help="a checkpoint folder, or a run folder (its latest checkpoint)"),
]
