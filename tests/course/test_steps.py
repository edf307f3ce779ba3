"""The steps: from stubs to `my_model.py` and the library's logits; every misconception gets its sentence."""

import ast
import importlib.util
import json
import re
import textwrap
from pathlib import Path

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForMaskedLM
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.course import steps
from xlmrxl_min.course.checks import NO_RESULT
from xlmrxl_min.course.notebooks import FOLDER, GLOSSARY_LINK, read_notebook, source
from xlmrxl_min.course.steps import ANSWER, ANSWERS, FILE, NEW_FILE, NOTEBOOKS, STEPS, add, my_model, solution, stub
from xlmrxl_min.training.texts import udhr

ENCODERS = sorted(
    path.parent.name
    for path in PRETRAINED.glob("*/config.json")
    if json.loads(path.read_text())["architectures"] == ["XLMRobertaXLForMaskedLM"]
)
CLASSES = [name for name, step in STEPS.items() if isinstance(step.solution, type)]
TEXTS = ["All human beings are <mask> free.", "No", "Alle Menschen sind frei und <mask> an Würde und Rechten geboren."]

each_step = pytest.mark.parametrize("name", STEPS)


@pytest.fixture(autouse=True)
def learner_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read():
    return Path(FILE).read_text(encoding="utf-8")


def definitions(text):
    return [node.name for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def import_file(path):
    """The learner's file by itself, without any stand-in."""
    spec = importlib.util.spec_from_file_location("my_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the whole path


def test_from_stubs_to_the_logits_of_every_encoder(learner_folder, monkeypatch, capsys):
    """In IPython, as in a notebook: each cell first with the stub, then with the solution, then once more."""
    monkeypatch.setenv("IPYTHONDIR", str(learner_folder / "ipython"))
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))

    def run_cell(text):
        shell.run_cell(text).raise_error()
        return capsys.readouterr().out.strip()

    run_cell("%load_ext xlmrxl_min.course.steps")
    for number, name in enumerate(STEPS, 1):
        assert not run_cell(f"%%my_model\n{stub(name)}").startswith("Right")
        for _ in range(2):
            message = run_cell(f"%%my_model\n{ANSWERS[name]}")
            assert message == f"Right! `{name}` is in {FILE} now, which has {number} of {len(STEPS)} parts."
    assert definitions(read()) == list(STEPS) == definitions(ANSWER)
    assert run_cell("from xlmrxl_min.course.steps import my_model; mine = my_model()") == (
        f"{len(STEPS)} of {len(STEPS)} parts are yours; nothing is missing."
    )
    mine = import_file(learner_folder / FILE)
    for checkpoint in ENCODERS:
        library = XLMRobertaXLForMaskedLM.from_pretrained(checkpoint)
        sp = XLMRobertaTokenizer.from_pretrained(checkpoint).sp_model
        ids = mine.pad_rows([mine.encode(text, sp) for text in TEXTS])
        with torch.no_grad():
            logits = mine.load(PRETRAINED / checkpoint)(ids)
            expected = library(ids, attention_mask=(ids != 1).long()).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_path_has_encoders_with_and_without_relative_positions():
    kinds = {
        json.loads((PRETRAINED / name / "config.json").read_text())["position_embedding_type"] for name in ENCODERS
    }
    assert kinds >= {"absolute", "relative_key"}


def test_ids_are_those_of_the_tokenizer():
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl")
    texts = [*TEXTS, "", "<mask><mask>", "  two  spaces ", *(row.text for row in udhr() if row.article == 1)]
    assert [solution.encode(text, tokenizer.sp_model) for text in texts] == tokenizer(texts).input_ids


def test_the_order_of_the_steps_does_not_matter():
    for name in reversed(STEPS):
        assert add(ANSWERS[name]).startswith("Right!")
    assert read() == NEW_FILE + "\n\n" + "\n\n\n".join(ANSWERS.values()) + "\n"


