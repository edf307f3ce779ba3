"""Libraries that take a model of this package as one of transformers: a row of the README's table each, in numbers."""

import json
import re

import pytest
import torch
import transformers
from transformers_reference import error, twins

import xlmrxl_min
from xlmrxl_min.interpret import saliency

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TEXTS = ["Alle Menschen sind frei", "Hello", "All human beings are born free and equal"]
LORA_TASKS = {
    "SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification", "CAUSAL_LM": "ForCausalLM",
    "FEATURE_EXTRACTION": "Model",
}  # fmt: skip
PIPELINES = {
    "fill-mask": ("ForMaskedLM", ("Alle Menschen sind <mask>.",)),
    "text-classification": ("ForSequenceClassification", (TEXTS,)),
    "zero-shot-classification": ("ForSequenceClassification", (TEXTS[0], ["law", "food"])),
    "token-classification": ("ForTokenClassification", (TEXTS[0],)),
    "feature-extraction": ("Model", (TEXTS[0],)),
    "text-generation": ("ForCausalLM", (TEXTS[0],)),
}
AS_DICT = "the pipeline turns an output that is a dict into a plain one, and then reads its item 0"


@pytest.fixture
def ids():
    ids = torch.randint(3, 60, (2, 7))
    ids[:, 0], ids[:, -1] = 0, 2
    return ids


@pytest.fixture
def tiny():
    return xlmrxl_min.XLMRobertaXLModel.from_pretrained("tiny"), xlmrxl_min.XLMRobertaTokenizer.from_pretrained("tiny")


def both(task, folder):
    return [getattr(library, f"XLMRobertaXL{task}").from_pretrained(folder) for library in (transformers, xlmrxl_min)]


def train(model, backward, optimizer, steps=2, **batch):
    model.train()
    for _ in range(steps):
        out = model(**batch)
        backward(out.loss if "labels" in batch else out.last_hidden_state.square().mean())
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_accelerate_trains_and_saves(ids, tmp_path, parity):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    theirs, ours = twins("ForSequenceClassification")
    batch = {"input_ids": ids, "labels": torch.tensor([0, 1])}
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(ours, torch.optim.SGD(ours.parameters(), lr=0.1))
    train(model, accelerator.backward, optimizer, **batch)
    train(theirs, torch.Tensor.backward, torch.optim.SGD(theirs.parameters(), lr=0.1), **batch)
    expected = theirs(ids).logits.detach()
    parity(error(model(ids).logits, expected))

    accelerator.save_state(tmp_path / "state")
    with torch.no_grad():
        ours.classifier.out_proj.weight.zero_()
    accelerator.load_state(tmp_path / "state")
    parity(error(model(ids).logits, expected))

    main = {"is_main_process": accelerator.is_main_process, "save_function": accelerator.save}
    state = accelerator.get_state_dict(model)
    accelerator.unwrap_model(model).save_pretrained(tmp_path / "model", **main, state_dict=state)
    for loaded in both("ForSequenceClassification", tmp_path / "model"):
        parity(error(loaded(ids).logits, expected))


@pytest.mark.parametrize("kind", ["auto", "disk", "cpu_offload", "disk_offload"])
def test_accelerate_places_modules(kind, ids, tmp_path, parity):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    _, model = twins("ForMaskedLM")
    expected, offload = model(ids).logits.detach(), tmp_path / "offload"
    if kind == "auto":
        model.save_pretrained(tmp_path)
        model = type(model).from_pretrained(tmp_path, device_map="auto")
    elif kind == "disk":
        places = {"backbone.embeddings": "cpu", "backbone.layers.0": "disk", "backbone.layers.1": "cpu"}
        places |= {"backbone.norm": "disk", "lm_head": "cpu"}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=offload, force_hooks=True)
        assert model.backbone.layers[0].attention.query.weight.is_meta
    elif kind == "cpu_offload":
        accelerate.cpu_offload(model, torch.device("cpu"))
    else:
        accelerate.disk_offload(model, offload, torch.device("cpu"))
    parity(error(model(ids).logits, expected))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("task_type", LORA_TASKS)
