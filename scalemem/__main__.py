"""`python -m scalemem`: the same as the command `scalemem`."""

import sys

from scalemem.cli import main

sys.exit(main())
