"""The policy, every door that it closes, and that what it allows is read; local servers and a stub resolver only."""

import base64
import contextlib
import io
import os
import pickle
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from internvl_chat.media_internvl import (
    LOCAL_POLICY,
    MediaPolicy,
    MediaReader,
    MediaRefusedError,
    media_policy,
)


DATA = bytes(range(256))
TEXT = base64.b64encode(DATA).decode()


def read(source, name="image", **policy):
    return MediaReader(MediaPolicy(**policy)).read(source, name)


class Handler(BaseHTTPRequestHandler):
    """What the paths answer."""

    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        kind, _, rest = self.path[1:].partition("/")
        self.send_response(302 if kind in ("to", "loop") else 404 if kind == "missing" else 200)
        if kind in ("to", "loop"):
            self.send_header("Location", rest.replace("|", "/") or self.path)
        if kind == "long":
            self.send_header("Content-Length", "100000000")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(40 if kind == "slow" else 1):
                self.wfile.write(DATA)
                self.wfile.flush()
                time.sleep(0.05 if kind == "slow" else 0)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def resolver(monkeypatch):
    """Let every name have the addresses of a table; the answers to a name may differ from time to time."""
    table, asked = {}, []

    def getaddrinfo(host, port, *args, **kwargs):
        asked.append(host)
        answers = table.get(host.lower(), [host])
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table, asked


# The policy


def test_policies_by_name():
    assert media_policy("inline") == MediaPolicy() == media_policy({})
    assert media_policy("local") is LOCAL_POLICY
    policy = media_policy({"allowed_media_domains": ["Example.COM."], "max_frames_per_video": 9})
    assert policy.allowed_media_domains == ("example.com",)
    assert policy.max_frames_per_video == 9
    assert policy.allowed_local_media_path is None
    assert media_policy(policy) == policy == pickle.loads(pickle.dumps(policy))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("open", ValueError, "media_policy is 'open', expected 'inline', 'local' or a dict"),
        (None, TypeError, "media_policy is None, expected 'inline', 'local' or a dict"),
        ({"max_byte": 3}, TypeError, r"media_policy holds \['max_byte'\], expected some of allowed_local_media_path"),
        ({"max_bytes_per_item": 0}, ValueError, "max_bytes_per_item is 0, expected a positive number, or None"),
        ({"max_images_per_call": True}, ValueError, "max_images_per_call is True, expected a positive number"),
        ({"max_images_per_call": 2.5}, ValueError, "max_images_per_call is 2.5, expected"),
        ({"max_seconds_per_call": float("nan")}, ValueError, "max_seconds_per_call is nan, expected"),
        (
            {"allowed_media_domains": "a.com"},
            TypeError,
            "allowed_media_domains is 'a.com', expected a list of strings",
        ),
        ({"allowed_media_domains": ["http://a.com"]}, ValueError, "expected names of hosts such as 'example.com'"),
        ({"allowed_media_domains": ["*.a.com"]}, ValueError, "expected names of hosts"),
        ({"allowed_private_addresses": ["lan"]}, ValueError, "allowed_private_addresses holds 'lan', expected IP"),
        ({"allowed_local_media_path": 3}, TypeError, "allowed_local_media_path is 3, expected a folder, or None"),
        ({"allowed_local_media_path": ""}, TypeError, "allowed_local_media_path is '', expected a folder"),
    ],
)
def test_wrong_policies(value, error, message):
    with pytest.raises(error, match=message):
        media_policy(value)


# What is always read


def test_what_the_strictest_policy_reads():
    data_url = f"data:image/png;base64,{TEXT}"
    file = io.BytesIO(DATA)
    file.seek(7)
    for source in (DATA, bytearray(DATA), memoryview(DATA), TEXT, data_url, data_url.upper()[:5] + data_url[5:], file):
        assert read(source) == DATA
    for cell in ({"bytes": DATA, "path": None}, {"bytes": DATA, "path": "/no/such"}, {"path": TEXT, "bytes": DATA}):
        assert read(cell) == DATA
    assert read("data:,a%20b") == b"a b"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (3, TypeError, "image is of type int, expected a path, a URL, base64 text or bytes"),
        ({"bytes": None, "path": None}, TypeError, "image is a dict whose 'bytes' and 'path' are empty"),
        ({"url": "a"}, TypeError, r"image is a dict with \['url'\], expected 'bytes' or 'path'"),
        ({}, TypeError, "image is a dict with"),
        (io.StringIO("text"), TypeError, "image is a file that gives str, expected bytes: open it with mode 'rb'"),
        ("data:image/png;base64", OSError, r"cannot be read \(a data URI without a comma\)"),
        ("data:image/png;base64,!", OSError, r"cannot be read \(its base64 is damaged\)"),
        ("file://host/a.png", MediaRefusedError, "names a file of another host: expected file:///path"),
    ],
)
def test_what_no_policy_reads(source, error, message):
    with pytest.raises(error, match=message):
        MediaReader().read(source, "image")


