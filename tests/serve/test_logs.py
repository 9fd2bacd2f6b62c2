"""Log lines, and what the launcher tells its server and the models of them."""

from __future__ import annotations

import datetime
import json
import logging

import pytest

from fuserec.errors import UsageError
from fuserec.serve.logs import LineFormatter
from fuserec.serve.observing import Observing


def line(form: str, exception: bool = False) -> str:
    record = logging.LogRecord("fuserec.serve", logging.WARNING, "", 0, "slow: %s", ("yes\nno",), None)
    record.fields = {"rows": 3, "trace_ids": ["ab"]}
    if exception:
        try:
            raise ValueError("what")
        except ValueError as error:
            record.exc_info = (type(error), error, error.__traceback__)
    return LineFormatter(form, {"model": "recommend", "version": 2}).format(record)


def test_json_line() -> None:
    text = line("json", exception=True)
    assert "\n" not in text
    document = json.loads(text)
    when = datetime.datetime.fromisoformat(document.pop("time"))
    assert abs(when - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    assert document.pop("exception").endswith("ValueError: what")
    assert document == {
        "level": "WARNING",
        "logger": "fuserec.serve",
        "message": "slow: yes\nno",
        "model": "recommend",
        "version": 2,
        "rows": 3,
        "trace_ids": ["ab"],
    }


def test_text_line() -> None:
    assert line("text") == "WARNING fuserec.serve: slow: yes\nno rows=3 trace_ids=['ab']"


def test_models_are_told_by_variables() -> None:
    observing = Observing(log_format="json", slow_ms=12.5)
    assert Observing.of_environment(observing.environment) == observing
    assert Observing.of_environment({}) == Observing()


def test_server_is_told_by_options() -> None:
    assert not any("trace-config" in option for option in Observing().options)
    options = Observing(otlp="http://collector:4318/v1/traces", trace_rate=10).options
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in options
    assert "--trace-config=rate=10" in options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_format": "xml"}, "'xml', expected text or json"),
        ({"slow_ms": 0.0}, "slow_ms came as 0.0"),
        ({"slow_ms": float("nan")}, "slow_ms came as nan"),
        ({"trace_rate": 0}, "the trace rate came as 0"),
        ({"otlp": "collector:4318"}, "--otlp came as 'collector:4318'"),
        ({"otlp": "http://a,level=OFF"}, "--otlp came as"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Observing(**arguments)  # type: ignore[arg-type]
