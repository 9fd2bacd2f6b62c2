"""Every published `config.pbtxt` is complete and says what `ServingConfig` says."""

import dataclasses
import importlib.resources
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import fuserec
from fuserec.contract import MAX_BATCH, MODELS, RANK, RECOMMEND
from fuserec.errors import UsageError
from fuserec.manifest import Manifest
from fuserec.serve.settings import ServingConfig
from fuserec.serve.view import View


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("front_door", [RECOMMEND, RANK])
@pytest.mark.parametrize("model", MODELS)
def test_settings_of_every_model(model: str, front_door: str) -> None:
    models = [front_door, *(name for name in MODELS if name != front_door)]
    interface = (importlib.resources.files("fuserec") / "model_repository" / model / "config.pbtxt").read_text()
    config = parsed(ServingConfig(queue_size=7, queue_timeout_ms=2.5).complete(interface, model, models))
    assert config.max_batch_size == MAX_BATCH and not config.response_cache.enable
    assert config.version_policy.latest.num_versions == 1
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 0
    if model == front_door:
        assert config.instance_group[0].count == 2
        policy = batching.default_queue_policy
        assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.TimeoutAction.REJECT
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 2500)
        assert policy.allow_timeout_override
    else:
        assert config.instance_group[0].count == 1
        assert not batching.HasField("default_queue_policy"), "with one process calls would wait for 500 ms"


def test_ragged_inputs_may_share_a_batch() -> None:
    interface = (importlib.resources.files("fuserec") / "model_repository" / RECOMMEND / "config.pbtxt").read_text()
    ragged = [field.name for field in parsed(interface).input if list(field.dims) == [-1]]
    assert ragged == ["history", "exclude", "allow"]
    assert all(field.allow_ragged_batch for field in parsed(interface).input if field.name in ragged)


def test_published_configs_are_the_defaults(repository: Path) -> None:
    for model in Manifest.read(repository / "recommend" / "1").models:
        published = parsed((repository / model / "config.pbtxt").read_text())
        again = parsed((repository / model / "config.pbtxt").read_text())
        ServingConfig().apply(again, model, [RECOMMEND])
        assert published == again, model


def test_a_view_shows_one_version_with_its_settings(repository: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(repository / "recommend" / "1")
    view = View(tmp_path / "view", repository, ServingConfig(instances=3))
    view.show(manifest, manifest.models)
    assert sorted(path.name for path in view.folder.iterdir()) == sorted(manifest.models)
    config = parsed((view.folder / "recommend" / "config.pbtxt").read_text())
    assert config.instance_group[0].count == 3 and list(config.version_policy.specific.versions) == [1]
    assert (view.folder / "recommend" / "1").resolve() == (repository / "recommend" / "1").resolve()
    view.hide("recommend")
    assert (repository / "recommend" / "1" / "manifest.json").is_file(), "hiding a model removed its files"


def test_parse() -> None:
    assert ServingConfig.parse(["instances=3", "queue_timeout_ms=0.5"]) == ServingConfig(3, queue_timeout_ms=0.5)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("instances", "expected a number"),
        ("instances=two", "instances came as 'two'"),
        ("instances=0", "expected at least 1"),
        ("queue_timeout_ms=nan", "expected a positive number"),
        ("threads=2", "a name of instances"),
    ],
)
def test_what_is_no_setting(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ServingConfig.parse([setting])


def test_a_view_forgets_the_version_before(repository: Path, tmp_path: Path) -> None:
    """It may be removed from the repository, and the server does not load beside a link that leads nowhere."""
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    (copy / "recommend" / "1").rename(copy / "recommend" / "2")
    manifest = Manifest.read(repository / "recommend" / "1")
    view = View(tmp_path / "view", copy, ServingConfig())
    (view.folder / "recommend").mkdir()
    (view.folder / "recommend" / "1").symlink_to(copy / "recommend" / "1")
    view.show(dataclasses.replace(manifest, version=2), ["recommend"])
    assert sorted(path.name for path in (view.folder / "recommend").iterdir()) == ["2", "config.pbtxt", "shown"]


def test_the_input_for_perf_analyzer_fits_the_interface() -> None:
    config = parsed(
        (importlib.resources.files("fuserec") / "model_repository" / RECOMMEND / "config.pbtxt").read_text()
    )
    root = Path(fuserec.__file__).resolve().parents[2]
    entries = json.loads((root / "bench" / "perf_analyzer.json").read_text())["data"]
    inputs = {tensor.name: tensor for tensor in config.input}
    required = {name for name, tensor in inputs.items() if not tensor.optional}
    for entry in entries:
        assert required <= entry.keys() <= inputs.keys(), f"{entry} lacks an input, or has one that does not exist"
        for name, tensor in entry.items():
            assert tensor["shape"] == list(inputs[name].dims) and len(tensor["content"]) == tensor["shape"][0], name
