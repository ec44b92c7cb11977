"""From the key that decides a part to the next part's picture on the screen, in Chromium on this machine.

A station judges pictures of four megapixels, each another one, nearly all of which fail; Chromium opens the queue, and keys
come from outside it, as from a keyboard. In the page a listener in the capture phase notes the event's own time stamp, which
is that of the input, before the page has heard of it. The page says in `data-verdict-id` of its canvas which part it has drawn
there; at that change `requestAnimationFrame` is asked for once: its callback runs as the frame with the new picture is being
made, and a message posted from it arrives as soon as that frame has been handed on to be shown. That is the end. Two frames in
a row would count one more that nobody waits for; the change alone would leave the drawing itself out. After each decision,
outside of what is measured, it is made sure that the canvas shows another picture than before.

The first pace is a person's, one decision every 600 ms, at which the page has time to fetch ahead; the second is five a second.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from linegate.errors import StationError
from linegate.infer import Inspector, prepare
from linegate.package import ModelPackage
from linegate.stages import Frame, Part, PixelFormat
from linegate_edge.bench_review_people import AGENT, log_in
from linegate_edge.bench_station import threshold_for
from linegate_edge.message import utc_now
from linegate_edge.records import Capture
from linegate_edge.review.access.client import COOKIE
from linegate_edge.settings import (
    EvidenceSection,
    HttpSection,
    ModelSection,
    MqttSection,
    RecipeSection,
    StationSection,
    StationSettings,
)
from linegate_edge.station import Station

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIZE_WH: Final = (2448, 1634)
PACES: Final = {"every 600 ms": 0.6, "five a second": 0.2}
DECISIONS: Final = 45
_FAILING: Final = len(PACES) * DECISIONS + 10
_GOOD: Final = 10
_OPTIONS: Final = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
_INSTALL: Final = "bench review drives a browser: pip install playwright, and apt-get install chromium"
_WATCH: Final = """
window.taken = [];
window.addEventListener("keydown", (event) => { window.pressedAt = event.timeStamp; }, { capture: true });
const channel = new MessageChannel();
let waiting = () => {};
channel.port1.onmessage = () => {
  window.taken.push(performance.now() - window.pressedAt);
  waiting();
};
window.shown = (count) => new Promise((resolve, reject) => {
  setTimeout(() => reject(new Error("the next picture does not come")), 20000);
  waiting = () => { if (window.taken.length >= count) resolve(); };
  waiting();
});
addEventListener("DOMContentLoaded", () => {
  const canvas = document.getElementById("picture");
  if (canvas === null) return;
  new MutationObserver(() => requestAnimationFrame(() => channel.port2.postMessage(null)))
    .observe(canvas, { attributes: true, attributeFilter: ["data-verdict-id"] });
  window.sketch = () => {
    const small = new OffscreenCanvas(24, 16).getContext("2d");
    small.drawImage(canvas, 0, 0, 24, 16);
    return Array.from(small.getImageData(0, 0, 24, 16).data).join(",");
  };
});
"""


def measure_page(folder: Path, package: Path, broker_port: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return milliseconds from key to picture at each pace, with a station whose store is made in `folder`.

    Raises:
        StationError: playwright or Chromium is not here, or the page does not show what it should.
    """
    with _browser() as open_page:
        tell(f"judging {_FAILING + _GOOD} pictures of {SIZE_WH[0]} × {SIZE_WH[1]}")
        station = _station(folder, package, broker_port)
        login = log_in(station, "reviewer")
        station.start()
        try:
            evidence_mib = _judge(station, folder)
            page: Page = open_page(AGENT)
            page.context.add_cookies([{"name": COOKIE, "value": login.secret, "url": station.address}])
            page.goto(f"{station.address}queue?kind=fail")
            page.wait_for_selector("#picture[data-verdict-id]")
            time.sleep(2)  # as somebody who sits down and looks at the first part
            taken = {}
            for name, pace_s in PACES.items():
                tell(f"deciding {DECISIONS} parts, {name}")
                taken[name] = _decide(page, pace_s)
                time.sleep(2)
        finally:
            station.stop()
    return {"size_wh": list(SIZE_WH), "evidence_mib": round(evidence_mib, 1), "milliseconds": taken}


