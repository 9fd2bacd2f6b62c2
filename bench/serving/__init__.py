"""Load on the whole service, beside a no-op model on the same server and beside what a user would pick instead.

workload.py     who asks for what: skewed users, ragged histories; the bytes of each call in every protocol
repositories.py the catalogue of the checkpoint, and a million items around it
noop.py         the no-op model        rival.py, rival_app.py   FastAPI, uvicorn, torch and faiss
generator.py    the process that sends the load; _generate.py is its other side, with callers.py and clock.py
measure.py      interleaved blocks to rows        soak.py        memory over time
targets.py, plot.py, table.py                     what becomes of the rows
"""
