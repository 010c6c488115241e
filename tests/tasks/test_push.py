"""task=card push=OWNER/NAME: what a server on this machine gets from the Hugging Face client."""

import base64
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from runner.__main__ import main
from runner.errors import RunError
from runner.tasks.push import _files, push
from tests.run_folders import write_run
from tests.tasks.test_card import DATA, certified

pytest.importorskip("huggingface_hub", reason="the extra huggingface is not installed")
TOKEN = "hf_" + "x" * 30


class Hub:
    """A server with the requests that a commit of small files makes."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.commit: list[dict[str, Any]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                hub.requests.append((self.path, self.headers.get("authorization", ""), body))
                status, answer = hub.answer(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            return 200, {"url": f"{self.address}/me/digits", "name": "me/digits"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            kind = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return 200, {"files": [{"path": each["path"], **kind} for each in asked]}
        if "/commit/" in path:
            self.commit = [json.loads(line) for line in body.splitlines()]
            return 200, {"commitUrl": f"{self.address}/me/digits/commit/1", "commitOid": "1"}
        return 404, {"error": "not found"}

    @property
    def files(self) -> dict[str, bytes]:
        values = [each["value"] for each in self.commit if each["key"] == "file"]
        return {each["path"]: base64.b64decode(each["content"]) for each in values}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    thread = Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_a_private_repository_gets_the_card_and_the_files_in_one_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The token is in the headers of the requests alone. Logs and what tells of the machine are
    not pushed."""
    made = write_run(tmp_path, ["schedule=cosine"], 3, 0.25, data=DATA)
    folder = certified(made.rename(tmp_path / "run"))
    (folder / "run.log").write_text("everything")
    weights = folder / "checkpoints" / "80" / "weights.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"numbers")
    (folder / "checkpoints" / "last").unlink(missing_ok=True)
    (folder / "checkpoints" / "last").symlink_to("80")
    line = ["runner", "task=card", f"run={folder}", "push=me/digits"]
    monkeypatch.setattr(sys, "argv", line)
    assert main() == 0
    printed = capsys.readouterr()
    assert f"pushed   {len(hub.files)} files to {hub.address}/me/digits" in printed.out
    assert hub.files["card.json"] == (folder / "card.json").read_bytes()
    head, _, text = hub.files["README.md"].decode().removeprefix("---\n").partition("\n---\n\n")
    assert text == (folder / "card.md").read_text()
    assert "library_name: twinrun" in head
    assert hub.files["checkpoints/80/weights.safetensors"] == b"numbers"
    assert hub.files["checkpoints/last"] == b"80"  # a repository has no links
    assert hub.files["result.json"] == (folder / "result.json").read_bytes()
    assert {*hub.files}.isdisjoint({"run.log", "environment.json"})
    created = json.loads(hub.requests[0][2])
    assert (created["organization"], created["name"]) == ("me", "digits")
    assert created.get("visibility", "private" if created.get("private") else "") == "private"
    assert {authorization for _, authorization, _ in hub.requests} == {f"Bearer {TOKEN}"}
    bodies = b"".join(body for _, _, body in hub.requests)
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert TOKEN.encode() not in bodies + written + (printed.out + printed.err).encode()


def test_a_multirun_is_pushed_with_all_that_task_verify_needs_of_its_jobs(tmp_path: Path) -> None:
    made = certified(write_run(tmp_path, ["schedule=cosine"], 0, 0.5, data=DATA))
    (tmp_path / "answer.json").write_text("{}")
    names = {name for name, _ in _files(tmp_path)}
    needed = ("config.yaml", "data.json", "result.json", "trace.csv", "certificate.json")
    assert {"answer.json", *(f"{made.name}/{name}" for name in needed)} <= names
    assert f"{made.name}/environment.json" not in names


def test_a_refusal_is_one_line_without_the_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, body: bytes) -> tuple[int, Any]:
        return 401, {"error": f"the token {TOKEN} is not known"}

    monkeypatch.setattr(hub, "answer", refuse)
    (tmp_path / "card.md").write_text("# A card")
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(RunError, match=r"^push=me/digits failed: \w+: .*HF_TOKEN gives") as raised:
        push(tmp_path, "me/digits", {"kind": "schedule", "claim": ["a is best"]})
    assert TOKEN not in str(raised.value)
    assert "\n" not in str(raised.value)