def test_the_model_answer_is_short_and_each_notebook_has_four_to_six_steps():
    assert len([line for line in ANSWER.splitlines() if line.strip()]) <= 310
    for part in NOTEBOOKS:
        assert 4 <= sum(value in STEPS.values() for value in vars(part).values()) <= 6, part.__name__


# ---- each step


@each_step
def test_solution_is_right(name):
    assert STEPS[name].check(STEPS[name].solution) == "Right!"


@pytest.mark.parametrize(
    ("name", "message"), [(name, message) for name, step in STEPS.items() for message in step.misconceptions]
)
def test_misconception_is_recognised(name, message):
    assert STEPS[name].check(STEPS[name].misconceptions[message]) == f"Not quite. {message}"


@each_step
def test_there_are_a_hint_and_at_least_four_misconceptions_in_whole_sentences(name):
    messages = STEPS[name].misconceptions
    assert len(messages) >= 4
    assert all(message[-1] in ".?" and message.count(" ") >= 2 for message in messages)
    assert STEPS[name].hint.endswith(".")


@each_step
def test_stub_gets_a_sentence_and_is_not_kept(name):
    assert ast.get_docstring(ast.parse(stub(name)).body[0])
    message = add(stub(name))
    is_without = name in CLASSES and message.startswith("Not quite. The parameter `")
    assert is_without or message == NO_RESULT  # a class may have no parameters but its parent's
    assert not Path(FILE).exists()


