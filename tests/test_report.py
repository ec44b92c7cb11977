"""The report, opened in Debian's Chromium without a network: it stands on its own, and shows what was measured."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from conftest import SIZE, encode, write_spot_package
from linegate import cli
from linegate.errors import DataError
from linegate.package import ModelPackage
from linegate_training.data.folder import read_folder
from linegate_training.data.parts import Box
from linegate_training.evaluate import Measured, measure, summarise
from linegate_training.report import render, write_report
from linegate_training.report_charts import Axis, Chart
from linegate_training.report_summary import verdict
from linegate_training.report_text import markdown, number

WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


def make_set(root: Path, goods: int = 24, defects: int = 40, masks: bool = True) -> Path:
    """Write dark pictures, of which defective ones have a spot of 2 to 24 pixels: the smaller, the fainter."""
    random = np.random.default_rng(2)
    for index in range(goods):
        picture = random.integers(20, 120, (SIZE, SIZE), dtype=np.uint8)
        if index < 3:
            # A good part with a glare, which the spot model rejects.
            picture[8:16, 8:16] = 240
        (root / "test/good").mkdir(parents=True, exist_ok=True)
        (root / "test/good" / f"{index:03d}.png").write_bytes(encode(picture))
    for index in range(defects):
        label = ("chip", "scratch & <b>dent")[index % 2]
        picture, mask = random.integers(20, 120, (SIZE, SIZE), dtype=np.uint8), np.zeros((SIZE, SIZE), np.uint8)
        side, left, top = int(random.integers(2, 25)), int(random.integers(0, 40)), int(random.integers(0, 40))
        mask[top : top + side, left : left + side] = 255
        picture[mask > 0] = min(255, 150 + int(random.integers(0, 9)) * side)
        for folder, name, pixels in (("test", f"{index:03d}.png", picture), ("ground_truth", f"{index:03d}_mask.png", mask)):
            if folder == "test" or masks:
                (root / folder / label).mkdir(parents=True, exist_ok=True)
                (root / folder / label / name).write_bytes(encode(pixels))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("data") / "plates")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_spot_package(tmp_path_factory.mktemp("package") / "spots")


@pytest.fixture(scope="module")
def measured(package: ModelPackage, data: Path) -> Measured:
    return measure(package, read_folder(data, to_learn=False))


@dataclass
class Opened:
    """A report in the browser, with what the browser asked for and complained of."""

    page: Page
    requests: list[str]
    complaints: list[str]

    def headings(self) -> list[str]:
        return self.page.locator("h2").all_inner_texts()

    def text(self) -> str:
        return self.page.locator("body").inner_text()


Look = Callable[[Path], Opened]


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Open a file in the browser, the network switched off."""
    context = browser.new_context(viewport={"width": 768, "height": 1024}, offline=True)

    def opened(path: Path) -> Opened:
        page = context.new_page()
        found = Opened(page, [], [])
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("console", lambda message: found.complaints.append(message.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.add_init_script(WATCH_POLICY)
        page.goto(path.as_uri())
        return found

    yield opened
    context.close()


def write(path: Path, measured: Measured, **more: object) -> Path:
    write_report(path, measured, **more)  # type: ignore[arg-type]
    return path


def test_report_of_parts_without_defects_says_so(package: ModelPackage, tmp_path: Path, look: Look) -> None:
    parts = read_folder(make_set(tmp_path / "goods", goods=5, defects=0), to_learn=False)
    opened = look(write(tmp_path / "report.html", measure(package, parts)))
    assert "there were no defective parts to tell apart from" in opened.text()
    assert "one kind is missing here" in opened.text()
    assert "Detection against defect size" not in opened.headings()
    assert "Where the map points" not in opened.headings()
    assert opened.complaints == []


def test_report_of_parts_without_good_ones_or_masks_says_so(package: ModelPackage, tmp_path: Path, look: Look) -> None:
    parts = read_folder(make_set(tmp_path / "bad", goods=0, defects=4, masks=False), to_learn=False)
    opened = look(write(tmp_path / "report.html", measure(package, parts)))
    assert "there were no good parts to tell apart from" in opened.text()
    assert "There were no good test parts." in opened.text()
    assert "Detection against defect size" not in opened.headings()
    assert opened.complaints == []


def test_report_opens_without_a_network_and_shows_all(measured: Measured, tmp_path: Path, look: Look) -> None:
    history = [{"epoch": index, "loss": 1.0 / (index + 1), "validation_ap": 0.5 + 0.05 * index} for index in range(6)]
    path = write(tmp_path / "run/report.html", measured, history=history, sections=[("Notes", "Made in **Graz**.")])
    opened = look(path)
    page = opened.page
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]
    assert opened.complaints == []
    assert page.evaluate("window.violations") == []
    assert opened.headings() == [
        "Data and split", "How well it tells good from defective", "Scores and operating point", "Decisions by class",
        "Worst escapes", "Worst false rejects", "Detection against defect size", "Where the map points", "Training", "Speed",
        "Parity", "Notes", "Card",
    ]  # fmt: skip
    # Six escapes and three false rejects, a photograph and a heat map each.
    widths = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 2 * (6 + 3)
    assert all(0 < width <= 320 for width in widths)
    assert all(page.locator("img").evaluate_all("images => images.map(image => image.alt)"))
    # ROC, precision-recall, scores, size, two of training.
    assert page.locator("svg[role=img][aria-label]").count() == 6
    drawn = page.locator("svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert all(height > 100 for height in drawn)
    # Nothing hangs over a tablet's edge.
    assert page.evaluate("document.documentElement.scrollWidth") <= 768
    assert page.locator("tbody tr").count() == page.locator('tbody th[scope="row"]').count()


def test_report_states_the_numbers_of_the_evaluation(measured: Measured, tmp_path: Path, look: Look) -> None:
    opened = look(write(tmp_path / "report.html", measured))
    values, text = summarise(measured), opened.text().replace("\u00a0", " ")
    assert verdict(values).replace("\u00a0", " ") in text
    assert f"{values['escapes']} of 40 defective parts pass" in text
    assert "rejects 3 of 24 good ones (12.5 %, 95 %: 2.7 to 32.4 %)" in text
    assert f"{values['image_auroc']:.3f}" in text
    assert f"{values['pixel_iou']:.3f}" in text
    row = opened.page.locator("tr", has=opened.page.locator("th", has_text="chip")).first.inner_text().split()
    counts = values["decisions_by_class"]["chip"]
    assert row[1:5] == [str(counts["pass"]), str(counts["undecided"]), str(counts["fail"]), "20"]
    assert "Sees bright spots." in text


def test_report_shows_names_as_they_are_and_runs_nothing_in_them(measured: Measured, tmp_path: Path, look: Look) -> None:
    opened = look(write(tmp_path / "report.html", measured))
    assert "scratch & <b>dent" in opened.text()
    assert "script" not in re.findall(r"<(\w+)", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_report_follows_the_readers_light_or_dark(measured: Measured, tmp_path: Path, look: Look) -> None:
    opened = look(write(tmp_path / "report.html", measured))
    papers = []
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        papers.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers[0] == "rgb(255, 255, 255)"
    assert papers[0] != papers[1]


def test_report_of_a_typed_package_tells_classes_apart(measured: Measured, tmp_path: Path, look: Look) -> None:
    names = sorted({part.sample.label for part in measured.parts if part.sample.defective})
    labels = ("good", *names)
    manifest = measured.package.manifest.model_copy(update={"labels": labels})
    parts = tuple(
        dataclasses.replace(
            part,
            class_scores={name: 0.9 if (name == names[0]) == (index % 3 > 0) else 0.1 for name in names},
            sample=dataclasses.replace(part.sample, boxes=(Box(names[0], (0, 0, 9, 9)),)),
        )
        for index, part in enumerate(measured.parts)
    )
    typed = dataclasses.replace(measured, parts=parts, package=dataclasses.replace(measured.package, manifest=manifest))
    opened = look(write(tmp_path / "report.html", typed))
    assert "Defect classes" in opened.headings()
    assert "AP50" in opened.text()
    assert "called chip" in opened.text()


def test_report_carries_the_card_of_the_package_as_written_in_the_end(measured: Measured, tmp_path: Path) -> None:
    final = dataclasses.replace(measured.package, files={**measured.package.files, "card.md": b"# Final words\n"})
    write_report(tmp_path / "report.html", measured, final)
    assert "<h3>Final words</h3>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_counts_what_other_thresholds_would_do(package: ModelPackage, tmp_path: Path) -> None:
    """Good parts of 10 and 20 of 255, the latter twice, and defective ones of 20 and 255."""
    for index, (label, grey) in enumerate([("good", 10), ("good", 20), ("good", 20), ("spot", 20), ("spot", 255)]):
        (tmp_path / "test" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / label / f"{index}.png").write_bytes(encode(np.full((SIZE, SIZE), grey, np.uint8)))
    page = render(measure(package, read_folder(tmp_path, to_learn=False))).replace("\u00a0", " ")
    rows = re.findall(
        r'<tr><th scope="row">(\d of 3 [^<]*)</th><td class="number">([^<]*)</td><td class="number">([^<]*)<', page
    )
    assert rows == [("0 of 3 (0.0 %)", "0.07843", "50.0 % (1.3 to 98.7 %)")]


def test_report_tells_of_test_parts_seen_in_training(measured: Measured) -> None:
    page = render(dataclasses.replace(measured, seen=3))
    assert "3 of 64 test images are among those that the package learned from. The numbers flatter" in page


def test_report_that_cannot_be_written_is_one_line(measured: Measured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="the report cannot be written"):
        write_report(tmp_path / "file/report.html", measured)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(DataError, match="the report cannot be written"):
        write_report(tmp_path / "report.html", measured)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report.html"]


def test_evaluate_writes_the_report_it_is_asked_for(
    package: ModelPackage, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reports/plates.html"
    assert cli.main(["evaluate", str(package.location), str(data), "--report", str(path)]) == 0
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert f"wrote {path}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["report.txt", "", "package"])
def test_evaluate_refuses_a_report_where_none_may_be(
    package: ModelPackage, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = package.location / "report.html" if name == "package" else tmp_path / name
    assert cli.main(["evaluate", str(package.location), str(data), "--report", str(path)]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "--report" in line]
    assert "name a" in line
    assert not list(tmp_path.iterdir())


def test_chart_keeps_every_point_on_the_paper() -> None:
    chart = Chart(Axis("x", 0, 1), Axis("y", 0, 1), "t", "d", width=200, height=100)
    chart.line(np.array([-5.0, 0.5, 9.0]), np.array([-5.0, 0.5, 9.0]), "model")
    points = re.search(r'points="([^"]+)"', chart.svg())
    assert points is not None
    pairs = [tuple(map(float, pair.split(","))) for pair in points[1].split()]
    assert all(0 <= x <= 200 and 0 <= y <= 100 for x, y in pairs)


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (Axis("x", 0, 1, percent=True), ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]),
        (Axis("x", -1, 1, mirrored=True), ["1", "0.5", "0", "0.5", "1"]),
        (Axis("x", 3, 120, log=True), ["5", "10", "20", "50", "100"]),
        (Axis("x", 31, 44, log=True), ["35", "40"]),
        (Axis("x", 7, 7), ["7"]),
    ],
)
def test_axis_is_labelled_with_round_numbers(axis: Axis, labels: list[str]) -> None:
    assert [label for _, label in axis.ticks()] == labels


def test_numbers_are_written_as_people_do() -> None:
    assert [number(value) for value in (None, 0.0, 1234567.0, -0.12345, 12.0)] == ["–", "0", "1,234,567", "−0.123", "12"]


def test_markdown_of_cards_becomes_html_and_nothing_else_does() -> None:
    text = "# A\n\nSays `x < y`.\nMore.\n\n- one\n  goes on\n- two\n\n| a | b |\n|---|---|\n| 1 | <i> |\n\n"
    made = markdown(text + "```sh\nrm <x>\n```\n> said\n")
    assert "<h3>A</h3>" in made
    assert "<p>Says <code>x &lt; y</code>. More.</p>" in made
    assert made.count("<li>") == 2
    assert '<th scope="row">1</th><td>&lt;i&gt;</td>' in made
    assert "<pre><code>rm &lt;x&gt;</code></pre>" in made
    assert "<blockquote>said</blockquote>" in made
    assert markdown("") == ""
