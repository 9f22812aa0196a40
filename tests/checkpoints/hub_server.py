"""A small Hub on 127.0.0.1: what the real client asks of it when models are found and read.

    GET  /api/models/{id}[/revision/{revision}]     commit of a branch
    GET  /api/models/{id}/tree/{revision}           files with sizes
    HEAD /{id}/resolve/{revision}/{file}            ETag, X-Repo-Commit, size
    GET  the same                                   content, with ranges

Large files answer with a redirect to another host, as the Hub does.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves, how it misbehaves, and what it was asked."""

    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    honours_ranges: bool = True
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    bytes_sent: int = 0
    url: str = ""
    storage_url: str = ""


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        # Data sets are served like models, under names of their own.
        path = path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+|/tree/.+)?", path):
            self._api(match[1], match[2] or "")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            self._content((self.hub.models[match[1]] / match[2]).read_bytes())
        else:
            self._send(404, b"")

    def _refused(self, model: str, revision: str) -> bool:
        if model not in self.hub.models:
            self._send(404, b"", **{"X-Error-Code": "RepoNotFound"})
        elif model in self.hub.gated:
            self._send(403, b"", **{"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", COMMIT):
            self._send(404, b"", **{"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _api(self, model: str, rest: str) -> None:
        revision = rest.rpartition("/")[2] or "main"
        if self._refused(model, revision):
            return
        root = self.hub.models[model]
        files = sorted(path for path in root.rglob("*") if path.is_file())
        if rest.startswith("/tree/"):
            tree = [
                {
                    "type": "file", "path": str(path.relative_to(root)),
                    "size": path.stat().st_size, "oid": _etag(path.read_bytes())[:40],
                }
                for path in files
            ]  # fmt: skip
            self._send(200, json.dumps(tree).encode())
            return
        siblings = [{"rfilename": str(path.relative_to(root))} for path in files]
        info = {"_id": "1", "id": model, "sha": COMMIT, "siblings": siblings, "private": False}
        self._send(200, json.dumps(info).encode())

    def _file(self, model: str, revision: str, name: str) -> None:
        if self._refused(model, revision):
            return
        path = self.hub.models[model] / name
        if not path.is_file():
            self._send(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT}
        if name.endswith(".safetensors"):
            headers |= {
                "X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"],
                "Location": f"{self.hub.storage_url}/storage/{model}/{name}",
            }  # fmt: skip
            self._send(302, b"", **headers)
        else:
            self._content(content, **headers)

    def _content(self, content: bytes, **headers: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and self.hub.honours_ranges:
            begin = int(wanted[1])
            end = min(int(wanted[2] or len(content) - 1) + 1, len(content))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            self._send(206, content[begin:end], **headers)
        else:
            self._send(200, content, **headers)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.hub.bytes_sent += len(body)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a Hub until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    port = server.server_address[1]
    hub.url = f"http://127.0.0.1:{port}"
    # Another host name, because the client treats redirects within a host differently.
    hub.storage_url = f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