@each_step
@pytest.mark.parametrize("nonsense", ["nonsense", object(), {}, torch.tensor(1 + 2j), torch.ones(2, device="meta")])
def test_nonsense_gets_a_sentence(name, nonsense):
    step = STEPS[name]
    mine = lambda *args: nonsense  # noqa: E731
    if name in CLASSES:
        mine = type(name, (step.solution,), {"forward": lambda self, *args: nonsense})
    assert step.check(mine).startswith("Not quite. ")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("encode", '"<s>", ', "", "<s> at the beginning is missing"),
        ("make_position_ids", " + 1", "", "All positions are one too low"),
        ("Embeddings", "self.token_type(torch.zeros_like(ids))", "0", "The token type is missing"),
        ("attention_scores", " / math.sqrt(query.shape[-1])", "", "The scores are not divided"),
        ("attend", "~may", "may", "The mask is inverted"),
        ("Attention", "value, attention_mask", "value, ~attention_mask | True", "The mask is not used"),
        ("position_bias", ".flip(0)", "", "Seen from the key the distance has the other sign"),
        ("LayerNorm", "square().mean", "var", "The variance is divided by e - 1"),
        ("Block", "self.feed_forward_norm(hidden)", "self.attention_norm(hidden)", "Each half has its own LayerNorm"),
        ("Encoder", "self.norm(hidden)", "hidden", "The final LayerNorm is missing"),
        ("mask_tokens", "torch.randint(4,", "torch.randint(0,", "Random tokens must not be special"),
        ("LMHead", " + self.bias", "", "The bias of the vocabulary is missing"),
        ("masked_lm_loss", "(logits[", "(logits.softmax(-1)[", "cross_entropy contains the softmax"),
        ("causal_mask", ".tril(", ".triu(", "This allows a query itself and what comes after it"),
        (
            "CachedAttention",
            "return self.out(merge_heads(context)), keys, values",
            "return self.out(merge_heads(context)), key, value",
            "Return all keys and values, the earlier ones too",
        ),
        ("CachedAttention", "self.scores(query", "attention_scores(query", "But self.scores was not called"),
        ("CachedAttention", ".softmax(-1)", ".softmax(-2)", "The softmax is over the keys"),
        ("CachedAttention", "self.out(merge_heads(context))", "merge_heads(context)", "`out`, is missing"),
        (
            "CachedAttention",
            ".masked_fill(~may_attend, torch.finfo(hidden.dtype).min)\n        context = einsum(scores.softmax(-1),",
            "\n        context = einsum(scores.softmax(-1) * may_attend,",
            "The mask comes before the softmax",
        ),
        ("causal_mask", "dtype=torch.bool", "dtype=torch.long", "These are numbers, and should be booleans"),
        ("generate", "new.item() == eos_id", "eos_id in ids", "An eos_id in the prompt does not end the text"),
        ("top_p", "ordered < p)", "ordered <= p)", "compare with `<`, not with `<=`"),
        ("generate", "model(new, cache)", "model(ids, cache)", "this passes the earlier ones again"),
        ("generate", "model(new, cache)", "model(ids, {})", "this computes the earlier tokens again"),
        ("top_p", "kept / kept.sum()", "kept", "Normalize what is kept"),
        ("CrossAttention", "(part(states)", "(part(hidden)", "This is self-attention"),
        ("load", "return model", "return model.state_dict()", "Return the model itself"),
        ("read_header", "8 + length", "length", "The data begin after the header *and* the 8 bytes"),
        ("map_tensors", "start + entry", "entry", "data_offsets count from the end of the header"),
        ("map_tensors", '.view(entry["shape"])', '.view(entry["shape"]).clone()', "but they are copies"),
        ("fairseq_name", '"encoder.lm_head.": "lm_head.",', "", "The LM head is no part of the encoder here"),
        ("build", 'torch.device("meta")', 'torch.device("cpu")', "a module has no memory"),
        ("build", "nn.Parameter(tensor.to(dtype))", "nn.Parameter(tensor)", "The parameters should have the dtype"),
        ("build", "tensor.to(dtype)", "tensor.float()", "The parameters should have the dtype"),
        (
            "build",
            '    assert not any(parameter.is_meta for parameter in model.parameters()), "a weight is missing"\n',
            "",
            "A weight is missing in `tensors`",
        ),
        (
            "build",
            '        assert model.get_parameter(name).shape == tensor.shape, f"{name} has another shape"\n',
            "",
            "A tensor has another shape than its parameter",
        ),
        ("read_header", 'header.pop("__metadata__", None)', 'del header["__metadata__"]', "stops with KeyError"),
        ("read_header", "file.read(length)", "file.read()[:length]", "but the whole file was read"),
        (
            "map_tensors",
            "mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)",
            "bytearray(file.read())",
            "but the whole file was read into memory",
        ),
        (
            "forward_bytes",
            "4 * numbers * config.num_attention_heads * tokens",
            "4 * tokens * config.num_attention_heads * tokens",
            "Every text has scores of its own",
        ),
        ("load_large", "if name not in tied", "", "Your code stops with AttributeError"),
        ("forward_bytes", "return max(", "return min(", "That is the smallest of the three moments"),
    ],
)
def test_a_slip_in_the_learners_code_gets_the_sentence(name, old, new, message):
    assert old in ANSWERS[name]
    assert message in add(ANSWERS[name].replace(old, new))
    assert not Path(FILE).exists()


def test_attention_that_does_not_call_scores_is_noticed_with_relative_positions():
    attention = ANSWERS["Attention"].replace("self.scores(", "attention_scores(")
    assert add(attention).startswith("Right!")
    message = "Not quite. The positions change nothing: does the `forward` of your Attention call self.scores?"
    assert add(ANSWERS["RelativeAttention"]) == message


@pytest.mark.parametrize("kept", [[0, 1], [2, 3], [1, 3]])
def test_any_of_equally_probable_tokens_may_be_kept(kept):
    def chosen(probabilities, p):
        if probabilities.unique().numel() > 1:
            return solution.top_p(probabilities, p)
        return torch.zeros(4).index_fill(0, torch.tensor(kept), 0.5)

    assert STEPS["top_p"].check(chosen) == "Right!"


# ---- other styles

