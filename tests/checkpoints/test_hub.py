"""Models on the Hugging Face hub: options are passed on; without a network the cache is taken, and at once.

A server on this machine stands in for the hub. Without a network means a port that refuses, or one that never answers.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForMaskedLM

ID = "somebody/something"
COMMIT = hashlib.sha1(b"bin").hexdigest()  # of the revision "bin"
CLIENT = """
import json, sys, time
import huggingface_hub, torch
from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
XLMRobertaXLForMaskedLM.from_pretrained("tiny")  # torch's own imports, once in a process
for options in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        model = XLMRobertaXLForMaskedLM.from_pretrained("somebody/something", **options)
        tokenizer = XLMRobertaTokenizer.from_pretrained("somebody/something", **options)
        assert XLMRobertaXLConfig.from_pretrained("somebody/something", **options) == model.config
        with torch.no_grad():
            answer = model(**tokenizer("a <mask>", return_tensors="pt")).logits.sum().item()
    except ValueError as error:
        answer = str(error)
    print(json.dumps([answer, time.perf_counter() - start]), flush=True)
"""


class Hub(ThreadingHTTPServer):
    """Serves the files of `folders`, {revision: folder}, as the hub does, and records what was asked for."""

    daemon_threads = True

    def __init__(self, folders):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folders, self.asked, self.tokens = folders, [], set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        *name, _, revision, file = self.path.strip("/").split("/")
        self.server.asked.append((self.command, revision, file))
        self.server.tokens.add(self.headers["Authorization"])
        commits = {commit_of(known): known for known in self.server.folders}
        folder = self.server.folders.get(commits.get(revision, revision))
        path = folder / file if folder else None
        if "/".join(name) != ID or path is None or not path.exists():
            kind = "RepoNotFound" if "/".join(name) != ID else "EntryNotFound" if folder else "RevisionNotFound"
            self.reply(404, {"X-Error-Code": kind, "Content-Length": "0"})
            return
        content = path.read_bytes()
        commit = revision if revision in commits else commit_of(revision)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.reply(200, {"ETag": etag, "X-Repo-Commit": commit, "Content-Length": str(len(content))})
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def reply(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


def commit_of(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


def client(url, home, *loads, offline=False):
    """Load with each of the options in a new process; for each what the model answers, or an error, and the seconds."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", CLIENT, json.dumps(loads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr, "nobody waits for that"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model in three shards, as "main", in a pytorch_model.bin, as "bin", without weights, as "none", as "evil"."""
    root = tmp_path_factory.mktemp("models")
    model, tokenizer = (kind.from_pretrained("tiny") for kind in (XLMRobertaXLForMaskedLM, XLMRobertaTokenizer))
    for revision in ("main", "bin", "none"):
        model.save_pretrained(root / revision, max_shard_size="9MB" if revision == "main" else "5GB")
        tokenizer.save_pretrained(root / revision)
    weights = [root / revision / "model.safetensors" for revision in ("bin", "none")]
    torch.save(load_file(weights[0]), root / "bin" / "pytorch_model.bin")
    for path in weights:
        path.unlink()
    shutil.copytree(root / "none", root / "evil")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (root / "evil" / "model.safetensors.index.json").write_text(json.dumps(index))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def online(folders, tmp_path_factory):
    """What was answered, a cache with the revisions main and bin, and what was asked for in which load."""
    root = tmp_path_factory.mktemp("cache")
    with Hub(folders) as hub:
        loads = [
            {},
            {"revision": "bin"},
            {"revision": "bin", "token": "hf_abc", "cache_dir": str(root / "other")},
            {"revision": "nope"},
            {"revision": "none"},
            {"revision": "evil"},
            {"local_files_only": True},
            {"local_files_only": True, "cache_dir": str(root / "empty")},
        ]
        answers = [answer for answer, _ in client(hub.url, root / "home", *loads)]
        hub.shutdown()
    return root, answers, hub


def test_the_shards_of_an_index_are_downloaded_and_no_other_files(online, folders):
    _, _, hub = online
    got = [file for method, revision, file in hub.asked if method == "GET" and revision in ("main", commit_of("main"))]
    shards = sorted(path.name for path in folders["main"].glob("*.safetensors"))
    assert len(shards) == 3
    others = ["config.json", "model.safetensors.index.json", "sentencepiece.bpe.model", "tokenizer_config.json"]
    assert sorted(got) == sorted([*shards, *others])


def test_revision_cache_dir_and_token_are_passed_on(online):
    root, answers, hub = online
    assert answers[1] == answers[2] == pytest.approx(answers[0])
    assert ("GET", "bin", "pytorch_model.bin") in hub.asked, "model.safetensors does not exist there"
    commits = {path.name for path in (root / "other").glob("models--somebody--something/snapshots/*")}
    assert commits == {COMMIT}
    assert hub.tokens == {None, "Bearer hf_abc"}


def test_what_does_not_exist_on_the_hub_is_told(online):
    _, answers, _ = online
    assert "RevisionNotFoundError" in answers[3]
    assert answers[4].startswith("somebody/something has none of model.safetensors, ")


def test_an_index_that_points_elsewhere_is_not_followed(online):
    _, answers, hub = online
    assert "which is no file beside it: do not trust it" in answers[5]
    assert not any("secret" in file for _, _, file in hub.asked)


def test_local_files_only_takes_the_cache_or_nothing(online):
    _, answers, _ = online
    assert answers[6] == answers[0]
    assert answers[7].startswith("somebody/something is no folder, and config.json could not be downloaded")
    assert "LocalEntryNotFoundError" in answers[7]


def test_without_a_network_the_cache_is_taken_at_once(online):
    """For each revision, by a port that refuses and by one that accepts and is silent; the times of both processes."""
    root, answers, _ = online
    loads = [{}, {"revision": "bin"}, {"revision": COMMIT}, {"revision": "none"}]
    with socket.socket() as refusing, socket.socket() as silent:
        for one in (refusing, silent):
            one.bind(("127.0.0.1", 0))
        silent.listen()  # the system accepts
        refuses, is_silent = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (refusing, silent))
        offline = client(refuses, root / "home", *loads, offline=True)
        assert [answer for answer, _ in offline[:3]] == [answers[0], answers[1], answers[1]]
        assert "model.safetensors could not be downloaded" in offline[3][0], "only its config is in the cache"
        limit = sum(seconds for _, seconds in offline) + 30  # to wait 10 s for each file would take minutes
        for url in (refuses, is_silent):
            found = client(url, root / "home", *loads)
            assert [answer for answer, _ in found[:3]] == [answer for answer, _ in offline[:3]]
            assert "could not be downloaded" in found[3][0]
            assert sum(seconds for _, seconds in found) < limit, f"{url}: {found}, and without looking up {offline}"
