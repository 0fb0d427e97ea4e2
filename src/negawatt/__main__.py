"""`python -m negawatt` is the command `negawatt`."""

try:
    import sys

    from negawatt.cli import main

    sys.exit(main())
except KeyboardInterrupt:  # before the command line could take it, or while it ended
    raise SystemExit(130) from None