OTHERS = {
    "token_id": """
        def token_id(token, sp):
            if token in ("<s>", "<pad>", "</s>", "<unk>"):
                return ["<s>", "<pad>", "</s>", "<unk>"].index(token)
            return len(sp) + 1 if token == "<mask>" else (sp.piece_to_id(token) or 2) + 1
    """,
    "encode": """
        def encode(text, sp):
            parts = [sp.encode(part) for part in text.split("<mask>")]
            ids = [[number + 1 if number else 3 for number in part] for part in parts]
            for part in ids[1:]:
                ids[0] += [len(sp) + 1, *part]
            return [0, *ids[0], 2]
    """,
    "pad_rows": """
        def pad_rows(rows):
            return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=1)
    """,
    "make_position_ids": """
        def make_position_ids(ids):
            result = torch.ones_like(ids)
            for row, positions in zip(ids, result):
                positions[row != 1] = torch.arange(2, 2 + (row != 1).sum())
            return result
    """,
    "Embeddings": """
        class Embeddings(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.config = config
                self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
                self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=1)
                self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=1)

            def forward(self, ids):
                rows = [self.word.weight[ids], self.token_type.weight[0].expand(*ids.shape, -1)]
                if self.config.position_embedding_type == "absolute":
                    rows.append(self.position.weight[make_position_ids(ids)])
                return torch.stack(rows).sum(0)
    """,
    "attention_scores": """
        def attention_scores(query, key):
            return query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    """,
    "attend": """
        def attend(scores, value, attention_mask):
            return torch.softmax(scores.where(attention_mask[:, None, None], -math.inf), -1).matmul(value)
    """,
    "split_heads": """
        def split_heads(hidden, head_dim):
            b, t, e = hidden.shape
            return hidden.view(b, t, e // head_dim, head_dim).transpose(1, 2)
    """,
    "merge_heads": """
        def merge_heads(context):
            return context.transpose(1, 2).flatten(2)
    """,
    "Attention": """
        class Attention(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.d = config.hidden_size // config.num_attention_heads
                for name in ("out", "value", "key", "query"):
                    setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

            def scores(self, query, key):
                return query @ key.mT / math.sqrt(self.d)

            def forward(self, hidden, attention_mask):
                parts = [self.query(hidden), self.key(hidden), self.value(hidden)]
                heads = []
                for q, k, v in zip(*(part.split(self.d, -1) for part in parts)):
                    low = ~attention_mask[:, None] * -1e30
                    heads.append((self.scores(q, k) + low).softmax(-1) @ v)
                return self.out(torch.cat(heads, -1))
    """,
    "skew": """
        def skew(scores):
            b, h, t, r = scores.shape
            flat = scores.reshape(b, h, t * r)[..., t - 1 : -1]
            return flat.view(b, h, t, r - 1)[..., :t]
    """,
    "relative_scores": """
        def relative_scores(vectors, table):
            i = torch.arange(vectors.shape[2])
            rows = table[i[:, None] - i + len(table) // 2]
            return (vectors[..., None, :] * rows).sum(-1)
    """,
    "position_bias": """
        def position_bias(query, key, table, kind):
            i = torch.arange(query.shape[2])
            rows = table[i[:, None] - i + len(table) // 2]
            bias = torch.einsum("bhqd,qkd->bhqk", query, rows)
            if kind.endswith("query"):
                bias += torch.einsum("bhkd,qkd->bhqk", key, rows)
            return bias / query.shape[-1] ** 0.5
    """,
    "RelativeAttention": """
        class RelativeAttention(Attention):
            def __init__(self, config):
                super().__init__(config)
                self.config = config
                self.distance = nn.Embedding(2 * config.max_position_embeddings - 1, self.query.weight.shape[0] // 3)

            def scores(self, query, key):
                bias = position_bias(query, key, self.distance.weight, self.config.position_embedding_type)
                return bias + attention_scores(query, key)
    """,
    "LayerNorm": """
        class LayerNorm(nn.LayerNorm):
            def __init__(self, config):
                super().__init__(config.hidden_size, eps=config.layer_norm_eps)
    """,
    "gelu": """
        def gelu(x):
            return x * torch.special.ndtr(x)
    """,
    "FeedForward": """
        class FeedForward(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.down = nn.Linear(config.intermediate_size, config.hidden_size)
                self.up = nn.Linear(config.hidden_size, config.intermediate_size)

            def forward(self, hidden):
                wide = F.gelu(hidden @ self.up.weight.T + self.up.bias)
                return wide @ self.down.weight.T + self.down.bias
    """,
    "Block": """
        class Block(nn.Module):
            def __init__(self, config):
                super().__init__()
                kinds = {"absolute": Attention}
                self.feed_forward, self.feed_forward_norm = FeedForward(config), LayerNorm(config)
                self.attention = kinds.get(config.position_embedding_type, RelativeAttention)(config)
                self.attention_norm = LayerNorm(config)

            def forward(self, hidden, attention_mask):
                hidden = self.attention(self.attention_norm(hidden), attention_mask) + hidden
                normed = self.feed_forward_norm(hidden)
                hidden += self.feed_forward(normed)
                return hidden
    """,
    "Encoder": """
        class Encoder(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.norm = LayerNorm(config)
                self.layers = nn.ModuleList([])
                for _ in range(config.num_hidden_layers):
                    self.layers.append(Block(config))
                self.embeddings = Embeddings(config)

            def forward(self, ids):
                hidden = self.embeddings(ids)
                for i in range(len(self.layers)):
                    hidden = self.layers[i](hidden, ids.ne(1))
                return self.norm(hidden)
    """,
    "mask_tokens": """
        def mask_tokens(ids, mask_prob, special_ids, mask_id):
            masked, labels = ids.clone(), torch.full_like(ids, -100)
            for b, row in enumerate(ids.tolist()):
                for t, token in enumerate(row):
                    x = float(torch.rand(()))
                    if token in special_ids.tolist() or x >= mask_prob:
                        continue
                    labels[b, t] = token
                    if x < 0.8 * mask_prob:
                        masked[b, t] = mask_id
                    elif x < 0.9 * mask_prob:
                        masked[b, t] = int(torch.randint(4, mask_id, ()))
            return masked, labels
    """,
    "LMHead": """
        class LMHead(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.norm, self.dense = LayerNorm(config), nn.Linear(config.hidden_size, config.hidden_size)
                self.bias = nn.Parameter(torch.randn(config.vocab_size))

            def forward(self, hidden, word):
                return F.linear(self.norm(gelu(self.dense(hidden))), word, self.bias)
    """,
    "MaskedLM": """
        class MaskedLM(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.lm_head = LMHead(config)
                self.encoder = Encoder(config)

            def forward(self, ids):
                return self.lm_head.forward(self.encoder.forward(ids), word=self.encoder.embeddings.word.weight)
    """,
    "masked_lm_loss": """
        def masked_lm_loss(logits, labels):
            return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)
    """,
    "my_name": """
        def my_name(name):
            if name.startswith("lm_head"):
                return name.replace("layer_norm", "norm")
            name = name.replace("roberta.encoder.layer", "layers").replace("roberta.", "")
            if not name.startswith("layers"):
                return "encoder." + name.replace("encoder.LayerNorm", "norm").replace("_embeddings", "")
            layer, part = re.match(r"(layers[.][0-9]+[.])(.*)", name).groups()
            parts = {
                "attention.self_attn_layer_norm": "attention_norm", "attention.output.dense": "attention.out",
                "attention.self.distance_embedding": "attention.distance", "LayerNorm": "feed_forward_norm",
                "intermediate.dense": "feed_forward.up", "output.dense": "feed_forward.down",
            }
            module, parameter = part.rsplit(".", 1)
            return f"encoder.{layer}{parts.get(module, module.replace('.self', ''))}.{parameter}"
    """,
    "load": """
        def load(folder):
            with open(f"{folder}/config.json") as file:
                model = MaskedLM(SimpleNamespace(**json.load(file)))
            parameters = dict(model.named_parameters())
            for name, tensor in load_file(f"{folder}/model.safetensors").items():
                parameters[my_name(name)].data.copy_(tensor)
            return model.eval()
    """,
    "causal_mask": """
        def causal_mask(queries, keys):
            return torch.arange(keys - queries, keys)[:, None] >= torch.arange(keys)
    """,
    "CachedAttention": """
        class CachedAttention(Attention):
            def forward(self, hidden, keys, values):
                query = split_heads(self.query(hidden), keys.shape[-1])
                keys = torch.cat((keys, split_heads(self.key(hidden), keys.shape[-1])), -2)
                values = torch.cat((values, split_heads(self.value(hidden), values.shape[-1])), -2)
                low = torch.full((query.shape[2], keys.shape[2]), -1e30).triu(1 + keys.shape[2] - query.shape[2])
                return self.out(merge_heads((self.scores(query, keys) + low).softmax(-1) @ values)), keys, values
    """,
    "generate": """
        def generate(model, ids, max_new_tokens, eos_id):
            cache, tokens = {}, ids[0].tolist()
            logits = model(ids, cache)
            while max_new_tokens > 0:
                tokens.append(int(logits[0, -1].argmax()))
                max_new_tokens -= 1
                if tokens[-1] == eos_id or not max_new_tokens:
                    return torch.tensor([tokens])
                logits = model(torch.tensor([tokens[-1:]]), cache)
    """,
    "top_p": """
        def top_p(probabilities, p):
            total, kept = 0.0, torch.zeros_like(probabilities)
            for i in probabilities.argsort(descending=True):
                kept[i] = probabilities[i]
                total += float(probabilities[i])
                if total >= p:
                    return kept / total
    """,
    "CrossAttention": """
        class CrossAttention(Attention):
            def __init__(self, config):
                super().__init__(config)
                self.heads = config.num_attention_heads

            def forward(self, hidden, states, states_mask):
                query, key, value = self.query(hidden), self.key(states), self.value(states)
                query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
                low = torch.zeros(states_mask.shape).masked_fill(~states_mask, -1e30)[:, None, None]
                return self.out(merge_heads((attention_scores(query, key) + low).softmax(-1) @ value))
    """,
    "read_header": """
        def read_header(path):
            file = open(path, "rb")
            length = int.from_bytes(file.read(8), "little")
            text = str(file.read(length), "utf-8")
            return {name: entry for name, entry in json.loads(text).items() if not name.startswith("__")}, length + 8
    """,
    "map_tensors": """
        def map_tensors(path):
            (header, start), size = read_header(path), Path(path).stat().st_size
            data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[start:]
            dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
            return {
                name: data[slice(*entry["data_offsets"])].view(dtypes[entry["dtype"]]).view(entry["shape"])
                for name, entry in header.items()
            }
    """,
    "fairseq_name": """
        def fairseq_name(name):
            if name.startswith("encoder.lm_head"):
                return name.removeprefix("encoder.").replace("layer_norm", "norm")
            parts = {
                "embed_tokens": "embeddings.word", "embed_positions": "embeddings.position", "layer_norm": "norm",
                "self_attn_layer_norm": "attention_norm", "final_layer_norm": "feed_forward_norm",
                "fc1": "feed_forward.up", "fc2": "feed_forward.down", "self_attn.out_proj": "attention.out",
                "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
                "self_attn.v_proj": "attention.value",
            }
            name = name.removeprefix("encoder.sentence_encoder.")
            layer, part, parameter = re.fullmatch(r"(layers.[0-9]+.)?(.*)[.](.*)", name).groups()
            return f"encoder.{layer or ''}{parts[part]}.{parameter}"
    """,
    "build": """
        def build(config, tensors, dtype):
            with torch.device("meta"):
                model = MaskedLM(config)
            model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
            return model.eval()
    """,
    "load_large": """
        def load_large(folder, dtype):
            with open(f"{folder}/config.json") as file:
                config = SimpleNamespace(**json.load(file))
            tensors = {}
            for path in Path(folder).iterdir():
                if path.suffix == ".safetensors":
                    for name, tensor in map_tensors(path).items():
                        if not name.startswith("lm_head.decoder"):
                            tensors[my_name(name)] = tensor
            return build(config, tensors, dtype)
    """,
    "forward_bytes": """
        def forward_bytes(config, batch, tokens):
            e, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
            per_token = [5 * e + 3 * config.num_attention_heads * tokens, 2 * e + 3 * f, e + 2 * v]
            return 4 * batch * tokens * sorted(per_token)[-1]
    """,
}


