"""What all errors of this package have in common: a ValueError with one sentence, on one line."""

import re

import pytest


def refused(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def refused_literally(call, words=""):
    """As `refused`, but `words` are no pattern, and the sentence has more than five of them."""
    assert len(refused(call, re.escape(words) or ".").split()) > 5
