"""The page of a tuning: the verdict first, the losses before the gains, harmless names, offline."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medseg.errors import DataError
from medseg.evaluation.overlay import BEFORE_COLOUR, CaseView, draw, upright
from medseg.tuning import report, report_figures, report_words
from medseg.tuning.result import CaseResult, Result

EVIL = '<script>alert("x")</script>&$\\frac{$<img src=http://a.b/c>'
DEFAULTS = {
    "spatial_mm": 3.0, "spatial_weight": 1.0, "appearance_mm": 12.0, "appearance_intensity": 0.3,
    "appearance_weight": 2.0, "temperature": 1.0, "iterations": 5,
}  # fmt: skip
WARM = {"temperature": 1.5}


class Page(HTMLParser):
    """Collects the tags, the attributes, the sections and the rows of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        if data.strip():
            self.words.append(data.strip())

    def section(self, heading):
        """The words from a heading on, to the end of the page."""
        return self.words[self.words.index(heading) :]


def case(name, changes, before=0.8):
    """A case with classes a, b, ... that change by so much; None: the class says nothing."""
    names = "abcdefgh"[: len(changes)]
    was = {n: None if change is None else before for n, change in zip(names, changes, strict=True)}
    now = {
        n: None if change is None else before + change
        for n, change in zip(names, changes, strict=True)
    }
    return CaseResult(name, was, now, WARM)


CASES = (case("gain", (0.02, 0.03)), case("loss", (-0.04, -0.01)), case("small", (-0.001, 0.0)),
         case("tiny", (0.001, 0.0)), case("blank", (None, None)))  # fmt: skip
RESULT = Result(
    name="crf", options=WARM, default_options=DEFAULTS, protect=("b",), accepted=False,
    still_runs=False,
    verdict="The CRF stays off: it changed nothing for sure.", score_name="dice",
    classes=("a", "b"), cases=CASES,
    intervals={"mean": (-0.005, -0.02, 0.015), "a": (0.0125, 0.004, 0.02),
               "b": (-0.03, -0.05, -0.01)},
    candidates=((None, 0.8), ({"iterations": 5}, 0.805), (WARM, 0.81)), seconds=93.0,
)  # fmt: skip


def volumes(case_id):
    truth = np.zeros((16, 14, 12), np.uint8)
    truth[4:11, 4:10, 3:9] = 1
    before, after = np.roll(truth, 2, 0), truth.copy()
    image = ndimage.gaussian_filter(truth * 100.0, 1)
    return CaseView(case_id, image, after, truth, np.diag([-1.0, 1.0, 2.0, 1.0]), before)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), RESULT)


def written(folder, result, view=volumes):
    path = folder / "crf.html"
    report.write(path, result, view)
    return Page(path)


def test_the_verdict_stands_first(page):
    heading = page.words.index("Tuning of crf: stays off", 1)
    assert page.words[heading + 1] == RESULT.verdict
    assert page.words[heading + 2 : heading + 12] == [
        "−0.0050", "mean change of Dice", "5", "held-out cases", "2", "better", "2", "worse",
        "1", "unchanged",
    ]  # fmt: skip


def test_an_accepted_result_says_so(tmp_path):
    found = written(tmp_path, replace(RESULT, accepted=True))
    assert "Tuning of crf: accepted" in found.text
    assert ("div", "class", "card verdict on") in found.attributes
    assert "predicts with it, as decided here" in found.text


def test_a_rejected_step_of_the_config_does_not_stay_off(tmp_path):
    found = written(tmp_path, replace(RESULT, still_runs=True))
    assert "Tuning of crf: rejected" in found.text
    assert "stays off" not in found.text.replace(RESULT.verdict, "")
    assert "predicts with the config's own options" in found.text
    assert "predicts without it, as decided here" not in found.text


def test_it_says_how_it_was_decided(page):
    told = page.section("How it was decided")[1]
    for part in ("in fewer than 2.5 % of all throws", "at least 6 cases", "1.6 minutes"):
        assert part in told


