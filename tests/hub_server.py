"""A Hub on this machine: repositories with branches, tags and commits, served as `huggingface_hub` downloads them.

It speaks what downloading needs: model info, the listing of files, and `resolve`, where large files live on a second
address, as they do on the real Hub. It counts what is asked for, and can cut a download or leave it hanging.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


LARGE = (".safetensors", ".model")  # what the Hub keeps apart and redirects to
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<kind>revision|tree)/(?P<revision>[^/]+))?/?(?P<path>.*)")
RESOLVE = re.compile(r"(?P<large>/large)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Commit(NamedTuple):
    """A state of a repository: its id, and its files by path."""

    id: str
    files: dict[str, bytes]


class HubServer(ThreadingHTTPServer):
    """Serves repositories on a free port of localhost, see `endpoint`.

    Attributes:
        requests: How often each (method, repository, path) was asked for; an API call has the path of its URL.
        sent: Bytes of content sent of each (repository, path).
        ranges: The last `Range` header by path.
        faults: By path, after how many bytes its next download ends, and whether it hangs then or is cut.
        hanging: Set while a download hangs, until `released` is set.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Commit]] = {}
        self.faults: dict[str, tuple[int, bool]] = {}
        self.hanging, self.released, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.forget()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """What `HF_ENDPOINT` is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def forget(self) -> None:
        """Count from zero."""
        self.requests, self.sent, self.ranges = Counter(), Counter(), {}

    def commit(self, repo: str, folder: Path, *names: str) -> str:
        """Publish a folder as a commit, let branches and tags (none: `main`) point to it, and return its id."""
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        listing = json.dumps([repo, {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}])
        commit = Commit(hashlib.sha1(listing.encode()).hexdigest(), files)
        self.repositories.setdefault(repo, {}).update(dict.fromkeys((commit.id, *(names or ("main",))), commit))
        return commit.id

    def asked(self, repo: str, *methods: str) -> Counter:
        """Return how often each path of a repository was asked for, by any method or by these."""
        counts = Counter()
        for (method, name, path), count in self.requests.items():
            if name == repo and method in (methods or ("HEAD", "GET")):
                counts[path] += count
        return counts


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = unquote(urlsplit(self.path).path)
        match = RESOLVE.fullmatch(address) or API.fullmatch(address)
        if match is None:
            self.refuse("RepoNotFound")
            return
        found = match.groupdict()
        is_file = match.re is RESOLVE
        if not found.get("large"):  # the second address of a large file is not asked for on its own
            with self.server.lock:
                self.server.requests[self.command, found["repo"], found["path"] if is_file else address] += 1
        commits, revision = self.server.repositories.get(found["repo"]), found["revision"] or "main"
        if commits is None or revision not in commits:
            self.refuse("RepoNotFound" if commits is None else "RevisionNotFound")
        elif is_file:
            self.send_file(found["repo"], commits[revision], found["path"], bool(found["large"]))
        else:
            self.send_info(found["repo"], commits[revision], found["kind"], found["path"])

    def send_info(self, repo: str, commit: Commit, kind: str | None, path: str) -> None:
        """Describe a repository, or list its files."""
        if kind != "tree":
            files = [{"rfilename": name} for name in commit.files]
            self.send(json.dumps({"id": repo, "sha": commit.id, "private": False, "tags": [], "siblings": files}))
            return
        found = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in commit.files.items()
            if name.startswith(f"{path}/" if path else "")
        ]
        if found:
            self.send(json.dumps(found))
        else:
            self.refuse("EntryNotFound", commit)

    def send_file(self, repo: str, commit: Commit, path: str, is_at_second_address: bool) -> None:
        """Send a file, or the part that is asked for; of a large file where it is."""
        if path not in commit.files:
            self.refuse("EntryNotFound", commit)
            return
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if path.endswith(LARGE) and not is_at_second_address:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
            headers["Location"] = f"{self.server.endpoint}/large/{repo}/resolve/{commit.id}/{path}"
            self.send("", 302, headers)
            return
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            self.server.ranges[path] = match[0]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        fault = self.server.faults.pop(path, None) if self.command == "GET" else None
        if self.command == "GET":
            with self.server.lock:
                self.server.sent[repo, path] += len(content[start:][: fault and fault[0]])
        self.send(content[start:], 206 if start else 200, headers, fault)

    def refuse(self, code: str, commit: Commit | None = None) -> None:
        """Say what is not there, in the Hub's own code."""
        self.send(code, 404, {"X-Error-Code": code} | ({"X-Repo-Commit": commit.id} if commit else {}))

    def send(
        self,
        content: str | bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        fault: tuple | None = None,
    ) -> None:
        """Send an answer, up to its fault."""
        content = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end, hangs = fault or (None, False)
        self.wfile.write(content[:end])
        if fault is None:
            return
        self.wfile.flush()
        self.close_connection = True
        if hangs:
            self.server.hanging.set()
            self.server.released.wait(60)

    def log_message(self, *args: object) -> None:
        """Say nothing."""
