"""The model answer: what `my_model.py` holds when all steps are done, in the course's order.

From a text to logits: an encoder like xlmrxl_min/model.py, with its axes, but without what a first model can do
without: dropout, token types other than 0, fused kernels. Then what makes it a decoder, up to generated text, and what
loads files of any size. `config` is any object with the fields of a config.json.
"""

import json
import math
import mmap
import re
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from safetensors.torch import load_file
from torch import nn


def token_id(token, sp):
    """The id of a special token, or of a subword in the vocabulary of the SentencePieceProcessor `sp`."""
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(sp) + 1}
    if token in special:
        return special[token]
    number = sp.piece_to_id(token)  # 0 if sp does not know it
    return number + 1 if number else special["<unk>"]


def encode(text, sp):
    """A text -> a list of ids, of `<s> text </s>`; <mask> in the text is the mask token."""
    tokens = []
    for part in re.split("(<mask>)", text):
        tokens += [part] if part == "<mask>" else sp.encode_as_pieces(part)
    return [token_id(token, sp) for token in ["<s>", *tokens, "</s>"]]


def pad_rows(rows):
    """Lists of ids -> one tensor b t, as long as the longest; shorter rows end with <pad>, id 1."""
    longest = max(map(len, rows))
    return torch.tensor([row + [1] * (longest - len(row)) for row in rows])


def make_position_ids(ids):
    """b t -> b t: tokens count from 2, padding (id 1) has position 1."""
    is_token = (ids != 1).long()
    return is_token.cumsum(-1) * is_token + 1


class Embeddings(nn.Module):
    """Word + token type, + position if they are "absolute". Parameters: {word, position, token_type}.weight."""

    def __init__(self, config):
        super().__init__()
        self.is_absolute = config.position_embedding_type == "absolute"
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(self, ids):  # b t -> b t e
        hidden = self.word(ids) + self.token_type(torch.zeros_like(ids))  # all tokens have type 0
        if self.is_absolute:
            hidden = hidden + self.position(make_position_ids(ids))
        return hidden


def attention_scores(query, key):
    """b h q d, b h k d -> b h q k: the dot product of each query with each key, divided by √d."""
    return einsum(query, key, "b h q d, b h k d -> b h q k") / math.sqrt(query.shape[-1])


def split_heads(hidden, head_dim):
    """b t e -> b h t d: head 0 has the first d = head_dim components of each token, head 1 the next."""
    return rearrange(hidden, "b t (h d) -> b h t d", d=head_dim)


def merge_heads(context):
    """b h t d -> b t e: the inverse of split_heads."""
    return rearrange(context, "b h t d -> b t (h d)")


def attend(scores, value, attention_mask):
    """b h q k, b h k d, mask b k (True = may attend) -> b h q d: softmax over the keys, then the weighted sum."""
    may_attend = rearrange(attention_mask, "b k -> b 1 1 k")
    weights = scores.masked_fill(~may_attend, torch.finfo(scores.dtype).min).softmax(-1)
    return einsum(weights, value, "b h q k, b h k d -> b h q d")


class Attention(nn.Module):
    """Multi-head self-attention. Parameters: {query, key, value, out}.{weight, bias}, each e -> e."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def scores(self, query, key):  # b h q d, b h k d -> b h q k
        return attention_scores(query, key)

    def forward(self, hidden, attention_mask):  # b t e, b k -> b t e
        query, key, value = (split_heads(part(hidden), self.head_dim) for part in (self.query, self.key, self.value))
        return self.out(merge_heads(attend(self.scores(query, key), value, attention_mask)))


def skew(scores):
    """b h q r -> b h q k, where r = 2 t - 1: row i moves left by t - 1 - i, and the first t columns are kept."""
    rows = scores.shape[2]
    flat = rearrange(F.pad(scores, (1, 0)), "b h q r -> b h (q r)")[..., rows:]
    return rearrange(flat, "b h (q r) -> b h q r", q=rows)[..., :rows]


def relative_scores(vectors, table):
    """b h q d, r d -> b h q k: vector i times the table's row for the distance i - j; row r // 2 is for distance 0."""
    zero, tokens = len(table) // 2, vectors.shape[2]
    distances = table[zero - tokens + 1 : zero + tokens].flip(0)  # from t - 1 down to -(t - 1)
    return skew(einsum(vectors, distances, "b h q d, r d -> b h q r"))


def position_bias(query, key, table, kind):
    """b h q d, b h k d, r d -> b h q k: what is added to the scores. kind: relative_key or relative_key_query."""
    bias = relative_scores(query, table)
    if kind == "relative_key_query":  # seen from the key, a distance has the other sign
        bias = bias + rearrange(relative_scores(key, table.flip(0)), "b h k q -> b h q k")
    return bias / math.sqrt(query.shape[-1])


class RelativeAttention(Attention):
    """Attention plus position_bias. One more parameter: distance.weight, 2 max_position_embeddings - 1 rows."""

    def __init__(self, config):
        super().__init__(config)
        self.kind = config.position_embedding_type
        head_dim = config.hidden_size // config.num_attention_heads
        self.distance = nn.Embedding(2 * config.max_position_embeddings - 1, head_dim)

    def scores(self, query, key):  # b h q d, b h k d -> b h q k
        return super().scores(query, key) + position_bias(query, key, self.distance.weight, self.kind)