# Paths


def test_closed_paths_say_nothing_of_files(tmp_path, monkeypatch):
    there, missing = tmp_path / "a.png", tmp_path / "b.png"
    there.write_bytes(DATA)
    monkeypatch.setattr(os.path, "isfile", None)  # nobody looks
    for form in (str, Path, Path.as_uri, lambda path: {"path": str(path)}, lambda path: f"file:{path}"):
        messages = []
        for path in (there, missing):
            with pytest.raises(MediaRefusedError, match="media_policy does not allow") as refusal:
                read(form(path))
            messages.append(str(refusal.value).replace(path.name, ""))
        assert messages[0] == messages[1]


def test_paths_within_the_allowed_folder(tmp_path):
    folder = tmp_path / "open"
    (folder / "deep").mkdir(parents=True)
    inside, outside = folder / "deep" / "a.png", tmp_path / "secret.png"
    inside.write_bytes(DATA)
    outside.write_bytes(DATA)
    (folder / "link.png").symlink_to(outside)
    (folder / "inner.png").symlink_to(inside)
    (tmp_path / "open2").mkdir()
    (tmp_path / "open2" / "a.png").write_bytes(DATA)
    allowed = {"allowed_local_media_path": str(folder)}
    for path in (inside, folder / "deep" / ".." / "inner.png"):
        for source in (path, str(path), f"file://{path}", {"bytes": None, "path": str(path)}):
            assert read(source, **allowed) == DATA
    closed = [outside, folder / "link.png", folder / ".." / "secret.png", tmp_path / "open2" / "a.png", "/etc/passwd"]
    for path in [*closed, tmp_path / "missing.png", folder / ".." / "missing.png"]:
        for source in (Path(path), str(path), f"file://{path}", f"FILE:{path}"):
            with pytest.raises(MediaRefusedError, match="media_policy does not"):
                read(source, **allowed)
    with pytest.raises(FileNotFoundError, match=r"cannot be read \(no such file\)"):
        read(f"file://{folder}/missing.png", **allowed)
    with pytest.raises(FileNotFoundError, match="is no existing file"):
        read(folder, **allowed)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="is no existing file"):
        MediaReader().read(tmp_path / "pipe", "image")


# Hosts


def test_urls_are_read_from_allowed_hosts_only(server, resolver):
    table, asked = resolver
    table["cdn.example"] = ["127.0.0.1"]
    port = server.rpartition(":")[2]
    with pytest.raises(MediaRefusedError, match="The host '127.0.0.1' is not allowed by media_policy"):
        read(server)
    with pytest.raises(MediaRefusedError, match="The host 'cdn.example' is not allowed"):
        read(f"http://cdn.example:{port}/", allowed_media_domains=["127.0.0.1"])
    assert asked == []
    assert read(server, allowed_media_domains=["127.0.0.1"]) == DATA
    with pytest.raises(MediaRefusedError, match="The host 'cdn.example' has no address that media_policy allows"):
        read(f"http://cdn.example:{port}/", allowed_media_domains=["cdn.example"])
    named = {"allowed_media_domains": ["cdn.example"], "allowed_private_addresses": ["127.0.0.0/8"]}
    assert read(f"http://CDN.example:{port}/", **named) == DATA
    assert MediaReader().read(f"{server}/a.png", "image") == DATA
    with pytest.raises(OSError, match=r"image, .*, cannot be read \(HTTP Error 404.*: check the URL"):
        MediaReader().read(f"{server}/missing/a.png", "image")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.1.2.3", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"]
    + ["::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1"],
)
def test_addresses_that_are_not_public(address, resolver, monkeypatch):
    """Written in the URL or as what a name means; nobody is connected to."""
    monkeypatch.setattr(socket.socket, "connect", None)
    table, _ = resolver
    table["evil.example"] = [address]
    for host in ("evil.example", f"[{address}]" if ":" in address else address):
        with pytest.raises(MediaRefusedError, match="has no address that media_policy allows"):
            read(f"http://{host}/a.png", allowed_media_domains=["*"])


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "017700000001", "127.1", "localhost"])
def test_other_ways_to_write_loopback(host, server):
    """Here the system's own resolver answers."""
    with pytest.raises((MediaRefusedError, OSError), match="has no address that media_policy allows|cannot be read"):
        read(f"http://{host}:{server.rpartition(':')[2]}/", allowed_media_domains=["*"])
    assert Handler.asked == []


