"""Heavy requests of `recommend`: put off, answered in their lane while there is time, and counted by their outcome."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from fuserec import contract
from fuserec.errors import DeviceError
from fuserec.serve.deadlines import Deadline, DeadlineExpired, WorkRefused
from fuserec.serve.experiment import Experiments
from fuserec.serve.faults import device_fault
from fuserec.serve.heavy import HeavyLane, Job
from fuserec.serve.limits import Limits
from fuserec.serve.pipeline import Answer
from fuserec.serve.query import Query
from fuserec.serve.telemetry import ANSWERED, EXPIRED, FAILED, REFUSED, TOTAL, Execution, Telemetry

logger = logging.getLogger(__name__)

# The trace id in a `traceparent` (W3C Trace Context), which the launcher has the server make a parameter of a request.
_TRACE: Final = re.compile('"traceparent":"[0-9a-f]{2}-([0-9a-f]{32})-')
_NO_SCORE: Final = np.float32(contract.NO_SCORE)


class LaneFull(Exception):
    """Too many heavy requests wait; the message says how many may."""


@dataclass(frozen=True)
class _Heavy:
    """A request that was put off.

    Attributes:
        queries: Its rows, with arrays of their own.
        sender: Takes its response.
        deadline: The end of its time.
        traces: The traces that it belongs to.
    """

    queries: list[Query]
    sender: Any
    deadline: Deadline
    traces: list[str]


class HeavyRequests:
    """Takes requests, and answers them in a thread of its own.

    Args:
        experiments: Answer them.
        telemetry: Counts, for that thread alone.
        limits: Of a request.
        slow_ms: Milliseconds of an execution beyond which it is logged.
        on_device_fault: Told what the GPU fails with.
    """

    def __init__(
        self,
        experiments: Experiments,
        telemetry: Telemetry,
        limits: Limits,
        slow_ms: float,
        on_device_fault: Callable[[DeviceError], None],
    ) -> None:
        self._on_device_fault = on_device_fault
        self._experiments, self._telemetry, self._limits, self._slow_ms = experiments, telemetry, limits, slow_ms
        self._lane = HeavyLane(self._answer, limits.heavy_queue)

    def start(self) -> None:
        """Begin to answer."""
        self._lane.start()

    def stop(self) -> None:
        """Take no more, and return when all are answered."""
        self._lane.stop()

    def put(self, request: Any, queries: list[Query], estimate_ms: float) -> None:
        """Take a request.

        Raises:
            LaneFull: There is no room.
        """
        sender = request.get_response_sender()
        deadline = Deadline.of(request.timeout(), self._limits.max_request_ms, sender.is_cancelled)
        heavy = _Heavy([query.copy() for query in queries], sender, deadline, _traces(request))
        if not self._lane.put(Job(heavy, len(queries), estimate_ms)):
            # The client knows a full queue by these words.
            raise LaneFull(
                f"Exceeds maximum queue size for heavy requests: {self._limits.heavy_queue} wait already (heavy_queue)"
            )

    def _answer(self, requests: Sequence[_Heavy]) -> None:
        """Answer some requests together; those whose time is over are told so, and the others do not wait for them."""
        while requests := self._in_time(requests):
            try:
                answers = iter(self._recommend(requests))
            except DeadlineExpired:
                continue
            except Exception as error:
                fault = device_fault(error)
                if fault is not None:
                    for request in requests:
                        self._fail(request, FAILED, str(fault), pb_utils.TritonError.UNAVAILABLE)
                    self._on_device_fault(fault)
                elif len(requests) > 1:
                    for request in requests:
                        self._answer([request])
                elif isinstance(error, WorkRefused):
                    self._fail(requests[0], REFUSED, str(error), pb_utils.TritonError.INVALID_ARG)
                else:
                    logger.exception("a heavy request failed", extra={"fields": {"trace_ids": requests[0].traces}})
                    said = f"{type(error).__name__}: {error}"
                    self._fail(requests[0], FAILED, said, pb_utils.TritonError.INTERNAL)
                return
            for request in requests:
                outputs = stack([next(answers) for _ in request.queries])
                self._send(request, ANSWERED, response_of(outputs))
            return

    def _in_time(self, requests: Sequence[_Heavy]) -> list[_Heavy]:
        """Return the requests that still have time, and answer the others."""
        left = []
        for request in requests:
            if reason := request.deadline.reason:
                self._fail(request, EXPIRED, reason, pb_utils.TritonError.CANCELLED)
            else:
                left.append(request)
        return left

    def _recommend(self, requests: Sequence[_Heavy]) -> list[Answer]:
        fetched, limit = 0, self._limits.max_rule_items

        def check(items: int) -> None:
            nonlocal fetched
            fetched += items
            for request in requests:
                request.deadline.check()
            if fetched > limit:
                raise WorkRefused(f"invalid rules: must need at most {limit} items (max_rule_items), got {fetched}")

        queries = [query for request in requests for query in request.queries]
        try:
            with self._telemetry.executing():
                return self._experiments.recommend(queries, check, is_heavy=True)
        finally:
            execution = self._telemetry.executed()
            if execution.seconds[TOTAL] > 1e-3 * self._slow_ms:
                traces = [trace for request in requests for trace in request.traces]
                logger.warning("a slow execution of heavy requests", extra=_fields(traces, execution))

    def _fail(self, request: _Heavy, outcome: str, said: str, code: Any) -> None:
        self._send(request, outcome, error_response(said, code))

    def _send(self, request: _Heavy, outcome: str, response: Any) -> None:
        self._telemetry.ended(outcome)
        with contextlib.suppress(pb_utils.TritonModelException):  # the caller has gone
            request.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def error_response(said: str, code: Any) -> Any:
    """Return the response of a request that is not answered."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(said, code))


