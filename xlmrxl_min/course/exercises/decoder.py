"""The exercises of notebooks/08_decoder.ipynb."""

from ..checks import exercise, randn

VOCABULARY = 4


def make_next_log_probs(seed):
    table = randn(VOCABULARY + 1, VOCABULARY + 1, VOCABULARY, seed=seed).mul(1.5).log_softmax(-1)

    def next_log_probs(tokens):
        """The last two tokens decide."""
        before = [VOCABULARY, VOCABULARY, *tokens]
        return table[before[-2], before[-1]].tolist()

    return next_log_probs


def beam_cases():
    return [
        (make_next_log_probs(seed), beams, length)
        for seed, beams, length in ((1, 2, 4), (6, 3, 5), (125, 3, 5), (6, 1, 3))
    ]


@exercise(beam_cases, hint="Each step: extend every beam by every token, add the log-probabilities, keep the best.")
def my_beam_search(next_log_probs, num_beams, length):
    beams = [(0.0, ())]
    for _ in range(length):
        longer = [
            (score + log_prob, (*tokens, token))
            for score, tokens in beams
            for token, log_prob in enumerate(next_log_probs(tokens))
        ]
        beams = sorted(longer, reverse=True)[:num_beams]
    return beams[0][1]


def beam_with(width=lambda n: n, add=lambda score, log_prob: score + log_prob, best=0, per_beam=None, prune=True):
    """my_beam_search with a mistake. per_beam: how many continuations of each beam are looked at."""

    def mistaken(next_log_probs, num_beams, length):
        beams = [(0.0, ())]
        for _ in range(length):
            longer = []
            for score, tokens in beams:
                pairs = enumerate(next_log_probs(tokens))
                found = [(add(score, log_prob), (*tokens, token)) for token, log_prob in pairs]
                longer += sorted(found, reverse=True)[:per_beam]
            beams = sorted(longer, reverse=True)[: width(num_beams)] if prune else longer
        return sorted(beams, reverse=True)[best][1]

    return mistaken


my_beam_search.misconceptions = {
    "That is greedy decoding: keep num_beams beginnings, not one.": beam_with(width=lambda n: 1),
    "A beginning's score is the sum of all its log-probabilities, not the last one.": beam_with(
        add=lambda score, log_prob: log_prob
    ),
    "Log-probabilities are added, not subtracted: the largest sum is the best.": beam_with(
        add=lambda score, log_prob: score - log_prob
    ),
    "Return the best beam, not the last.": beam_with(best=-1),
    "Each beam keeps its best continuation only: the best num_beams of all continuations may come from one beam.": (
        lambda next_log_probs, num_beams, length: one_each(next_log_probs, num_beams, length)
    ),
    "That is the most probable of all texts: keep num_beams beginnings after each step.": beam_with(prune=False),
}


def one_each(next_log_probs, num_beams, length):
    """The best first tokens, each continued greedily."""
    first = sorted(((log_prob, (token,)) for token, log_prob in enumerate(next_log_probs(()))), reverse=True)
    beams = first[:num_beams]
    for _ in range(length - 1):
        for i, (score, tokens) in enumerate(beams):
            log_prob, token = max((log_prob, token) for token, log_prob in enumerate(next_log_probs(tokens)))
            beams[i] = score + log_prob, (*tokens, token)
    return max(beams)[1]


check_beam_search = my_beam_search.check


def accept_cases():
    logits = randn(5, 9)
    best = logits.argmax(-1).tolist()
    wrong = [(token + 1) % 9 for token in best]
    drafts = [[*best[:2], wrong[2], best[3]], best[:4], wrong[:4], [wrong[0], *best[1:4]], [*best[:3], wrong[3]]]
    return [(draft, logits) for draft in drafts]


@exercise(accept_cases, hint="Row i of the logits predicts draft[i]; the last row predicts what follows the draft.")
def my_accept(draft, logits):
    best = logits.argmax(-1).tolist()
    for i, token in enumerate(draft):
        if token != best[i]:
            return best[: i + 1]
    return best


def agreed(draft, best):
    """How many tokens of the draft are right up to the first that is not."""
    wrong = [i for i, token in enumerate(draft) if token != best[i]]
    return wrong[0] if wrong else len(draft)


def accept_with(choose):
    """my_accept with a mistake. choose: the draft, the most probable tokens -> the result."""
    return lambda draft, logits: choose(draft, logits.argmax(-1).tolist())


my_accept.misconceptions = {
    "The draft is taken as it is: stop at the first token that the model would not write.": accept_with(
        lambda draft, best: [*draft, best[-1]]
    ),
    "These are the model's predictions everywhere: those after a wrong token of the draft continue a wrong text.": (
        accept_with(lambda draft, best: best)
    ),
    "Do not throw away the model's own token: where the draft is wrong, or ends, it is known already.": accept_with(
        lambda draft, best: draft[: agreed(draft, best)]
    ),
    "Later tokens that happen to agree continue a wrong text: stop at the first difference.": accept_with(
        lambda draft, best: [*(token for i, token in enumerate(draft) if token == best[i]), best[-1]]
    ),
    "The number of all agreements is not what counts: stop at the first difference.": accept_with(
        lambda draft, best: best[: sum(token == best[i] for i, token in enumerate(draft)) + 1]
    ),
    "The wrong token of the draft is in the result: the model's own stands there.": accept_with(
        lambda draft, best: draft[: agreed(draft, best) + 1] if agreed(draft, best) < len(draft) else best
    ),
    "A draft that is right everywhere is worth one token more: the last row predicts it.": accept_with(
        lambda draft, best: best[: min(agreed(draft, best) + 1, len(draft))]
    ),
}
check_accept = my_accept.check