@each_step
def test_another_style_is_right(name):
    assert add(textwrap.dedent(OTHERS[name])) == f"Right! `{name}` is in {FILE} now, which has 1 of {len(STEPS)} parts."


# ---- the notebooks


def notebook_of(name):
    [part] = [part for part in NOTEBOOKS if STEPS[name] in vars(part).values()]
    [path] = FOLDER.glob(f"[0-9][0-9]_{part.__name__.rpartition('.')[2]}.ipynb")
    return path


def cells_of(path, kind):
    return [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == kind]


@each_step
def test_notebook_has_the_step_once_and_was_run_with_the_stub(name):
    steps_of = [cell for cell in cells_of(notebook_of(name), "code") if source(cell).startswith("%%my_model")]
    [cell] = [cell for cell in steps_of if re.search(rf"^(def|class) {name}\b", source(cell), flags=re.MULTILINE)]
    assert source(cell) == f"%%my_model\n{stub(name)}"
    assert ["".join(output.get("text", [])) for output in cell["outputs"]] == [f"{add(stub(name))}\n"]


@each_step
def test_notebook_has_the_hint_and_the_solution_of_the_step(name):
    text = "\n\n".join(map(source, cells_of(notebook_of(name), "markdown")))
    text = GLOSSARY_LINK.sub(r"\1", text)
    assert text.count(f"```python\n{ANSWERS[name]}\n```") == 1
    assert STEPS[name].hint in text


