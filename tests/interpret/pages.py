"""What the tests of pages in a browser share."""

import json
import re


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def sentence_of(page):
    return page.text_content("#sentence")


def data_of(html):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])
