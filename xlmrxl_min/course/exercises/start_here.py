"""The exercises of notebooks/00_start_here.ipynb."""

import torch

from ...inference.predict import fill_mask
from ...model import XLMRobertaXLForMaskedLM
from ...tokenizer import XLMRobertaTokenizer
from ..checks import exercise, randn


def complete_cases():
    texts = ["Select the <mask> that you <mask> to use.", "You can <mask> and <mask> it.", "Click the but<mask>."]
    texts += ["选择<mask>,然后单击<mask>。", "El <mask> y la <mask> del <mask>.", "Nothing is masked here."]
    tiny = XLMRobertaXLForMaskedLM.from_pretrained("tiny"), XLMRobertaTokenizer.from_pretrained("tiny")
    return [(*tiny, text) for text in texts]


@exercise(complete_cases, hint="Each <mask> gets its own best prediction; a text without one stays as it is.")
def complete(model, tokenizer, text):
    if "<mask>" not in text:
        return text
    for predictions in fill_mask(model, tokenizer, text):
        text = text.replace("<mask>", predictions[0].text, 1)
    return text


def predict_all(model, tokenizer, text):
    return fill_mask(model, tokenizer, text) if "<mask>" in text else []


def complete_with(choose, count=1):
    """complete with a mistake. choose: tokenizer, predictions of each mask -> the texts to fill in, in order."""

    def mistaken(model, tokenizer, text):
        for chosen in choose(tokenizer, predict_all(model, tokenizer, text)):
            text = text.replace("<mask>", chosen, count)
        return text

    return mistaken


def complete_by_ids(skip_special_tokens):
    """complete with a mistake: encode, replace ids, decode."""

    def mistaken(model, tokenizer, text):
        best = iter(predictions[0].token_id for predictions in predict_all(model, tokenizer, text))
        ids = [next(best) if i == tokenizer.mask_token_id else i for i in tokenizer.encode(text)]
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    return mistaken


def complete_one_by_one(model, tokenizer, text):
    while "<mask>" in text:
        text = text.replace("<mask>", fill_mask(model, tokenizer, text)[0][0].text, 1)
    return text


def complete_words(model, tokenizer, text):
    best = iter(predictions[0].text for predictions in predict_all(model, tokenizer, text))
    return " ".join(next(best) if word == "<mask>" else word for word in text.split(" "))


def best_texts(results):
    return [predictions[0].text for predictions in results]


complete.misconceptions = {
    "Only the first <mask> is filled: there may be several.": complete_with(lambda _, results: best_texts(results)[:1]),
    "All have the first one's prediction: `replace` replaces everywhere, unless it is given a count.": (
        complete_with(lambda _, results: best_texts(results), count=-1)
    ),
    "These are the second predictions: counting begins at 0.": (
        complete_with(lambda _, results: [predictions[1].text for predictions in results])
    ),
    "The predictions are in reverse order: the first belongs to the first <mask>.": (
        complete_with(lambda _, results: best_texts(results)[::-1])
    ),
    "Ask the model once, for all masks: here a later prediction has seen the earlier ones.": complete_one_by_one,
    "There is a space too many: those that are needed are in the text.": (
        complete_with(lambda _, results: [f" {text}" for text in best_texts(results)])
    ),
    "These are tokens with their ▁: put in the `text` of a prediction.": (
        complete_with(lambda tokenizer, results: [tokenizer.convert_ids_to_tokens(x[0].token_id) for x in results])
    ),
    "Special tokens are left in it: change the text itself, not its ids.": complete_by_ids(skip_special_tokens=False),
    "Decoding has changed spaces, too: change the text itself, not its ids.": complete_by_ids(skip_special_tokens=True),
    "A <mask> need not be a whole word: one may be within a word, or before a full stop.": complete_words,
}
check_complete = complete.check


def most_attended_cases():
    tokens = ["<s>", "▁No", "▁one", "▁is", "▁no", "▁one", "</s>"]  # one of them twice
    return [((randn(n, n, seed=n) + torch.eye(n)).softmax(-1), tokens[-n:]) for n in (7, 4)]


@exercise(most_attended_cases, hint="A list with one token for each row.")
def most_attended(weights, tokens):
    return [tokens[i] for i in weights.argmax(-1)]


def select(tokens, indices):
    return [tokens[i] for i in indices]


most_attended.misconceptions = {
    "Rows are queries, columns are keys: these are the tokens that attend most to each.": (
        lambda weights, tokens: select(tokens, weights.argmax(0))
    ),
    "These are positions: return the tokens at them.": lambda weights, tokens: weights.argmax(-1),
    "These are the weights: return the tokens that get them.": lambda weights, tokens: weights.amax(-1),
    "That is the token to which each attends least.": lambda weights, tokens: select(tokens, weights.argmin(-1)),
    "A token may attend most to itself: that counts, too.": (
        lambda weights, tokens: select(tokens, (weights - torch.eye(len(weights))).argmax(-1))
    ),
    "Each row has its own largest weight: this is the token to which all together attend most.": (
        lambda weights, tokens: select(tokens, [weights.sum(0).argmax()] * len(tokens))
    ),
    "These are the tokens themselves: each attends to another one, or to itself.": lambda weights, tokens: tokens,
}
check_most_attended = most_attended.check