def test_only_these_notebooks_have_steps_and_in_the_order_of_the_file():
    shown = {path: cells_of(path, "code") for path in sorted(FOLDER.glob("[0-9]*.ipynb"))}
    found = {
        path: re.findall(r"^%%my_model\n(?:def|class) (\w+)", "\n".join(map(source, cells)), flags=re.MULTILINE)
        for path, cells in shown.items()
    }
    assert [name for names in found.values() for name in names] == list(STEPS)
    for path, names in found.items():
        loads = [source(cell).count("%load_ext xlmrxl_min.course.steps") for cell in shown[path]]
        assert sum(loads) == bool(names), path.name


# ---- the file


def test_a_second_run_replaces_the_part_and_leaves_the_rest():
    for name in ("gelu", "FeedForward", "skew"):
        add(ANSWERS[name])
    Path(FILE).write_text(read().replace("\n\n\ndef gelu", "\n\n\nMINE = 1  # by hand\n\n\ndef gelu"), encoding="utf-8")
    before = read()
    assert add("def gelu(x):\n    return x * torch.special.ndtr(x)").startswith("Right!")
    assert read() == before.replace(ANSWERS["gelu"], "def gelu(x):\n    return x * torch.special.ndtr(x)")
    assert definitions(read()) == ["skew", "gelu", "FeedForward"]


