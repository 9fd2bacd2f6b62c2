"""Hand what the models have counted to the server, which shows it on its metrics port.

A call of the server's metrics is a message to its process and back: some 30 us, and more under load (server 2.51 on
two cores). So nothing of it happens while a request is answered: a thread hands over what has been added since the last
time. The processes of a model share its series, where their additions meet.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Any, Final, Protocol

from fuserec.serve.tally import Kind, Sample, Tally

logger = logging.getLogger(__name__)

# Between two messages other threads get the interpreter: they would wait for it up to Python's switch interval of 5 ms.
_PAUSE_S: Final = 0.0002

Series = tuple[str, tuple[tuple[str, str], ...]]


class Ledger(Protocol):
    """Where numbers are kept that several processes add to."""

    def add(self, sample: Sample, amount: float) -> None:
        """Make the series of a sample where there is none, and add to it."""

    def set(self, sample: Sample) -> None:
        """Make the series of a sample where there is none, and give it the sample's value."""


class ServerLedger:
    """The metrics of the inference server that runs this process.

    Args:
        pb_utils: The server's own module.
    """

    def __init__(self, pb_utils: Any) -> None:
        self._pb_utils = pb_utils
        self._families: dict[str, Any] = {}
        self._metrics: dict[Series, Any] = {}

    def add(self, sample: Sample, amount: float) -> None:
        """Make the series of a sample where there is none, and add to it."""
        metric = self._metric(sample)
        if amount:
            metric.increment(amount)

    def set(self, sample: Sample) -> None:
        """Make the series of a sample where there is none, and give it the sample's value."""
        self._metric(sample).set(sample.value)

    def _metric(self, sample: Sample) -> Any:
        series = sample.name, sample.labels
        if series not in self._metrics:
            if sample.name not in self._families:
                kinds: dict[Kind, Any] = {
                    "counter": self._pb_utils.MetricFamily.COUNTER,
                    "gauge": self._pb_utils.MetricFamily.GAUGE,
                }
                self._families[sample.name] = self._pb_utils.MetricFamily(
                    name=sample.name, description=sample.about, kind=kinds[sample.kind]
                )
            self._metrics[series] = self._families[sample.name].Metric(labels=dict(sample.labels))
        return self._metrics[series]


class Handover:
    """Hands a tally over to a ledger from time to time, in a thread of its own.

    Args:
        tally: What is counted here.
        ledger: Where it goes.
        every_s: Seconds between two times.
    """

    def __init__(self, tally: Tally, ledger: Ledger, every_s: float = 1.0) -> None:
        self._tally = tally
        self._ledger = ledger
        self._every_s = every_s
        self._given: dict[Series, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fuserec-metrics", daemon=True)

    def start(self) -> None:
        """Hand over what there is, so that every series can be seen before the first request, and begin."""
        self.hand_over()
        self._thread.start()

    def stop(self) -> None:
        """Hand over what is left, say that what is told by gauges is no longer so, and end."""
        self._stop.set()
        if not self._thread.is_alive():
            return
        self._thread.join()
        self.hand_over()
        for sample in self._tally.samples():
            if sample.kind == "gauge":
                self._ledger.set(sample._replace(value=math.nan))

    def hand_over(self, pause_s: float = 0.0) -> None:
        """Hand over what was added since the last time, with a pause after each message."""
        for sample in self._tally.samples():
            series = sample.name, sample.labels
            given = self._given.get(series)
            if sample.kind == "gauge":
                # Each time: a process that ends says that it is no longer so, and another may have begun before.
                self._ledger.set(sample)
            elif sample.value != given:
                self._ledger.add(sample, sample.value - (given or 0.0))
            else:
                continue
            self._given[series] = sample.value
            if pause_s:
                time.sleep(pause_s)

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(self._every_s):
            try:
                self.hand_over(_PAUSE_S)
                failing = False
            except Exception:  # the server refused a message; requests are answered all the same
                if not failing:
                    logger.exception("metrics cannot be handed to the server; trying again")
                failing = True