def test_peft_lora(task_type, checkpointing, ids, tmp_path, parity):
    """Trained as transformers' class is with the same LoRA weights; then generated, saved, loaded and merged."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    task, is_decoder = LORA_TASKS[task_type], task_type == "CAUSAL_LM"

    def adapted(model):
        if checkpointing and model is ours:  # transformers' class has none
            model.gradient_checkpointing_enable()
        config = peft.LoraConfig(
            task_type=task_type, r=4, target_modules=["query", "value"], lora_dropout=0.0, init_lora_weights=False
        )
        return peft.get_peft_model(model, config)

    def trained(model):
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    theirs, ours = twins(task, is_decoder=is_decoder, use_cache=False)
    a, b = adapted(theirs), adapted(ours)
    assert len(trained(b)) == len(trained(a)) < len(list(b.parameters())) / 2
    with torch.no_grad():
        for mine, other in zip(trained(b), trained(a), strict=True):
            mine.copy_(other)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = {"SEQ_CLS": torch.tensor([0, 1]), "TOKEN_CLS": ids % 2, "CAUSAL_LM": ids}
    targets = {"labels": labels[task_type]} if task_type in labels else {}
    before = b(**batch)[0].detach()
    for model in (a, b):
        train(model, torch.Tensor.backward, torch.optim.SGD(trained(model), lr=0.05), steps=3, **batch, **targets)
    expected = a(**batch)[0].detach()
    assert error(b(**batch)[0], before) > 1e-3  # it has learnt something
    assert error(b(**batch)[0], expected) < 1e-4
    if is_decoder:
        greedy = [model.generate(**batch, max_new_tokens=4, do_sample=False).tolist() for model in (a, b)]
        assert greedy[0] == greedy[1]

    got = b(**batch)[0].detach()
    b.save_pretrained(tmp_path / "adapter")
    fresh = twins(task, is_decoder=is_decoder, use_cache=False)[1]
    torch.manual_seed(1)  # or what is not loaded might be drawn equal
    parity(error(peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()(**batch)[0], got))
    merged = b.merge_and_unload()
    parity(error(merged(**batch)[0], got))
    merged.save_pretrained(tmp_path / "merged")
    for loaded in both(task, tmp_path / "merged"):
        parity(error(loaded(**batch)[0], got))


def test_peft_with_trainer_saves_the_adapter(ids, tmp_path, parity):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = peft.get_peft_model(twins("ForSequenceClassification")[1], config)
    rows = [{"input_ids": row, "labels": i} for i, row in enumerate(ids)]
    settings = transformers.TrainingArguments(
        tmp_path / "run", max_steps=2, learning_rate=0.1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(model, settings, train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 20_000
    expected = model.eval()(input_ids=ids).logits
    fresh = peft.PeftModel.from_pretrained(twins("ForSequenceClassification")[1], tmp_path / "adapter").eval()
    parity(error(fresh(input_ids=ids).logits, expected))


def test_captum(ids, parity):
    """A Block returns a tuple with None, so LayerActivation is asked for its feed_forward, whose output is the same."""
    attribution = pytest.importorskip("captum.attr", reason="captum is not installed: pip install captum")
    theirs, ours = twins("ForSequenceClassification")
    baselines = ids.clone()
    baselines[:, 1:-1] = 1

    def attribute(model, embeddings):
        gradients = attribution.LayerIntegratedGradients(lambda ids: model(ids).logits[:, 1], embeddings)
        return gradients.attribute(ids, baselines=baselines, n_steps=200)

    captums = attribute(ours, ours.backbone.embeddings)
    parity(error(captums, attribute(theirs, theirs.roberta.embeddings)))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    own = saliency.integrated_gradients(ours, inputs, lambda out: out.logits[:, 1].sum(), 1, steps=200, progress=False)
    by_word = attribute(ours, ours.backbone.embeddings.word).sum(-1)
    assert by_word.abs().max() > 1e-3
    parity(((own.attributions - by_word).abs().max() / by_word.abs().max()).item(), 1e-3)  # two rules of integration

    activation = attribution.LayerActivation(lambda ids: ours(ids).logits, ours.backbone.layers[0].feed_forward)
    parity(error(activation.attribute(ids), theirs(ids, output_hidden_states=True).hidden_states[1]))


@pytest.mark.parametrize("view", ["head_view", "model_view"])
def test_bertviz(view, tiny, parity):
    bertviz = pytest.importorskip("bertviz", reason="bertviz is not installed: pip install bertviz")
    model, tokenizer = tiny
    encoding = tokenizer(TEXTS[0], return_tensors="pt")
    attentions = model(**encoding, output_attentions=True).attentions
    tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"][0])
    page = getattr(bertviz, view)(attentions, tokens, html_action="return").data
    values = json.JSONDecoder().raw_decode(page, re.search(r"const params = ", page).end())[0]["attention"][0]
    assert values["left_text"] == [token.replace("▁", " ") for token in tokens] or values["left_text"] == tokens
    parity(error(torch.tensor(values["attn"]), torch.cat(attentions)))


def test_nnsight(ids, parity):
    nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed: pip install nnsight")
    theirs, ours = twins("ForMaskedLM")
    model = nnsight.NNsight(ours)
    with model.trace(ids):
        hidden = model.backbone.layers[0].output[0].save()
    parity(error(hidden, theirs(ids, output_hidden_states=True).hidden_states[1]))


@pytest.mark.parametrize("own_model", [False, True], ids=["folder", "model"])
def test_sentence_transformers(own_model, tiny, tmp_path, parity):
    """From our folder it builds transformers' class; a model of this package can take its place."""
    reason = "sentence-transformers is not installed: pip install sentence-transformers"
    library = pytest.importorskip("sentence_transformers", reason=reason)
    models = pytest.importorskip("sentence_transformers.models", reason=reason)
    model, tokenizer = tiny
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    transformer = models.Transformer(str(tmp_path))
    if own_model:
        transformer.auto_model = model
    pooling = models.Pooling(model.config.hidden_size, "mean")
    encoder = library.SentenceTransformer(modules=[transformer, pooling], device="cpu")
    got = encoder.encode(TEXTS, convert_to_tensor=True)
    parity(error(got, xlmrxl_min.embed(model, tokenizer, TEXTS, progress=False)))


