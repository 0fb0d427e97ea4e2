"""`python -m negawatt` is the command `negawatt`."""

import sys

from negawatt.cli import main

sys.exit(main())
