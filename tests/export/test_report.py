"""The quality report: the same numbers as JSON and as a page that stands alone."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fuserec.export.page import render


@pytest.fixture(scope="module")
def document(bundle: Path) -> dict:
    return json.loads((bundle / "quality.json").read_text())


def test_json_tells_what_was_asked_and_what_came(document: dict) -> None:
    assert document["gate"] == {"max_ndcg_loss": 0.01, "min_overlap": 0.95, "accept_loss": True}
    part = document["parts"]["user_tower"]
    assert part["asked"] == "what 115 users consumed next" and part["questions"] == 115
    assert [(rung["kind"], rung["precision"]) for rung in part["rungs"]] == [("cpu", "int8"), ("gpu", "int8")]
    for rung in part["rungs"]:
        assert rung["quantized_products"] == 6 and 0 < rung["parity_error"] < 0.2 and 0.8 < rung["overlap"] <= 1
    assert [(engine["target"], engine["published"]) for engine in part["engines"]] == [("cpu", True), ("sm89", True)]
    cpu, gpu = part["engines"]
    assert cpu["latency_ms"] > 0 and gpu["latency_ms"] is None, "what is not here is not timed"


def test_bytes_are_those_of_the_published_files(document: dict, bundle: Path) -> None:
    files = {"cpu": "user_tower.cpu.onnx", "sm89": "user_tower.sm89.engine"}
    for engine in document["parts"]["user_tower"]["engines"]:
        assert engine["bytes"] == (bundle / "engines" / files[engine["target"]]).stat().st_size


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [str(value) for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attributes if name in ("src", "href", "xlink:href")]


def test_page_is_whole_and_needs_nothing_else(bundle: Path) -> None:
    text = (bundle / "quality.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [], f"never closed: {page.open}"
    assert not [link for link in page.links if not link.startswith("#")], "it refers to something outside"
    assert "two-tower: what each precision costs" in text and text.count("<svg") == 2


def test_page_says_what_was_exported_when_and_how_it_is_chosen(document: dict) -> None:
    text = " ".join(render(document).split())
    data = document["data"]
    for part in (
        document["created"],
        document["checkpoint"][:12],
        f"{data['items']:,} items, {data['users']:,} users, {data['interactions']:,} interactions",
        "within 5% of its time the smallest",
        f"The most popular items alone reach an NDCG@10 of {document['parts']['user_tower']['popularity_ndcg']:.4f}",
        "±",
    ):
        assert part in text, f"{part!r} is missing"


def test_what_a_checkpoint_is_called_is_no_markup(document: dict) -> None:
    assert "<script>" not in render(document | {"architecture": "<script>alert(1)</script>"})


def test_the_same_numbers_draw_the_same_page(document: dict) -> None:
    assert render(document) == render(document)