def test_losses_come_first_and_are_drawn_before_gains(tmp_path):
    asked = []

    def view(case_id):
        asked.append(case_id)
        return volumes(case_id)

    found = written(tmp_path, RESULT, view)
    assert asked == ["loss", "small", "gain", "tiny"]  # and none that did not change
    table = found.section("All cases, greatest loss first")
    order = [table.index(name) for name in ("loss", "small", "blank", "tiny", "gain")]
    assert order == sorted(order)
    assert table[table.index("loss") + 1 :][:7] == [
        "−0.0250", "0.800", "0.775", "0.760", "−0.0400", "0.790", "−0.0100",
    ]  # fmt: skip
    assert table[table.index("blank") + 1 :][:5] == ["0", "–", "–", "–", "–"]


def test_intervals_are_told_with_their_place_and_colour():
    svg = report_figures.forest(RESULT)
    for told in ("mean", "b (protected)", "+0.0125  (+0.0040 to +0.0200)"):
        assert f">{told}<" in svg
    assert interval_colours(svg) == ["grey", "blue", "orange"]
    unsure = {"mean": (0.005, -0.01, 0.02), "a": (0.1, 0.0, 0.2), "b": (-0.1, -0.2, 0.0)}
    assert (
        interval_colours(report_figures.forest(replace(RESULT, intervals=unsure))) == ["grey"] * 3
    )
    assert ">mean<" not in report_figures.forest(replace(RESULT, classes=("a",)))


def interval_colours(svg):
    names = {report_figures.FALSE: "grey", report_figures.FOUND: "blue",
             report_figures.MISSED: "orange"}  # fmt: skip
    return [names[c] for c in re.findall(r"stroke: (#[0-9a-f]{6})", svg) if c in names]


@pytest.mark.parametrize("change, end", [(0.1, "FOUND"), (-0.1, "MISSED")])
def test_each_case_runs_from_before_to_after(change, end):
    svg = report_figures.dumbbells(replace(RESULT, cases=(case("x", (change,), 0.5),)))
    colour = getattr(report_figures, end)
    bar = re.search(rf'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*stroke: {colour}', svg)
    start, stop = map(float, bar.groups())
    assert (stop > start) == (change > 0)


def test_cases_without_any_score_are_not_charted():
    assert "blank" not in report_figures.dumbbells(RESULT)
    assert report_figures.dumbbells(replace(RESULT, cases=(case("x", (None,)),))) == ""


def test_candidates_best_first_with_what_differs(page):
    told = page.section("What was tried")
    rows = told[told.index("Stored") + 1 :][:10]
    assert rows == ["temperature: 1.5", "0.8100", "5", "yes", "the defaults", "0.8050", "0",
                    "the step left out", "0.8000", "0"]  # fmt: skip


def test_every_option_with_its_default(page):
    table = page.section("The options")
    for name, default in DEFAULTS.items():
        place = table.index(name)
        chosen = {**DEFAULTS, **WARM}[name]
        assert table[place + 1 : place + 3] == [f"{chosen:g}", f"{default:g}"]


def test_an_option_without_a_default_must_be_given(tmp_path):
    options = {"mm3": 30.0}
    result = replace(RESULT, name="min_volume", options=options, default_options={"together": True},
                     candidates=((options, 0.8),))  # fmt: skip
    table = written(tmp_path, result).section("The options")
    place = table.index("mm3")
    assert table[place + 1 : place + 3] == ["30", "must be given"]
    assert table[table.index("together") + 1] == "yes"
    assert not any("--crf" in told for told in table)


def test_the_crf_in_words():
    told = report_words.in_words("crf", {**DEFAULTS, "spatial_mm": (3.0, 3.0, 5.0), **WARM})
    for part in ("within about 3, 3, 5 mm with weight 1,", "within about 12 mm that look alike",
                 "within about 0.3) pull on each other with weight 2.", "trusted less",
                 "divided by 1.5", "5 times"):  # fmt: skip
        assert part in told
    off = report_words.in_words("crf", {**DEFAULTS, "spatial_weight": 0, "appearance_weight": 0})
    assert "not looked at" in off
    assert "12" not in off
    assert "trusted" not in off
    assert report_words.in_words("min_volume", {"mm3": 1}) == ""