@contextmanager
def _browser() -> Iterator[Callable[[str], Any]]:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise StationError(_INSTALL) from None
    with sync_playwright() as playwright:
        # Debian's own, where there is one; else the one that playwright has fetched.
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        except Error as error:
            raise StationError(f"{_INSTALL}: {str(error).splitlines()[0]}") from None

        def open_page(agent: str) -> Any:
            page = browser.new_context(user_agent=agent, viewport={"width": 1920, "height": 1080}).new_page()
            page.add_init_script(_WATCH)
            return page

        try:
            yield open_page
        except Error as error:
            raise StationError(f"the page of the queue: {error.message.splitlines()[0]}") from error
        finally:
            browser.close()


def _station(folder: Path, package: Path, broker_port: int) -> Station:
    inspector = Inspector(ModelPackage.load(package))
    spec = inspector.package.manifest.input
    scores = [
        float(inspector.run(prepare(picture(number), PixelFormat.MONO8, spec)[0])["score"][0])
        for number in range(_FAILING + _GOOD)
    ]
    return Station(
        StationSettings(
            station=StationSection(topic="linegate/bench/bench/bench/page", store=folder, deadline_ms=60_000),
            model=ModelSection(package=package),
            recipe=RecipeSection(threshold=threshold_for(scores, _FAILING / len(scores))),
            mqtt=MqttSection(port=broker_port),
            evidence=EvidenceSection(passed_share=1.0, min_free_mib=0),
            http=HttpSection(port=0),
        )
    )


def _judge(station: Station, folder: Path) -> float:
    """Have the pictures judged, and return how many MiB of evidence a picture is."""
    done = []
    for number in range(_FAILING + _GOOD):
        frame = Frame(picture(number), PixelFormat.MONO8, f"frame-{number}", "bench", "main", number, utc_now())
        done.append(station.line.submit(Capture(Part(f"part-{number:04d}", "counter"), frame)))
    decisions = [future.result().message["decision"] for future in done]
    if decisions.count("fail") < _FAILING - 5:
        raise StationError(
            f"{decisions.count('fail')} of {len(decisions)} pictures failed, too few to be decided: take another --model"
        )
    station.reviews.index.catch_up()
    sizes = [path.stat().st_size for path in (folder / "evidence").rglob("*.png")]
    return float(np.mean(sizes)) / 2**20


def picture(number: int) -> NDArray[np.uint8]:
    """Return a picture of a rough surface with a dark scratch, uint8 (H, W), another one for each number."""
    width, height = SIZE_WH
    rng = np.random.default_rng(number)
    fine = rng.normal(0, 4, (height, width)).astype(np.float32)
    coarse = cv2.resize(rng.normal(0, 1, (height // 32, width // 32)).astype(np.float32), (width, height))
    surface = 120 + 18 * coarse + fine
    x, y = rng.integers(300, width - 300), rng.integers(300, height - 300)
    angle = rng.uniform(0, np.pi)
    far = (int(x + 250 * np.cos(angle)), int(y + 250 * np.sin(angle)))
    cv2.line(surface, (int(x), int(y)), far, 40.0, int(rng.integers(6, 30)))
    made: NDArray[np.uint8] = np.clip(surface, 0, 255).astype(np.uint8)
    return made


def _decide(page: Page, pace_s: float) -> dict[str, float]:
    """Decide parts at a pace and return median, 95 % and the longest, milliseconds."""
    page.evaluate("window.taken.length = 0")
    due = time.monotonic()
    shown = page.evaluate("window.sketch()")
    for number in range(DECISIONS):
        time.sleep(max(0.0, due - time.monotonic()))
        due += pace_s
        page.keyboard.press("c" if number % 3 else "f")
        page.evaluate("count => window.shown(count)", number + 1)
        before, shown = shown, page.evaluate("window.sketch()")
        if shown == before:
            raise StationError("the page says that it shows the next part, and shows the same picture as before")
    taken: list[float] = page.evaluate("window.taken")
    if len(taken) != DECISIONS:
        raise StationError(
            f"{DECISIONS} parts were decided, and {len(taken)} pictures were drawn: what was measured is not known"
        )
    p50, p95 = (round(float(value), 1) for value in np.percentile(taken, (50, 95)))
    return {"p50": p50, "p95": p95, "max": round(max(taken), 1)}
