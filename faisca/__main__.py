"""`python -m faisca` is the same program as `faisca`."""

import sys

from faisca.cli import main

sys.exit(main())
