"""`python -m negawatt` is the command `negawatt`."""

import sys

try:
    from negawatt.cli import main

    status = main()
except KeyboardInterrupt:  # before the command line could take it
    status = 130
sys.exit(status)
