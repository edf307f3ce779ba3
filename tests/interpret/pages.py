"""What the tests of pages in a browser share."""

import json
import re
import time


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def sentence_of(page):
    return page.text_content("#sentence")


def data_of(html):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def wait_until(frame, condition):
    """Wait until JavaScript is true, at most 30 s. wait_for_function repeats it by `eval`, which the page forbids."""
    end = time.monotonic() + 30
    while not frame.evaluate(condition):
        assert time.monotonic() < end, condition
        frame.wait_for_timeout(20)