def response_of(outputs: dict[str, NDArray[Any]]) -> Any:
    """Return the response with some outputs."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()]
    )


def fields(requests: Sequence[Any], execution: Execution) -> dict[str, Any]:
    """Return what a log line tells of an execution: the traces that its requests belong to, rows, milliseconds."""
    return _fields([trace for request in requests for trace in _traces(request)], execution)


def _traces(request: Any) -> list[str]:
    trace = _TRACE.search(request.parameters())
    return [trace[1]] if trace else []


def _fields(traces: list[str], execution: Execution) -> dict[str, Any]:
    return {
        "fields": {
            "trace_ids": traces,
            "rows": execution.rows,
            "stages_ms": {stage: round(1e3 * seconds, 3) for stage, seconds in execution.seconds.items()},
        }
    }


def stack(answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
    """Make the output tensors of one request; rows with a smaller k are filled up with the tail.

    What is minus infinity to the pipeline travels as `NO_SCORE`. It is looked for only where a row ends in no item, as
    few do: with cold caches a call of numpy costs 10 us.
    """
    if len(answers) == 1:  # as most are
        ids, scores = answers[0].item_ids[None], answers[0].scores[None]
    else:
        width = max(len(answer.item_ids) for answer in answers)
        ids = np.full((len(answers), width), contract.NO_ID, dtype=np.int64)
        scores = np.full((len(answers), width), _NO_SCORE)
        for row, answer in enumerate(answers):
            ids[row, : len(answer.item_ids)] = answer.item_ids
            scores[row, : len(answer.item_ids)] = answer.scores
    if any(answer.item_ids[-1] == contract.NO_ID for answer in answers):
        scores = np.where(ids == contract.NO_ID, _NO_SCORE, scores)
    return {
        contract.ITEM_IDS: ids,
        contract.SCORES: scores,
        contract.FALLBACK: np.array([[answer.fallback] for answer in answers]),
        contract.IGNORED: np.array([[answer.ignored] for answer in answers], dtype=np.int32),
        contract.VERSION: np.array([[answer.version] for answer in answers], dtype=np.int64),
    }
