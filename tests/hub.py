"""A small hub on the loopback that speaks the real one's API, for what tests put into it.

Written after what huggingface_hub and datasets ask for. Large files are on another host (localhost
instead of 127.0.0.1), as the real ones are on a CDN.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".parquet", ".jsonl", ".safetensors")
"""Suffixes of files that are kept on the other host."""
PAGE = 100
"""Most entries of a listing that are given at once."""
MEMBER = "hf_member"
"""Token of a user who may see everything; other tokens are of users who may not."""
_API = re.compile(
    r"/api/(?P<kind>datasets|models)/(?P<id>[^/]+/[^/]+)"
    r"(/(?P<what>revision|tree)/(?P<revision>[^/]+))?(/(?P<path>.+))?"
)
_FILE = re.compile(
    r"/((?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


@dataclass
class Repo:
    """A repository: commits, branches, and how the hub treats it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    moved_to: str | None = None
    breaks: int = 0
    """Downloads of large files that break off after half of what is left."""

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put files on a branch; return the commit."""
        before = self.branches.get(branch)
        sha = _sha(repr((branch, sorted(files.items()), before)).encode())[:40]
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha


class Hub:
    """Repositories by kind and id ("datasets/owner/name"), and every request so far."""

    def __init__(self, url: str) -> None:
        self.url, self.repos, self.log = url, dict[str, Repo](), list[str]()
        self.down = False

    def repo(self, name: str, files: Mapping[str, bytes] | None = None, **treated: Any) -> Repo:
        self.repos[name] = Repo(**treated)
        self.repos[name].commit(files or {})
        return self.repos[name]

    def asked(self, part: str) -> list[str]:
        """Return the requests that hold some text."""
        return [line for line in self.log if part in line]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def handle_request(self) -> None:
        url, asked = urlsplit(self.path), f"{self.command} {unquote(self.path)}"
        if url.path != "/api/agent-harnesses":  # which huggingface_hub asks for itself
            self.hub.log.append(f"{asked} {self.headers.get('Range', '')}".strip())
        if self.hub.down:
            self.close_connection = True
        elif url.path.startswith("/cdn/"):
            self.send_bytes(self.blob(url.path.removeprefix("/cdn/")), {})
        elif found := _API.fullmatch(url.path):
            self.api(found, parse_qs(url.query))
        elif found := _FILE.fullmatch(url.path):
            self.file(found)
        else:
            self.refuse(404, "NotFound")

    do_GET = do_HEAD = handle_request  # noqa: N815

    def found(self, asked: re.Match[str]) -> tuple[Repo, str, dict[str, bytes]] | None:
        """Return repository, commit and files that are asked for, or answer that there are none."""
        name = f"{asked['kind'] or 'models'}/{asked['id']}"
        repo, token = self.hub.repos.get(name), self.headers.get("Authorization")
        if repo is None or (repo.private and token != f"Bearer {MEMBER}"):
            # Who is not logged in is not told whether it exists.
            self.refuse(404 if token else 401, "RepoNotFound" if token else None)
            return None
        if repo.moved_to is not None:
            there = self.path.replace(asked["id"], repo.moved_to, 1)
            self.answer(307, b"", {"Location": there})
            return None
        revision = unquote(asked["revision"] or "main")
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self.refuse(404, "RevisionNotFound")
            return None
        return repo, commit, repo.commits[commit]

    def api(self, asked: re.Match[str], query: dict[str, list[str]]) -> None:
        if (found := self.found(asked)) is None:
            return
        _, commit, files = found
        if asked["what"] == "tree":
            self.tree(files, unquote(asked["path"] or ""), query)
        else:
            info = {"_id": "0" * 24, "id": asked["id"], "sha": commit}
            self.answer(200, json.dumps(info).encode(), {})

    def tree(self, files: dict[str, bytes], below: str, query: dict[str, list[str]]) -> None:
        """Answer with one page of a folder."""
        base = f"{below}/" if below else ""
        entries = dict[str, Any]()
        for path in sorted(path for path in files if path.startswith(base)):
            steps = path.removeprefix(base).split("/")
            for depth in range(1, len(steps)):
                folder = base + "/".join(steps[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0", "size": 0}
            content = files[path]
            entries[path] = {"type": "file", "path": path, "oid": "0", "size": len(content)}
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = {path: e for path, e in entries.items() if "/" not in path[len(base) :]}
        if below and not entries:
            self.refuse(404, "EntryNotFound")
            return
        start = int(query.get("cursor", ["0"])[0])
        page, more = list(entries.values())[start : start + PAGE], start + PAGE < len(entries)
        rest = "&".join(f"{name}={query[name][0]}" for name in query if name != "cursor")
        link = (
            f'<{self.hub.url}{urlsplit(self.path).path}?{rest}&cursor={start + PAGE}>; rel="next"'
        )
        self.answer(200, json.dumps(page).encode(), {"Link": link} if more else {})

    def file(self, asked: re.Match[str]) -> None:
        if (found := self.found(asked)) is None:
            return
        (repo, commit, files), token = found, self.headers.get("Authorization")
        headers, path = {"X-Repo-Commit": commit}, unquote(asked["path"])
        if repo.gated and token != f"Bearer {MEMBER}":
            self.refuse(403 if token else 401, "GatedRepo")
        elif path not in files:
            self.refuse(404, "EntryNotFound", headers)
        elif path.endswith(LARGE):
            sha, there = _sha(files[path]), self.hub.url.replace("127.0.0.1", "localhost")
            headers |= {"X-Linked-Size": str(len(files[path])), "X-Linked-ETag": f'"{sha}"'}
            self.answer(302, b"", headers | {"Location": f"{there}/cdn/{sha}"})
        else:
            self.send_bytes((repo, files[path]), headers | {"ETag": f'"{_sha(files[path])[:40]}"'})

    def blob(self, sha: str) -> tuple[Repo, bytes]:
        return next(
            (repo, content)
            for repo in self.hub.repos.values()
            for files in repo.commits.values()
            for content in files.values()
            if _sha(content) == sha
        )

    def send_bytes(self, found: tuple[Repo, bytes], headers: dict[str, str]) -> None:
        """Answer with a file, or the range of it that is asked for."""
        repo, content = found
        size, status = len(content), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end, status = int(asked[1]), min(int(asked[2] or size), size - 1), 206
            headers = headers | {"Content-Range": f"bytes {start}-{end}/{size}"}
            content = content[start : end + 1]
        breaks = self.command == "GET" and "/cdn/" in self.path and repo.breaks > 0
        repo.breaks -= breaks
        self.answer(status, content, headers, len(content) // 2 if breaks else None)

    def refuse(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        self.answer(status, b"", ({"X-Error-Code": code} if code else {}) | (headers or {}))

    def answer(
        self, status: int, content: bytes, headers: dict[str, str], sent: int | None = None
    ) -> None:
        """Answer; `sent`: break off after so many bytes."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
        self.close_connection = self.close_connection or sent is not None


@cache
def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield an empty hub that answers on a free port."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.hub = hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
