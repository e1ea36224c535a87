"""The report in a real browser: nothing asked for, nothing complained of, no page too wide."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import NAMES, Browser, executable
from report_samples import breakdowns, curves_of, realistic, write

from experiments.sweeps.folder import PAGE
from experiments.sweeps.report.write import write as write_report

PROGRAM = executable()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"
)
PHONE, DESKTOP = 375, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    opened = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep with everything in it: scenarios, breakdown, published numbers."""
    rows = realistic(fs=(1, 3), gammas=(0.0, 0.66), seeds=2, defences=4, attacks=4)
    folder = write(
        tmp_path_factory.mktemp("sweep"),
        rows,
        curve_rows=curves_of(rows),
        breakdown_rows=breakdowns(),
        target=0.8,
        grid={"f": [1, 3], "partition": [0.0, 0.66]},
        published={"source": "A paper", "rows": [{"where": {"f": 1}, "value": 0.87}]},
    )
    write_report(folder)
    return folder / PAGE


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_asks_for_nothing_and_complains_of_nothing(
    browser: Browser, page: Path, width: int
) -> None:
    browser.open(page, width=width, mobile=width == PHONE)
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.errors == []
    assert browser.evaluate("document.title") == "A sweep"
    assert browser.evaluate("performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("width", [PHONE, 768, DESKTOP])
def test_the_page_is_no_wider_than_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width, mobile=width == PHONE)
    browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert browser.evaluate("document.body.scrollWidth") <= width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("innerWidth") == width


def test_wide_tables_scroll_in_their_own_box(browser: Browser, page: Path) -> None:
    browser.open(page, width=PHONE, mobile=True)
    inner, outer = browser.evaluate(
        "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('#leaderboard .scroll'))"
    )
    assert inner > outer
    assert outer <= PHONE


def test_a_number_leads_to_its_configurations(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESKTOP)
    lost = browser.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
        ".filter(id => document.querySelectorAll('[id=\"' + id + '\"]').length !== 1)"
    )
    assert lost == []
    browser.evaluate("document.querySelector('#attacks td a').click()")
    shown = "document.querySelector(':target').getBoundingClientRect().top"
    assert -1 <= browser.evaluate(shown) < 900
    assert "robust-agg run" in browser.evaluate("document.querySelector(':target').innerText")


def test_text_in_charts_can_be_read_on_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, width=PHONE, mobile=True)
    heights = browser.evaluate(
        "[...document.querySelectorAll('.chart svg text')]"
        ".map(text => text.getBoundingClientRect().height).filter(height => height > 0)"
    )
    assert len(heights) > 20
    assert min(heights) >= 8


def test_the_page_prints(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESKTOP)
    assert browser.pdf().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    hidden = browser.evaluate("getComputedStyle(document.querySelector('article')).display")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert hidden == "none"


def test_requests_and_complaints_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>')
    browser.open(bad, width=DESKTOP)
    assert "http://127.0.0.1:9/x.png" in browser.requests
    assert any("no" in error for error in browser.errors)
