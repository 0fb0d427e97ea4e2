"""`python -m negawatt.search FD`: the worker process. Not for people; `negawatt plan` starts it."""

from negawatt.search.worker import main

main()