class LayerNorm(nn.Module):
    """Each token to mean 0 and variance 1, then times weight, plus bias. Parameters: weight and bias, e each."""

    def __init__(self, config):
        super().__init__()
        self.eps = config.layer_norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, hidden):  # b t e -> b t e
        centered = hidden - hidden.mean(-1, keepdim=True)
        variance = centered.square().mean(-1, keepdim=True)
        return centered / (variance + self.eps).sqrt() * self.weight + self.bias


def gelu(x):
    """x times the probability that a standard normal number is smaller than x; any shape."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


class FeedForward(nn.Module):
    """Up-projection e -> f, GELU, down-projection f -> e. Parameters: {up, down}.{weight, bias}."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden):  # b t e -> b t e
        return self.down(gelu(self.up(hidden)))


class Block(nn.Module):
    """Pre-LN. Parts: attention_norm, attention (relative if positions are), feed_forward_norm, feed_forward."""

    def __init__(self, config):
        super().__init__()
        is_absolute = config.position_embedding_type == "absolute"
        self.attention_norm, self.feed_forward_norm = LayerNorm(config), LayerNorm(config)
        self.attention = Attention(config) if is_absolute else RelativeAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, hidden, attention_mask):  # b t e, b k -> b t e
        hidden = hidden + self.attention(self.attention_norm(hidden), attention_mask)
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


class Encoder(nn.Module):
    """Parts: embeddings, layers (an nn.ModuleList of blocks), norm (the final LayerNorm). Padding has id 1."""

    def __init__(self, config):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = LayerNorm(config)

    def forward(self, ids):  # b t -> b t e
        hidden, attention_mask = self.embeddings(ids), ids != 1
        for block in self.layers:
            hidden = block(hidden, attention_mask)
        return self.norm(hidden)


def mask_tokens(ids, mask_prob, special_ids, mask_id):
    """b t -> masked ids b t, labels b t. Selected: tokens that are not special, with probability mask_prob.

    Of these 80% become mask_id, 10% a random id from 4 to mask_id - 1, 10% stay. Labels: the ids, -100 elsewhere.
    """
    selected = (torch.rand(ids.shape) < mask_prob) & ~torch.isin(ids, special_ids)
    fate, random_ids = torch.rand(ids.shape), torch.randint(4, mask_id, ids.shape)
    masked = ids.masked_fill(selected & (fate < 0.8), mask_id)
    return random_ids.where(selected & (fate >= 0.9), masked), ids.masked_fill(~selected, -100)


class LMHead(nn.Module):
    """Dense, GELU, LayerNorm, times the embedding matrix, plus bias. Parameters: {dense, norm}.{weight, bias}, bias."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden, word):  # b t e, v e -> b t v
        return einsum(self.norm(gelu(self.dense(hidden))), word, "b t e, v e -> b t v") + self.bias


class MaskedLM(nn.Module):
    """Parts: encoder, lm_head. The head gets the encoder's word embeddings: tied weights."""

    def __init__(self, config):
        super().__init__()
        self.encoder = Encoder(config)
        self.lm_head = LMHead(config)

    def forward(self, ids):  # b t -> b t v
        return self.lm_head(self.encoder(ids), self.encoder.embeddings.word.weight)


def masked_lm_loss(logits, labels):
    """b t v, b t -> one number: the mean cross-entropy over the labels, without those that are -100."""
    return F.cross_entropy(logits[labels != -100], labels[labels != -100])


def my_name(name):
    """A weight's name in the file (Hugging Face's) -> its name in MaskedLM."""
    renamed = {
        "roberta.encoder.layer.": "encoder.layers.",
        "roberta.encoder.LayerNorm.": "encoder.norm.",
        "roberta.embeddings.": "encoder.embeddings.",
        "_embeddings.": ".",
        "attention.self_attn_layer_norm.": "attention_norm.",
        "attention.self.": "attention.",
        "distance_embedding.": "distance.",
        "attention.output.dense.": "attention.out.",
        "LayerNorm.": "feed_forward_norm.",
        "intermediate.dense.": "feed_forward.up.",
        "output.dense.": "feed_forward.down.",
        "layer_norm.": "norm.",
    }
    for theirs, mine in renamed.items():  # in this order
        name = name.replace(theirs, mine)
    return name


def load(folder):
    """A MaskedLM of the sizes in folder/config.json, with the weights of folder/model.safetensors."""
    config = SimpleNamespace(**json.loads((Path(folder) / "config.json").read_text()))
    model, tensors = MaskedLM(config), load_file(Path(folder) / "model.safetensors")
    model.load_state_dict({my_name(name): tensor for name, tensor in tensors.items()})
    return model


