"""The command line in any environment: notebooks, encodings, closed and broken output, and a user's mistakes."""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.__main__ import main
from xlmrxl_min.checkpoints.locate import PRETRAINED

TEXT = "人人生而自由,在<mask>权利上一律平等。"
HELPS = [
    [],
    ["fill"],
    ["attend"],
    ["plan"],
    ["convert"],
    ["corpus"],
    ["pretrain"],
    ["evaluate"],
    ["course"],
    ["distributed"],
]
HELPS += [["course", tool] for tool in ("start", "tidy", "run", "read", "badges")]
HELPS += [["distributed", task] for task in ("fill", "train")]
LOCALES = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1251"},
    {"PYTHONIOENCODING": "cp932"},
    {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
]
# Several commands in one process, as it takes seconds to start: with the streams that the environment gives it
SEVERAL = """
import json, sys
from xlmrxl_min.__main__ import main
encoding = sys.stdout and sys.stdout.encoding
for command in json.loads(sys.stdin.read()):
    assert main(command) == 0, command
assert (sys.stdout and sys.stdout.encoding) == encoding, "restored"
"""
FILL, ATTEND, PLAN = ["fill", TEXT, "--top-k", "1"], ["attend", TEXT, "-o", "page.html"], ["plan", "tiny"]


def python(*arguments, env=None, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONUTF8": "0", **(env or {})}, timeout=300, **options)


def command_line(*arguments, **options):
    return python("-m", "xlmrxl_min", *arguments, **{"capture_output": True, **options})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mistake(folder, capsys):
    """Runs a command that must fail with one line, and nothing else."""

    def mistake(*arguments):
        assert main(arguments) == 2, arguments
        printed = capsys.readouterr()
        assert not printed.out
        assert len(printed.err.splitlines()) == 1, printed.err
        assert "Traceback" not in printed.err
        return printed.err

    return mistake


# ---- output


@pytest.mark.parametrize("env", LOCALES, ids=str)
def test_every_encoding_of_the_terminal(env, folder):
    commands = [FILL, ATTEND, PLAN, *([*command, "--help"] for command in HELPS)]
    with open("out.txt", "wb") as out:
        done = python("-c", SEVERAL, env=env, input=json.dumps(commands).encode(), stdout=out, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr
    text = (folder / "out.txt").read_text(encoding="utf-8")
    assert any("\u4e00" <= letter <= "\u9fff" for letter in text), "Chinese, as written"
    assert "an Würde" in text
    assert text.count("usage: ") == len(HELPS)


def test_arguments_that_the_locale_cannot_decode(folder):
    """Under the locale C, Python does not decode them; they are UTF-8 all the same. A file name is left as it is."""
    env = {**LOCALES[-1], "PYTHONIOENCODING": "utf-8"}
    done = command_line("attend", TEXT.encode(), "-o", "Würde.html".encode(), env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith("Würde.html: ")
    assert "\\u6743" in (folder / "Würde.html").read_text(encoding="utf-8"), "权, a token of the text"


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are bytes on Unix")
def test_arguments_that_are_not_utf8_are_refused(mistake, folder):
    for arguments in (["fill", "caf\udce9 <mask>"], ["attend", "a", "--pair", "\ud800"], ["plan", "\udce9"]):
        assert "is not in UTF-8" in mistake(*arguments)
    done = command_line("fill", b"caf\xe9 <mask>")
    assert done.returncode == 2
    assert done.stderr == b"the argument 'caf\\udce9 <mask>' is not in UTF-8: convert it first.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors of Unix")
def test_closed_broken_and_full_output(folder):
    def run(redirection, *commands):
        shell = f'exec "{sys.executable}" -c "$1" {redirection}'
        given = json.dumps(commands).encode()
        return subprocess.run(["sh", "-c", shell, "sh", SEVERAL], input=given, capture_output=True, timeout=300)

    done = run(">&-", FILL, ATTEND, PLAN)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / "page.html").exists()
    assert run(">&- 2>&-", FILL, ATTEND, PLAN, *([*command, "--help"] for command in HELPS)).returncode == 0
    for command in ("plan tiny", "fill --help"):
        read, write = os.pipe()
        os.close(read)
        env = {"PYTHONUNBUFFERED": ""}  # with it, argparse is the one who notices, and ignores it
        done = command_line(*command.split(), env=env, capture_output=False, stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b""), command
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            done = command_line("plan", "tiny", capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (2, b"output: No space left on device.\n")


def test_called_from_python(folder):
    """main returns the status, and leaves streams as they were: in memory, or a file with any encoding."""
    memory = io.StringIO()
    with contextlib.redirect_stdout(memory):
        assert main(["fill", TEXT, "--top-k", "1"]) == 0
        assert main(["plan", "--help"]) == 0
        assert main(["plan", "xl", "--ranks", 2]) == 0
    assert "usage: " in memory.getvalue()
    assert "3,482,741,760" in memory.getvalue()
    for encoding in ("utf-16", "utf-8", "ascii"):
        with open("out.txt", "w", encoding=encoding, errors="strict") as file:
            with contextlib.redirect_stdout(file):
                file.write("before\n")
                assert main(FILL) == 0
            assert (file.encoding, file.errors) == (encoding, "strict")
            file.write("after\n")
        text = (folder / "out.txt").read_text(encoding="utf-8" if encoding == "ascii" else encoding)
        assert text.startswith("before\n<mask> 1\n")
        assert text.endswith("\nafter\n")
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()):
        assert main(["plan", "xl"]) == 0
        assert main(["plan"]) == 2
        assert main([]) == 2


def test_in_a_notebook(folder):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        f"%run -m xlmrxl_min fill '{TEXT}' --top-k 1",
        "%run -m xlmrxl_min fill no",
        "from xlmrxl_min.__main__ import main\nmain(['plan', '--help']), main(['plan', 'xl']), main(['fill', 'no'])",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert texts[0].startswith("<mask> 1\n")
    assert "usage: " in texts[2]
    assert "3,482,741,760" in texts[2]
    assert "there is nothing to fill in 'no'" in texts[2]
    assert notebook.cells[2].outputs[-1]["data"]["text/plain"] == "(0, 0, 2)"
    assert texts[1] == "there is nothing to fill in 'no': put <mask> where a word is missing.\n", "and no traceback"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_control_c_ends_a_command_in_one_line(folder):
    (folder / "corpus").mkdir()
    corpus, writer = folder / "corpus" / "corpus.tsv", None
    os.mkfifo(corpus)  # to read it never ends
    code = """
import signal, sys
from xlmrxl_min.__main__ import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "evaluate", "tiny", "--corpus", "corpus"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            while writer is None and process.poll() is None:  # a signal in the middle of an import may be lost there
                try:
                    writer = os.open(corpus, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:  # nobody reads it yet
                    time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()  # without effect if it has ended
            if writer is not None:
                os.close(writer)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted."


# ---- names


def test_a_folder_of_the_user_comes_before_a_bundled_name_and_a_size(folder, capsys):
    small = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=12002, **small))
    for name in ("tiny", "xl"):
        (folder / name).mkdir()
    assert main(["plan", "xl"]) == 0
    assert "3,482,741,760" in capsys.readouterr().out, "an empty folder does not count"
    for name in ("tiny", "xl"):
        model.save_pretrained(name)
        XLMRobertaTokenizer.from_pretrained(PRETRAINED / "tiny").save_pretrained(name)
    number = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    for name in ("tiny", "xl"):
        assert main(["plan", name]) == 0
        printed = capsys.readouterr()
        assert number in printed.out
        assert printed.err.startswith(f"'{name}' is the folder {folder / name} here, not the ")
        assert printed.err.count("\n") == 1
    assert main(["fill", "a <mask>"]) == 0
    assert capsys.readouterr().err.count("\n") == 1, "one notice for model and tokenizer"
    assert main(["convert", "tiny", "out", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert XLMRobertaXLConfig.from_pretrained("out").hidden_size == 24
    assert main(["fill", "a <mask>", "--model", "out/model.safetensors"]) == 0
    assert main(["plan", "out/model.safetensors"]) == 0
    assert number in capsys.readouterr().out


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("fill ''", "there is nothing to fill in ''"),
        ("fill no", "put <mask>"),
        ("fill '<mask> {long}'", "tokens are too many"),
        ("fill <mask> --top-k 0", "top_k=0 is impossible"),
        ("fill <mask> --model nowhere", "nowhere is no folder"),
        ("fill <mask> --model ./nowhere", "nowhere does not exist"),
        ("fill <mask> --model out/model.safetensors", "does not exist"),
        ("fill <mask> --model ''", "got '' for a checkpoint"),
        ("fill <mask> --model notes.txt", "notes.txt is a file, but none of weights"),
        ("attend ''", "nothing to look at in ''"),
        ("attend '{long}'", "tokens are too many"),
        ("attend a -o folder", "folder"),
        ("attend a -o ''", "empty"),
        ("attend a -o notes.txt/page.html", "notes.txt"),
        ("plan nowhere", "nowhere is no folder"),
        ("plan xl --tokens 0", "0 tokens is impossible"),
        ("plan xl --tokens -1", "-1 tokens is impossible"),
        ("plan xl --tokens 513", "513 tokens are too many"),
        ("plan xl --batch 0", "a batch of 0 texts"),
        ("plan xl --batch -2", "a batch of -2 texts"),
        ("plan xl --ranks 0", "0 ranks are impossible"),
        ("plan xl --ranks 2 -4", "-4 ranks are impossible"),
        ("plan xl --ranks 3", "cannot be sharded over 3 ranks"),
        ("plan xl --int8 --ranks 2", "int8 weights are not sharded"),
        ("convert tiny ''", "it is empty, which would mean the working folder"),
        ("convert tiny notes.txt", "notes.txt"),
        ("convert tiny-copy tiny-copy", "is the folder of the source itself"),
        ("convert tiny-copy ./tiny-copy/", "is the folder of the source itself"),
        ("convert tiny-copy/model.safetensors tiny-copy", "is the folder of the source itself"),
        ("convert xl out", "xl is no folder"),
        ("pretrain nope.json --corpus corpus --into out", "nope.json: No such file or directory."),
        ("pretrain folder --corpus corpus --into out", "folder: "),
        ("pretrain notes.txt --corpus corpus --into out", "notes.txt is no recipe"),
        ("pretrain list.json --corpus corpus --into out", "list.json is no recipe"),
        ("pretrain recipe.json --corpus corpus --into notes.txt", "notes.txt"),
        ("pretrain recipe.json --corpus corpus --into ''", "it is empty, which would mean the working folder"),
        (
            "pretrain unknown.json --corpus corpus --into out",
            "unknown.json is no recipe: it has unknown fields: languages",
        ),
        ("course run nope", "There is no notebook 'nope'"),
        ("course run 99 00", "There is no notebook '99'"),
        ("course read notes.txt", "notes.txt is there already"),
        ("course read ''", "empty"),
        ("course badges nope", "OWNER/NAME"),
        ("distributed fill <mask>", "start this with torchrun"),
        ("distributed train", "start this with torchrun"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, words, mistake, folder, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    recipe = json.loads((PRETRAINED.parent / "training" / "recipes" / "tiny.json").read_text())
    (folder / "folder").mkdir()
    (folder / "notes.txt").write_text("{mine}")
    (folder / "list.json").write_text("[1]")
    (folder / "recipe.json").write_text(json.dumps({**recipe, "steps": 1}))
    (folder / "unknown.json").write_text(json.dumps({**recipe, "languages": "en"}))
    if "tiny-copy" in arguments:
        shutil.copytree(PRETRAINED / "tiny", folder / "tiny-copy")
    before = sorted(folder.rglob("*"))
    assert words in mistake(*shlex.split(arguments.format(long="word " * 600)))
    assert sorted(path for path in folder.rglob("*") if path != folder / "out") == before, "nothing is written"


def test_int8_is_kept_only_when_asked_for(folder, capsys):
    """`convert` has no way back from int8: without --int8 it is refused."""
    assert main(["convert", "tiny", "int8", "--int8"]) == 0
    for options in ([], ["--dtype", "float32"], ["--dtype", "bfloat16"]):
        assert main(["convert", "int8", "out", *options]) == 2
        assert "int8 holds int8 weights, which are not converted back: pass --int8" in capsys.readouterr().err
        assert not (folder / "out").exists()
    assert main(["convert", "int8", "out", "--int8", "--dtype", "bfloat16"]) == 0
    ours = XLMRobertaXLForMaskedLM.from_pretrained("out", dtype="bfloat16")
    assert ours.backbone.layers[0].attention.query.weight.dtype == torch.int8


def test_usage_errors_have_status_2(folder, capsys):
    for arguments in ([], ["nope"], ["fill"], ["plan", "xl", "--tokens", "x"], ["course"], ["pretrain", "a.json"]):
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("usage: ")
        assert not printed.out