def test_a_wrong_version_does_not_replace_a_right_one():
    add(ANSWERS["gelu"])
    before = read()
    assert add("def gelu(x):\n    return F.relu(x)").startswith("Not quite. That is ReLU")
    assert add("def gelu(x):\n    return F.gelu(x)") == (
        "Right numbers. But F.gelu did it: write it out with torch.erf."
    )
    assert read() == before


def test_my_model_is_made_of_the_learners_parts(capsys):
    """Also inside the parts that the model answer stands in for."""
    add(ANSWERS["gelu"])
    add(ANSWERS["skew"])
    Path(FILE).write_text(read().replace("return x * (1", "return 0 * x * (1"), encoding="utf-8")
    mine = my_model()
    assert capsys.readouterr().out.startswith(
        f"2 of {len(STEPS)} parts are yours; the model answer stands in for token_id, encode, "
    )
    config = steps.tokens_and_embeddings.ABSOLUTE
    layer = mine.FeedForward(config)
    torch.testing.assert_close(layer(torch.ones(1, 2, config.hidden_size)), layer.down.bias.expand(1, 2, -1))


def test_the_cells_other_lines_are_run_and_not_kept(capsys):
    message = add(f"import string\n{ANSWERS['gelu']}\n\nprint(gelu(torch.zeros(1)), string.digits, skew.__name__)")
    assert message.startswith("Right!")
    assert capsys.readouterr().out == "tensor([0.]) 0123456789 skew\n"
    assert definitions(read()) == ["gelu"]
    assert "string" not in read()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "def gelu(x):\n    return helper(x)",
            "NameError: name 'helper' is not defined. Only `gelu` itself is kept: what it needs,",
        ),
        ("def gelu(x)\n    return x", "Line 1 of the code is not Python: expected ':'."),
        ("def gelu_(x):\n    return x", "Define one step in a cell; here are none. The steps: token_id, encode, "),
        ("def gelu(x): ...\ndef skew(x): ...", "Define one step in a cell; here are gelu, skew."),
        ("def LayerNorm(x):\n    return x", "It should be a class, and inherit from nn.Module."),
        ("class LayerNorm:\n    pass", "It should be a class, and inherit from nn.Module."),
        ("class gelu(nn.Module):\n    pass", "Your code stops with "),
    ],
)
def test_what_cannot_be_checked_gets_a_sentence(cell, message):
    answer = add(cell)
    assert answer.startswith(message) or message in answer
    assert not Path(FILE).exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("self.up = nn.Linear", "self.wide = nn.Linear", "`up.weight` is missing: it should have the shape (20, 12)."),
        (
            "nn.Linear(config.intermediate_size, config.hidden_size)",
            "nn.Linear(3, 4)",
            "`down.weight` has the shape (4, 3)",
        ),
        (
            "super().__init__()",
            "super().__init__()\n        self.more = nn.Linear(2, 2)",
            "`more.weight` is not needed.",
        ),
    ],
)
def test_wrong_parameters_get_a_sentence(old, new, message):
    assert add(ANSWERS["FeedForward"].replace(old, new)).startswith(f"Not quite. The parameter {message}")


def test_a_block_that_is_used_twice_gets_a_sentence():
    old, new = "Block(config) for _ in range(config.num_hidden_layers)", "[Block(config)] * config.num_hidden_layers"
    assert old in ANSWERS["Encoder"]
    message = "is the parameter of another module, too: build a module for each."
    assert message in add(ANSWERS["Encoder"].replace(old, new))


def test_a_file_that_is_no_longer_python_is_named():
    Path(FILE).write_text("def gelu(x):\nreturn x\n", encoding="utf-8")
    with pytest.raises(SyntaxError) as error:
        add(ANSWERS["gelu"])
    assert (error.value.filename, error.value.lineno) == (FILE, 2)


@pytest.mark.parametrize("later", ["RelativeAttention", "Block", "load"])
def test_the_answers_need_no_attribute_of_the_learners_attention(later):
    own = steps.ANSWERS["Attention"].replace("self.head_dim", "self.d")
    assert own != steps.ANSWERS["Attention"]
    module = steps.run(steps.insert(steps.NEW_FILE, "Attention", own))
    assert steps.STEPS[later].check(getattr(module, later)) == "Right!"