def test_the_checked_answer_is_the_one_that_is_used(server, resolver):
    """A name whose second answer is another address gains nothing: it is not asked again."""
    table, asked = resolver
    table["rebind.example"] = ["127.0.0.1", "10.9.9.9"]
    url = f"http://rebind.example:{server.rpartition(':')[2]}/"
    named = {"allowed_media_domains": ["rebind.example"], "allowed_private_addresses": ["127.0.0.1"]}
    assert read(url, **named) == DATA
    assert asked == ["rebind.example"]
    with pytest.raises(MediaRefusedError, match="has no address"):
        read(url, **named)


def test_redirects_are_checked_again(server, resolver):
    table, _ = resolver
    port = server.rpartition(":")[2]
    table |= {"inner.example": ["127.0.0.1"], "evil.example": ["127.0.0.2"]}
    named = {"allowed_media_domains": ["127.0.0.1", "evil.example"]}
    assert read(f"{server}/to/http:||127.0.0.1:{port}|a.png", **named) == DATA
    with pytest.raises(MediaRefusedError, match="The host 'inner.example' is not allowed"):
        read(f"{server}/to/http:||inner.example:{port}|a.png", **named)
    with pytest.raises(MediaRefusedError, match="The host 'evil.example' has no address"):
        read(f"{server}/to/http:||evil.example:{port}|a.png", **named)
    for target in ("file:|||etc|passwd", "ftp:||127.0.0.1|a", "data:,abc"):
        with pytest.raises(OSError, match="cannot be read"):
            read(f"{server}/to/{target}", **named)
    with pytest.raises(OSError, match=r"cannot be read .*infinite loop"):
        MediaReader().read(f"{server}/loop", "image")


@pytest.mark.parametrize(
    "url", ["http://", "http://a.com@b.com/", "http://a.com\\@b.com/", "http://a.com/ b", "http://[::1"]
)
def test_urls_that_programs_read_differently(url):
    with pytest.raises(MediaRefusedError, match="is no plain URL"):
        read(url, allowed_media_domains=["a.com", "b.com"])


# How much


def test_bytes_of_an_item_and_of_a_call(tmp_path, server):
    path = tmp_path / "a.png"
    path.write_bytes(DATA)
    sources = [DATA, TEXT, f"data:image/png;base64,{TEXT}", path, path.as_uri(), io.BytesIO(DATA), server]
    allowed = {"allowed_local_media_path": tmp_path, "allowed_media_domains": ["127.0.0.1"]}
    for source in sources:
        assert read(source, **allowed, max_bytes_per_item=256) == DATA
        with pytest.raises(
            MediaRefusedError, match="image is too large: media_policy allows 255 bytes an item"
        ) as told:
            read(source, **allowed, max_bytes_per_item=255)
        assert "256" not in str(told.value).replace("268435456", "")
        reader = MediaReader(MediaPolicy(**allowed, max_bytes_per_call=600))
        reader.read(source, "first")
        if hasattr(source, "seek"):
            source.seek(0)
        reader.read(source, "second")
        with pytest.raises(MediaRefusedError, match="third is too large"):
            reader.read(source, "third")
    with pytest.raises(MediaRefusedError, match="image is too large"):
        read(f"{server}/long/", **allowed)


def test_seconds_of_a_call(server):
    """An answer that trickles is not waited for, although no single read takes long."""
    allowed = {"allowed_media_domains": ["127.0.0.1"], "max_seconds_per_call": 0.3}
    with pytest.raises(OSError, match=r"within the 0.3 seconds that media_policy allows a call"):
        read(f"{server}/slow/", **allowed)


def test_pixels_of_an_item_and_of_a_call():
    reader = MediaReader(MediaPolicy(max_pixels_per_item=10, max_pixels_per_call=15))
    reader.count_pixels(10, "first")
    with pytest.raises(MediaRefusedError, match="big is too large: media_policy allows 10 pixels an image"):
        reader.count_pixels(11, "big")
    with pytest.raises(
        MediaRefusedError, match="second is too large beside the images before it: .* 15 pixels a call"
    ):
        reader.count_pixels(6, "second")