@pytest.mark.parametrize(
    "given, told",
    [(0.1 + 0.2, "0.3"), (26, "26"), (False, "no"), (None, "–"), ((1, 2.5), "1, 2.5"), ("a", "a")],
)
def test_values_as_one_writes_them(given, told):
    assert report_words.value(given) == told


def test_it_opens_offline(page):
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    sources = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href")]
    assert sources
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)


def test_names_stay_text(tmp_path):
    def refuse(case_id):
        raise DataError(case_id, EVIL)

    evil = CaseResult(EVIL, {EVIL: 0.5, "$x$": 0.5}, {EVIL: 0.4, "$x$": 0.4}, {EVIL: EVIL})
    result = replace(
        RESULT, name=EVIL, verdict=EVIL, cases=(evil,), classes=(EVIL, "$x$"), protect=(EVIL,),
        intervals={EVIL: (0.1, 0.0, 0.2)}, options={EVIL: EVIL}, candidates=(({EVIL: EVIL}, 0.5),),
    )  # fmt: skip
    found = written(tmp_path, result, refuse)
    assert not {"script", "img"} & set(found.tags)
    assert found.text.count(EVIL) >= 9
    assert "not drawn" in found.text


def test_long_ids_are_told_apart_where_they_differ():
    names = [f"a_very_long_name_of_a_hospital_{n:02d}_baseline" for n in range(60)]
    svg = report_figures.dumbbells(replace(RESULT, cases=tuple(case(n, (0.01,)) for n in names)))
    assert {f">…{n:02d}…<" in svg for n in range(60)} == {True}
    one = report_figures.dumbbells(replace(RESULT, cases=(case(names[7], (0.01,)),)))
    assert ">a_very_…" in one


def test_more_cases_than_the_chart_holds_are_in_the_table(tmp_path):
    cases = tuple(case(f"id{n}", (n / 1000,)) for n in range(62))
    found = written(tmp_path, replace(RESULT, cases=cases, classes=("a",)))
    assert "The 60 with the greatest loss of 62" in found.text
    assert "id61" in found.section("All cases, greatest loss first")
    svg = report_figures.dumbbells(replace(RESULT, cases=cases))
    assert ">id59<" in svg
    assert ">id60<" not in svg


def test_no_case_is_an_error(tmp_path):
    with pytest.raises(DataError, match="at least one case"):
        report.write(tmp_path / "crf.html", replace(RESULT, cases=()), volumes)


def test_the_picture_shows_what_was_before_where_it_changed():
    """The step removed a part far from the largest error; the planes go through that part."""
    truth = np.zeros((40, 40, 12), np.uint8)
    truth[4:20, 4:20, 2:8] = 1
    after = np.zeros_like(truth)  # the largest error is the whole lesion, missed before and after
    before = after.copy()
    before[28:34, 28:34, 8:11] = 1
    view = CaseView("x", truth * 9.0, after, truth, np.diag([1.0, 1.0, 3.0, 1.0]), before)
    assert count(view, BEFORE_COLOUR) > 50
    assert count(replace(view, before=None), BEFORE_COLOUR) == 0
    assert count(replace(view, before=after), BEFORE_COLOUR) == 0


def test_before_is_turned_with_the_rest():
    flipped = volumes("x")
    turned, _ = upright(flipped)
    np.testing.assert_array_equal(turned.before, flipped.before[::-1])
    np.testing.assert_array_equal(turned.truth, flipped.truth[::-1])


def count(view, colour):
    """Pixels of about a colour."""
    picture = np.asarray(Image.open(io.BytesIO(draw(view))).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture - wanted).max(axis=2) < 40).sum())