def causal_mask(queries, keys):
    """Numbers of queries and keys -> q k, True = may attend: itself and earlier ones. The queries are the last keys."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


class CachedAttention(Attention):
    """Causal self-attention that continues a text, with the keys and values of what came before. No new parameters."""

    def forward(self, hidden, keys, values):  # b q e, b h k d, b h k d -> b q e, and longer keys and values
        parts = (self.query, self.key, self.value)
        query, key, value = (split_heads(part(hidden), keys.shape[-1]) for part in parts)
        keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        may_attend = causal_mask(query.shape[2], keys.shape[2])
        scores = self.scores(query, keys).masked_fill(~may_attend, torch.finfo(hidden.dtype).min)
        context = einsum(scores.softmax(-1), values, "b h q k, b h k d -> b h q d")
        return self.out(merge_heads(context)), keys, values


def generate(model, ids, max_new_tokens, eos_id):
    """A prompt 1 t -> the prompt and what the model writes: always the most probable token, until eos_id.

    model(ids, cache) -> logits 1 t v. cache: a dict, at first empty, in which the model keeps keys and values.
    """
    cache, new = {}, ids
    for _ in range(max_new_tokens):
        new = model(new, cache)[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], dim=1)
        if new.item() == eos_id:
            break
    return ids


def top_p(probabilities, p):
    """v -> v: only the fewest most probable tokens that together have the probability p or more; their sum is 1."""
    ordered, indices = probabilities.sort(descending=True)
    kept = ordered * (ordered.cumsum(-1) - ordered < p)  # what is before it does not reach p
    kept = torch.zeros_like(kept).scatter(-1, indices, kept)
    return kept / kept.sum()


class CrossAttention(Attention):
    """Attention from a decoder's hidden states to an encoder's states. No new parameters."""

    def __init__(self, config):
        super().__init__(config)
        self.width = config.hidden_size // config.num_attention_heads

    def forward(self, hidden, states, states_mask):  # b q e, b k e, b k -> b q e
        query = split_heads(self.query(hidden), self.width)
        key, value = (split_heads(part(states), self.width) for part in (self.key, self.value))
        return self.out(merge_heads(attend(self.scores(query, key), value, states_mask)))


def read_header(path):
    """A safetensors file -> what its header says of each tensor, by name, and the byte at which the data begin."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def map_tensors(path):
    """A safetensors file -> its tensors by name, as views of the mapped file: nothing is read, nothing is copied."""
    (header, start), mapped = read_header(path), {}
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that this memory cannot be written to
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for name, entry in header.items():
            where = {"offset": start + entry["data_offsets"][0], "count": math.prod(entry["shape"])}
            mapped[name] = torch.frombuffer(memory, dtype=dtypes[entry["dtype"]], **where).view(entry["shape"])
    return mapped


def fairseq_name(name):
    """A weight's name in a fairseq checkpoint -> its name in MaskedLM."""
    renamed = {
        "encoder.lm_head.": "lm_head.",
        "lm_head.layer_norm.": "lm_head.norm.",
        "encoder.sentence_encoder.": "encoder.",
        "encoder.embed_tokens.": "encoder.embeddings.word.",
        "encoder.embed_positions.": "encoder.embeddings.position.",
        "encoder.layer_norm.": "encoder.norm.",
        "self_attn_layer_norm.": "attention_norm.",
        "final_layer_norm.": "feed_forward_norm.",
        "self_attn.": "attention.",
        "q_proj.": "query.",
        "k_proj.": "key.",
        "v_proj.": "value.",
        "out_proj.": "out.",
        "fc1.": "feed_forward.up.",
        "fc2.": "feed_forward.down.",
    }
    for theirs, mine in renamed.items():  # in this order
        name = name.replace(theirs, mine)
    return name


def build(config, tensors, dtype):
    """A MaskedLM made on meta, then given `tensors`, by its own names, one at a time, each in dtype."""
    with torch.device("meta"):
        model = MaskedLM(config)
    for name, tensor in tensors.items():
        assert model.get_parameter(name).shape == tensor.shape, f"{name} has another shape"
        module, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(module), parameter, nn.Parameter(tensor.to(dtype)))
    assert not any(parameter.is_meta for parameter in model.parameters()), "a weight is missing"
    return model


def load_large(folder, dtype):
    """As load, but from all *.safetensors files of the folder, by map_tensors and build. Tied weights count once."""
    config = SimpleNamespace(**json.loads((Path(folder) / "config.json").read_text()))
    tensors, tied = {}, ("lm_head.decoder.weight", "lm_head.decoder.bias")  # names of weights that have another name
    for path in Path(folder).glob("*.safetensors"):
        tensors |= {my_name(name): tensor for name, tensor in map_tensors(path).items() if name not in tied}
    return build(config, tensors, dtype)


def forward_bytes(config, batch, tokens):
    """The bytes at the peak of a float32 forward pass of MaskedLM, without gradients, weights and ids not counted."""
    numbers = batch * tokens
    hidden, wide = 4 * numbers * config.hidden_size, 4 * numbers * config.intermediate_size
    scores, logits = 4 * numbers * config.num_attention_heads * tokens, 4 * numbers * config.vocab_size
    return max(5 * hidden + 3 * scores, 2 * hidden + 3 * wide, hidden + 2 * logits)
