"""A Hugging Face Hub small enough for a test: repositories in memory, the HTTP calls that huggingface_hub makes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

DATASET = r"/api/datasets/(?P<name>[^/]+/[^/]+)"
ROUTES = {
    "create": r"/api/repos/create",
    "yaml": r"/api/validate-yaml",
    "branch": DATASET + r"/branch/(?P<revision>[^/]+)",
    "info": DATASET + r"(/revision/(?P<revision>[^/]+))?",
    "tree": DATASET + r"/tree/(?P<revision>[^/]+)/?",
    "preupload": DATASET + r"/preupload/(?P<revision>[^/]+)",
    "commit": DATASET + r"/commit/(?P<revision>[^/]+)",
    "file": r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
}
Files = dict[str, bytes]


class Hub:
    """``repositories[name][revision]`` are files by path; ``fetched`` lists the files that were given."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Files]] = {}
        self.private: dict[str, bool] = {}
        self.fetched: list[str] = []

    def sha(self, name: str, revision: str) -> str:
        files = self.repositories[name][revision]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def files(self, name: str, revision: str) -> Files | None:
        branches = self.repositories.get(name, {})
        return next((f for r, f in branches.items() if revision in (r, self.sha(name, r))), None)

    def create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"https://huggingface.co/datasets/{name}"}
        if name in self.repositories:
            return 409, url
        self.repositories[name] = {"main": {".gitattributes": b""}}
        self.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, url

    def yaml(self, body: bytes) -> tuple[int, Any]:
        return 200, {"errors": [], "warnings": []}

    def branch(self, body: bytes, name: str, revision: str) -> tuple[int, Any]:
        branches = self.repositories[name]
        if revision in branches:
            return 409, {}
        branches[revision] = dict(branches["main"])
        return 200, {}

    def info(self, body: bytes, name: str, revision: str | None = None) -> tuple[int, Any]:
        files = self.files(name, revision or "main")
        if files is None:
            return 404, {}
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        return 200, {"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]}

    def tree(self, body: bytes, name: str, revision: str) -> tuple[int, Any]:
        files = self.files(name, revision)
        if files is None:
            return 404, {}
        return 200, [{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()]

    def preupload(self, body: bytes, name: str, revision: str) -> tuple[int, Any]:
        paths = [file["path"] for file in json.loads(body)["files"]]
        return 200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}

    def commit(self, body: bytes, name: str, revision: str) -> tuple[int, Any]:
        files = dict(self.repositories[name][revision])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        self.repositories[name][revision] = files
        sha = self.sha(name, revision)
        return 200, {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"https://huggingface.co/datasets/{name}/commit/{sha}",
        }


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        for route, pattern in ROUTES.items():
            found = re.fullmatch(pattern, path)
            if found and route == "file":
                return self._file(**found.groupdict())
            if found:
                status, value = getattr(self.hub, route)(body, **found.groupdict())
                return self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
        self._send(404, path.encode(), {})

    def _file(self, name: str, revision: str, path: str) -> None:
        files = self.hub.files(name, revision)
        if files is None or path not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.hub.fetched.append(path)
        self._send(200, files[path], {"ETag": f'"{_oid(files[path])}"', "X-Repo-Commit": revision})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_HEAD = _answer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serve() -> Iterator[tuple[str, Hub]]:
    """The address of a hub that runs inside this block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
