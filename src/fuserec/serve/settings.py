"""How the server runs its models: queues, batches, processes. What a model takes and returns is in its `config.pbtxt`.

An export completes each `config.pbtxt` by the defaults; `fuserec serve --set NAME=VALUE` runs with others.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from fuserec.contract import FRONT_DOORS
from fuserec.errors import UsageError
from fuserec.serve.limits import PARAMETER, Limits

DeviceName = Literal["auto", "cpu", "cuda"]
RowsPlace = Literal["device", "host"]
_CHOICES: Final = {"device": get_args(DeviceName), "device_rows": get_args(RowsPlace)}

# With fewer, a queue policy makes calls wait for nothing, see `ServingConfig.instances`.
FEWEST_FOR_A_POLICY = 2


@dataclass(frozen=True)
class ServingConfig(Limits):
    """What may be set where a repository is served: how its models run, and the limits of a request, see `Limits`.

    Attributes:
        instances: Processes of the front door (`recommend`; `rank` where nothing is retrieved). Each has an interpreter
            of its own, so two of them use two cores for what is Python, and maps the same pages of the index. A queue
            policy needs two: with one, the scheduler of server 2.51 leaves a request alone for 500 ms that comes in
            the moment after an answer, before the process waits for the next.
        stage_instances: Processes of each of the other models, which are called less. With one they have no queue
            policy, for that reason.
        queue_size: Requests that may wait for one model; the next one is refused as UNAVAILABLE at once. It bounds the
            memory of the queue. Server 2.51 does not count such refusals, and it counts those of `queue_timeout_ms`: so
            that is to come first, and the queue to hold more than what waits for so long.
        queue_timeout_ms: Milliseconds that a request may wait before it is refused: who waits longer has no use for the
            answer. A caller's own `timeout` counts where it is shorter, so that nothing is computed for nobody.
        queue_delay_us: Microseconds that a request waits for company. 0: those that come while a batch runs form the
            next one, which costs no latency. With more, servers without pull request 509 of
            triton-inference-server/core (July 2026) lose throughput by and by under a queue policy.
        device: Where the search and the networks run: `cuda` refuses to start where it cannot, `auto` takes a CUDA
            device where one has room, see `fuserec.serve.device`.
        device_rows: Where the vectors lie that are scored exactly once the codes on the device have ruled out the rest:
            on the `device`, or in memory of the `host`, for tables that the device has no room for.

    Raises:
        UsageError: One of them is out of its range.
    """

    instances: int = 2
    stage_instances: int = 1
    queue_size: int = 8192
    queue_timeout_ms: float = 1_000.0
    queue_delay_us: int = 0
    device: DeviceName = "auto"
    device_rows: RowsPlace = "device"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"invalid {name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        for name, least in (("instances", 1), ("stage_instances", 1), ("queue_size", 1), ("queue_delay_us", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} came as {getattr(self, name)}, expected at least {least}")
        if not math.isfinite(self.queue_timeout_ms) or self.queue_timeout_ms <= 0:
            raise UsageError(f"queue_timeout_ms came as {self.queue_timeout_ms}, expected a positive number")

    @classmethod
    def parse(cls, settings: Sequence[str]) -> ServingConfig:
        """Read `NAME=VALUE` settings, as the command line has them.

        Raises:
            UsageError: A name is unknown or a value is not a number in its range.
        """
        defaults = cls()
        of_requests = {field.name for field in dataclasses.fields(Limits)}
        names = sorted((field.name for field in dataclasses.fields(cls)), key=of_requests.__contains__)
        kinds = {name: type(getattr(defaults, name)) for name in names}
        values: dict[str, float | str] = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in kinds:
                raise UsageError(f"--set came as {setting!r}, expected NAME=VALUE with a name of {', '.join(kinds)}")
            try:
                values[name] = kinds[name](text)
            except ValueError:
                raise UsageError(f"{name} came as {text!r}, expected a number ({kinds[name].__name__})") from None
        return cls(**values)  # type: ignore[arg-type]  # each was made by the type of its field

    def instances_of(self, model: str, front_door: str) -> int:
        """Return the number of processes of a model."""
        return self.instances if model == front_door else self.stage_instances

    def complete(self, interface: str, model: str, models: Sequence[str]) -> str:
        """Return the whole `config.pbtxt` of a model.

        Args:
            interface: Its name, inputs and outputs.
            model: Which it is.
            models: All models of the repository, the front door first.
        """
        if models[0] not in FRONT_DOORS:
            raise ValueError(f"models came as {models}, expected a front door first")
        count = self.instances_of(model, models[0])
        policy = _POLICY.format(size=self.queue_size, timeout=round(1e3 * self.queue_timeout_ms))
        return interface + _SETTINGS.format(
            count=count,
            delay=self.queue_delay_us,
            policy=policy if count >= FEWEST_FOR_A_POLICY else _NO_POLICY,
            name=PARAMETER,
            limits=json.dumps(self.to_parameter()),  # a string in quotes
        )

    def apply(self, config: Any, model: str, models: Sequence[str]) -> None:
        """Set in a parsed `ModelConfig` what `complete` writes."""
        from google.protobuf import text_format

        for field in ("version_policy", "instance_group", "dynamic_batching", "response_cache"):
            config.ClearField(field)
        config.parameters.pop(PARAMETER, None)
        text_format.Merge(self.complete("", model, models), config)


_SETTINGS = """
# From here on: fuserec.serve.settings.ServingConfig, where each number has its reason.
version_policy {{ latest {{ num_versions: 1 }} }}
# CPU: which GPU to use is the business of the engine inside. Warm-up happens inside too, before a process is ready:
# what the server could send of its own is zeros or noise.
instance_group [ {{ kind: KIND_CPU count: {count} }} ]
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
{policy}}}
# What one request may cost.
parameters {{ key: "{name}" value: {{ string_value: {limits} }} }}
# Answers depend on what was published, not on the request alone: a cache would outlive a swap.
response_cache {{ enable: false }}
"""
_POLICY = """\
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {timeout}
    allow_timeout_override: true
    max_queue_size: {size}
  }}
"""
_NO_POLICY = """\
  # No queue policy with a single process: server 2.51 then answers some calls only after 500 ms.
"""