def leaves(value):
    """The numbers and texts of a pipeline's answer, in order, without spaces around them and without offsets.

    transformers' fast tokenizer counts the space before a word in; ours does not.
    """
    if isinstance(value, dict):
        value = [value[name] for name in value if name not in ("start", "end")]
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in leaves(part)]
    return [value.strip() if isinstance(value, str) else value]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=pytest.mark.xfail(raises=KeyError, strict=True, reason=AS_DICT))
        if (name, kind) == ("feature-extraction", "objects")
        else (name, kind)
        for name in (*PIPELINES, "question-answering")
        for kind in ("objects", "folder")
    ],
)
def test_pipelines(name, kind, tmp_path):
    """transformers.pipeline with our model and tokenizer, or with our folder, as with its own model and tokenizer."""
    task, arguments = PIPELINES.get(name, ("ForQuestionAnswering", ()))
    question = {"question": "Who is free?", "context": TEXTS[2]} if not arguments else {}
    source = "tiny-decoder" if task == "ForCausalLM" else "tiny"
    labels = {"id2label": {0: "contradiction", 1: "entailment"}} if task == "ForSequenceClassification" else {}
    ours = getattr(xlmrxl_min, f"XLMRobertaXL{task}").from_pretrained(source, **labels)
    tokenizer = xlmrxl_min.XLMRobertaTokenizer.from_pretrained(source)
    ours.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    theirs = getattr(transformers, f"XLMRobertaXL{task}").from_pretrained(tmp_path)
    options = {"max_new_tokens": 5, "do_sample": False} if name == "text-generation" else {}

    def answer(model, tokenizer):
        pipeline = transformers.pipeline(name, model=model, tokenizer=tokenizer, device="cpu")
        return leaves(pipeline(*arguments, **question, **options))

    wanted = answer(theirs, transformers.AutoTokenizer.from_pretrained(tmp_path))
    got = answer(ours, tokenizer) if kind == "objects" else answer(str(tmp_path), None)
    assert got == [pytest.approx(leaf, abs=1e-5) if isinstance(leaf, float) else leaf for leaf in wanted]
