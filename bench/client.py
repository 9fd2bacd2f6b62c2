"""What the client costs over the bare stock client: `python -m bench.client --repository DIR`.

Both make the same infer call to the same server, one after the other in turns and in an order that changes, and turn
numpy into tensors and tensors into numpy. The stock client is used as its own examples do, without a deadline of its
own over HTTP, where it has none for a call.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench._output import add_output_options, report
from fuserec.client import Recommender
from fuserec.contract import EXCLUDE, HISTORY, RECOMMEND, USER_ID, K
from fuserec.serve.launcher import Address, Server

Ask = Callable[[int], list[int]]

_K = 10
_TIMEOUT_S = 10.0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.client", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, required=True, help="repository to serve")
    parser.add_argument("--users", type=int, default=500, help="user ids are drawn from 1 to this")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each client and protocol")
    parser.add_argument("--warm-up", type=int, default=200, help="calls before, that are not counted")
    add_output_options(parser)
    return parser.parse_args(arguments)


@contextlib.contextmanager
def stock(scheme: str, authority: str) -> Iterator[Ask]:
    """Yield a call of the bare stock client."""
    if scheme == "grpc":
        import tritonclient.grpc as library

        extra: dict[str, Any] = {"client_timeout": _TIMEOUT_S}
    else:
        import tritonclient.http as library

        extra = {}
    client = library.InferenceServerClient(authority)

    def ask(user_id: int) -> list[int]:
        arrays: dict[str, NDArray[Any]] = {
            USER_ID: np.array([[user_id]], dtype=np.int64),
            HISTORY: np.empty((1, 0), dtype=np.int64),
            EXCLUDE: np.empty((1, 0), dtype=np.int64),
            K: np.array([[_K]], dtype=np.int32),
        }
        inputs = []
        for name, array in arrays.items():
            tensor = library.InferInput(name, list(array.shape), "INT32" if name == K else "INT64")
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        result = client.infer(RECOMMEND, inputs, **extra)
        for name in ("scores", "fallback", "ignored"):
            result.as_numpy(name)
        ids: list[int] = result.as_numpy("item_ids")[0].tolist()
        return ids

    yield ask
    client.close()


@contextlib.contextmanager
def ours(scheme: str, authority: str, **options: Any) -> Iterator[Ask]:
    """Yield a call of `Recommender`."""
    with Recommender(f"{scheme}://{authority}", timeout_ms=_TIMEOUT_S * 1e3, **options) as recommender:
        yield lambda user_id: recommender.recommend(user_id=user_id, k=_K).item_ids.tolist()


def measure(asks: dict[str, Ask], calls: int, warm_up: int, users: int) -> dict[str, list[float]]:
    """Return the milliseconds of each call by client.

    Raises:
        RuntimeError: Two clients got different answers.
    """
    generator = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in asks}
    for place in range(warm_up + calls):
        user_id, answers = generator.randint(1, users), []
        for name in generator.sample(list(asks), len(asks)):
            begin = time.perf_counter()
            answers.append(asks[name](user_id))
            if place >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - begin))
        if any(answer != answers[0] for answer in answers):
            raise RuntimeError(f"the clients got different answers for user {user_id}: {answers}")
    return times


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure protocol by protocol."""
    with Server(options.repository, address=Address.free()) as server, contextlib.ExitStack() as open_clients:
        for scheme in ("grpc", "http"):
            authority = f"{server.address.host}:{server.address.ports[scheme]}"
            clients = {
                "stock": stock(scheme, authority),
                "fuserec": ours(scheme, authority),
                # Ready to hedge at any call, and never doing so: what waiting for two costs.
                "fuserec, hedging": ours(scheme, authority, hedge_after_ms=5_000),
            }
            asks = {name: open_clients.enter_context(client) for name, client in clients.items()}
            times = measure(asks, options.calls, options.warm_up, options.users)
            p50 = {name: float(np.median(each)) for name, each in times.items()}
            for name, each in times.items():
                yield {
                    "protocol": scheme,
                    "client": name,
                    "calls": len(each),
                    "p50_ms": f"{p50[name]:.3f}",
                    "p25_ms": f"{np.percentile(each, 25):.3f}",
                    "p75_ms": f"{np.percentile(each, 75):.3f}",
                    "p99_ms": f"{np.percentile(each, 99):.3f}",
                    "p50_over_stock_percent": f"{100 * (p50[name] / p50['stock'] - 1):.1f}",
                    "python": platform.python_version(),
                }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each client, and write what was asked for."""
    options = parse(arguments)
    report(rows(options), csv_path=options.csv, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
