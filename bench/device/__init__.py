"""A quarter of an hour on a GPU, well spent: `bash bench/device/run.sh`, or `python -m bench.device --rehearse`.

__main__.py       the steps in order, each in a process of its own with a time limit
limits.py         what this card can do at most        correctness.py   suite, differential run, sanitizers
times.py          the grid beside its rivals           profiles.py      where the time goes
served.py         the whole service on the GPU
cases.py, oracle.py, differential.py       many searches, and the float64 judge of each
tables.py, subject.py, rivals.py, clock.py tables made on the device, the search under test, and what it is timed beside
grid.py, aims.py  which cells, and what they are held against
report.py         reads the CSV files that a run wrote, and draws
"""
