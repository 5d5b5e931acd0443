"""The report: complete, self-contained, harmless names, and pictures the right way round."""

from __future__ import annotations

import base64
import gc
import io
import re
import subprocess
import sys
import weakref
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medseg.config.schema import Evaluation
from medseg.errors import DataError
from medseg.evaluation import figures, report
from medseg.evaluation.overlay import CaseView
from medseg.evaluation.scores import Beside, score_case, summarise

EVIL = '<script>alert("x")</script>&$\\frac{$<img src=http://a.b/c>'
SETTINGS = Evaluation(lesions=True)
LOG = [
    *({"step": s, "loss": 1 / (s + 1), "lr": 1e-3, "note": "warm-up"} for s in range(0, 50, 5)),
    {"step": 50, "loss": float("nan"), "validation": {"mean": 0.45, "core": 0.5, EVIL: 0.4}},
]
SHAPE = (16, 14, 12)


class Page(HTMLParser):
    """Collects the tags, the attributes and the visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text += data

    @property
    def images(self):
        return [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]


def case(number, shape=SHAPE):
    """A case whose error grows with its number; number 0 is predicted without one."""
    rng = np.random.default_rng(number)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    truth = (noise > np.quantile(noise, 0.7)).astype(np.uint8) + (noise > np.quantile(noise, 0.9))
    prediction = np.roll(truth, number, axis=0)
    return prediction, truth, noise


def scored(count, classes=None):
    classes = classes or {"lesion": (1, 2), "core": (2,)}
    return [
        score_case(f"case_{n}", *case(n)[:2], (1.0, 1.0, 2.0), classes, SETTINGS)
        for n in range(count)
    ]


def view(case_id):
    prediction, truth, image = case(int(case_id.split("_")[1]))
    return CaseView(case_id, image, prediction, truth, np.diag([-1.0, 1.0, 2.0, 1.0]))


def written(tmp_path, contents, *args, **options):
    path = tmp_path / "report.html"
    report.write(path, contents, *args, **options)
    return Page(path.read_text(encoding="utf-8"))


def test_a_full_report(tmp_path):
    cases = scored(5)
    page = written(tmp_path, report.Report("Run 7", cases, SETTINGS, LOG, {"torch": "2.13"}), view)
    for heading in ("Summary", "Distributions", "Training", "Lesions", "Worst cases", "All cases"):
        assert heading in page.text
    summary = summarise(cases)
    assert f"{summary['mean_dice']:.3f}" in page.text
    assert f"{summary['classes']['core']['hd95_mm']['mean']:.2f}" in page.text
    assert f"missed ({summary['classes']['lesion']['pooled']['fn']})" in page.text
    assert all(f"case_{number}" in page.text for number in range(5))
    assert "torch2.13" in page.text
    assert page.tags.count("svg") == 4
    assert "Lesions found by size" in page.text
    assert "FROC" not in page.text  # nothing is known of how sure the predictions were
    assert len(page.images) == 5


def test_froc_is_drawn_where_confidences_are_known(tmp_path):
    beside = Beside(None, lambda values: np.linspace(0, 1, 16)[:, None, None] * np.ones(SHAPE))
    classes = {"lesion": (1, 2), "core": (2,)}
    cases = [
        score_case(f"{n}", *case(n)[:2], (1, 1, 2), classes, SETTINGS, None, beside)
        for n in range(4)
    ]
    page = written(tmp_path, report.Report("x", cases, SETTINGS))
    assert page.tags.count("svg") == 4
    found = summarise(cases, SETTINGS)["classes"]["core"]["froc"]
    assert f"core: mean of the circles {found['mean']:.3f}" in page.text
    assert f"{found['sensitivity']['0.25']:.3f}" in page.text
    nothing = score_case("0", *[case(0)[1] * 0] * 2, (1, 1, 1), classes, SETTINGS, None, beside)
    assert "FROC" not in written(tmp_path, report.Report("x", [nothing], SETTINGS)).text
    missed = score_case("0", case(0)[1] * 0, case(0)[1], (1, 1, 1), classes, SETTINGS, None, beside)
    assert "core: mean of the circles 0.000" in (
        written(tmp_path, report.Report("x", [missed], SETTINGS)).text
    )


def test_the_rule_is_told(tmp_path):
    for settings, told in (
        (SETTINGS, "overlaps it by at least an IoU of 0.1"),
        (Evaluation(lesions=True, lesion_rule="any_overlap", lesion_overlap=0.2), "at least 20 %"),
        (Evaluation(lesions=True, lesion_rule="any_overlap", lesion_overlap=0), "least one voxel"),
    ):
        found = score_case("x", *case(1)[:2], (1, 1, 1), {"core": (2,)}, settings)
        assert told in written(tmp_path, report.Report("x", [found], settings)).text


def test_it_opens_offline(tmp_path):
    page = written(tmp_path, report.Report("x", scored(3), SETTINGS, LOG), view)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:50])
    assert all(Image.open(_png(source)).format == "PNG" for source in page.images)
    assert "@import" not in (text := (tmp_path / "report.html").read_text())
    assert re.findall(r"url\((?!#)", text) == []


def _png(source):
    return io.BytesIO(base64.b64decode(source.split(",", 1)[1]))


def test_names_stay_text(tmp_path):
    found = score_case(
        EVIL, *case(2)[:2], (1.0, 1.0, 1.0), {EVIL: (1,), "$x$": (2,), "肿瘤": (1, 2)}, SETTINGS
    )

    def evil_view(case_id):
        raise DataError(case_id, EVIL)

    contents = report.Report(EVIL, [found], SETTINGS, LOG, {EVIL: EVIL})
    page = written(tmp_path, contents, evil_view)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.text.count(EVIL) >= 8  # title twice, tables, charts, caption, facts twice
    assert ">$x$<" in figures.box_plots([found])  # not set as a formula
    assert "肿瘤" in page.text


def test_a_name_does_not_leave_its_attribute(tmp_path):
    name = 'a" onload="alert(1)'
    found = score_case(name, *case(2)[:2], (1, 1, 1), {"core": (2,)}, SETTINGS)
    page = written(tmp_path, report.Report("x", [found], SETTINGS), lambda _: view("case_2"))
    assert ("img", "alt", name) in page.attributes
    assert "onload" not in {attribute for _, attribute, _ in page.attributes}


def test_only_the_worst_are_loaded_one_at_a_time(tmp_path):
    """A report over 500 cases must not hold 500 volumes."""
    asked, alive = [], []

    def counting(case_id):
        gc.collect()
        assert not any(reference() is not None for reference in alive)
        asked.append(case_id)
        loaded = view(case_id)
        alive.append(weakref.ref(loaded.image))
        return loaded

    cases = scored(6)
    page = written(tmp_path, report.Report("x", cases, SETTINGS), counting, drawn=3)
    assert asked == [found.case_id for found in sorted(cases, key=lambda c: c.dice)[:3]]
    assert "case_0" not in asked
    assert len(page.images) == 3


def test_a_case_that_cannot_be_read_is_named(tmp_path):
    def broken(case_id):
        if case_id == "case_2":
            raise DataError("b/case_2.nii.gz", "truncated")
        return view(case_id)

    page = written(tmp_path, report.Report("x", scored(3), SETTINGS), broken)
    assert "not drawn: b/case_2.nii.gz: truncated" in page.text
    assert len(page.images) == 2


def test_sections_without_content_are_left_out(tmp_path):
    plain = Evaluation()
    cases = [score_case("a", *case(1)[:2], (1, 1, 1), {"core": (2,)}, plain)]
    page = written(tmp_path, report.Report("x", cases, plain))
    assert "Summary" in page.text
    for heading in ("Training", "Lesions", "Worst cases", "This run"):
        assert heading not in page.text


def test_infinite_and_perfect_scores(tmp_path):
    """Nothing found anywhere: no finite distance to draw, and no warning from any chart."""
    truth = case(1)[1]
    missed = score_case("missed", truth * 0, truth, (1, 1, 1), {"core": (2,)}, SETTINGS)
    empty = score_case("empty", truth * 0, truth * 0, (1, 1, 1), {"core": (2,)}, SETTINGS)
    page = written(tmp_path, report.Report("x", [missed], SETTINGS))
    assert "∞" in page.text
    page = written(tmp_path, report.Report("x", [missed, empty], SETTINGS))
    assert "n = 1" in page.text
    written(tmp_path, report.Report("x", [empty], SETTINGS))


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one"):
        report.write(tmp_path / "report.html", report.Report("x", [], SETTINGS))
    assert list(tmp_path.iterdir()) == []


def test_size_with_noisy_images(tmp_path):
    """Noise is what compresses worst: twelve pictures of it, and thousands of scores."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(128, 128, 96))
    mask = np.zeros(noise.shape, np.uint8)
    mask[10:118, 12:100, 9:80] = 1
    wrong = np.roll(mask, 5, axis=1)

    def noisy(case_id):
        return CaseView(case_id, noise, wrong, mask, np.eye(4))

    cases = [scored(1)[0]] * 600
    cases = [type(c)(f"case_{n}", c.measures, c.lesions) for n, c in enumerate(cases)]
    written(tmp_path, report.Report("x", cases, SETTINGS, LOG * 100), noisy)
    assert (tmp_path / "report.html").stat().st_size < 5e6


def test_two_writes_are_equal(tmp_path):
    contents = report.Report("x", scored(2), SETTINGS, LOG)
    for name in ("a.html", "b.html"):
        report.write(tmp_path / name, contents, view)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, medseg.evaluation.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
