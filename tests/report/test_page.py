"""The report: whole, self-contained, escaped, and honest about what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest

from concordant.core.errors import ConcordantError, DataError
from concordant.report.figures import curve_metrics, curves, forest, save_png, svg
from concordant.report.page import page, report_of, write_report

VOID = {"meta", "br", "link", "img", "hr"}


class Balanced(HTMLParser):
    """Check that tags close in order (SVG included)."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return re.sub(r"\s+", " ", " ".join(parser.text))


def test_everything_a_reader_needs_is_there(result, tmp_path):
    text = read(page(result, tmp_path))
    for wanted in (
        "✔ supported",
        "✘ refuted",
        "? inconclusive",
        "+0.040",
        "+0.020 to +0.060",
        "Refuted by: GRPO reaches the same",
        "0.710 ± 0.014",
        "tied groups",
        "leaves out stage whitened (batch_zscore)",
        "grpo, seed 1",
        "concordant compare gdpo",
        "2.0 minutes of one core",
    ):
        assert wanted in text


def test_it_needs_no_network_and_no_script(result, tmp_path):
    text = page(result, tmp_path)
    assert not re.search(r"<script|<link|@import|<img|src\s*=", text)
    outside = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert all(
        "w3.org" in address or "purl.org" in address or "creativecommons" in address for address in outside
    )
    assert not re.search(r"href=\"http", re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S))


def test_foreign_text_is_escaped(result, make_run, tmp_path):
    make_run(completions=("<b>5</b>",) * 4)
    text = page(result, tmp_path / "gdpo")
    assert "<each>" not in text
    assert "<boom>" not in text
    assert "<b>5</b>" not in text
    assert "&lt;b&gt;5&lt;/b&gt;" in text


def test_the_same_result_gives_the_same_page(result, tmp_path):
    assert page(result, tmp_path) == page(result, tmp_path)


def test_a_result_without_claims_curves_or_spread(result, tmp_path):
    bare = {**result, "claims": [], "curves": {}, "failures": [], "failure_meters": {}, "seeds": [0]}
    bare["arms"] = {"gdpo": {"accuracy": [0.7]}}
    text = read(page(bare, tmp_path))
    assert "Learning curves" not in text
    assert "±" not in text.split("To repeat")[0]
    assert forest(bare) is None
    assert svg(curves(bare)) == ""
    assert save_png(None, tmp_path / "x.png") is None


def test_a_smoke_result_is_not_judged(result, tmp_path):
    for each in result["claims"]:
        each["verdict"] = "unjudged"
    assert "· not judged" in read(page(result, tmp_path))


def test_curves_of_claimed_metrics_come_first(result):
    result["curves"]["gdpo"][0][0]["another"] = 1.0
    assert curve_metrics(result) == ["accuracy", "another"]
    assert curve_metrics(result, most=1) == ["accuracy"]


def test_files_are_written_beside_the_runs(result, tmp_path):
    folder = tmp_path / "gdpo"
    folder.mkdir()
    path = write_report(result, folder)
    assert path == (folder / "report.html").resolve()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 1_000_000


def test_report_of_a_result_file_a_folder_and_a_run(result, make_run, tmp_path):
    run = make_run()
    comparison = tmp_path / "gdpo"
    (comparison / "result.json").write_text(json.dumps(result))
    assert report_of(comparison) == (comparison / "report.html").resolve()
    assert report_of(comparison / "result.json").name == "result.html"
    single = report_of(run, tmp_path / "one.html")
    text = read(single.read_text())
    assert "gdpo, arm gdpo, seed 0" in text
    assert "step 2: 2 + 2 =" in text


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f: f / "nothing", "does not exist"),
        (lambda f: f, "neither a run"),
        (lambda f: (f / "r.json").write_text("{") and f / "r.json", "not JSON"),
        (lambda f: (f / "config.json").write_text("{}") and f, "not finished"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, prepare, message):
    with pytest.raises(DataError, match=message):
        report_of(prepare(tmp_path))


def test_an_unwritable_place_is_named(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConcordantError, match="--out"):
        write_report(result, tmp_path, tmp_path / "file" / "r.html")
