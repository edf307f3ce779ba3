"""Pages in a real browser; their tests are skipped where there is none."""

import pytest


@pytest.fixture
def open_page(browser):
    """Open a file in a new tab; at the end nothing may be logged, raised, or requested but the file itself."""
    opened = []

    def open_page(path, **options):
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, "color_scheme": "light", **options})
        events = []
        page.on("console", lambda message: events.append(message.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.on("request", lambda request: events.append(request.url))
        page.goto(path.as_uri())
        opened.append((page, events, path.as_uri()))
        return page

    yield open_page
    for page, events, url in opened:
        assert page.evaluate("window.hacked === undefined")
        page.close()
        assert events == [url]


@pytest.fixture
def show(open_page, tmp_path):
    return lambda explorer, **options: open_page(explorer.save(tmp_path / "page.html"), **options)
