"""`python -m fuserec.cli`."""

from fuserec.cli import main

main()
