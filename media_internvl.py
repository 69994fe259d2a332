"""The wall against the world: what may be read for an image or a video, how much of it, and the reading itself.

No other file of the package opens a path or a URL. A `MediaPolicy` says what is allowed; a `MediaReader` reads for one
call within it and counts what the call has used. Nothing here knows what an image is, beyond how many pixels it has.
"""

import base64
import binascii
import http.client
import ipaddress
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from io import BytesIO
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.parse import unquote, unquote_to_bytes, urlsplit


URL_PREFIXES = ("http://", "https://", "file:", "data:")
ANY = "*"
CHUNK = 1 << 20  # bytes read at once
HEADERS = {"User-Agent": "Mozilla/5.0"}  # some hosts turn away Python's own
# IPv6 addresses that translators turn into the IPv4 address in their last 32 bits (RFC 6052, RFC 8215).
TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _check_limit(name: str, value: Any, kind: type) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
        raise ValueError(f"{name} is {value!r}, expected a positive number, or None for no limit.")


def _names(name: str, value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, (list, tuple, set, frozenset))
    if not is_list or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} is {value!r}, expected a list of strings.")
    return tuple(value)


def _local_folder(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise TypeError(f"allowed_local_media_path is {path!r}, expected a folder, or None for no files.")
    return Path(os.path.realpath(path))


def _embedded(address: Address) -> list[Address]:
    """Return the IPv4 addresses that an IPv6 address stands for."""
    if address.version == 4:
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in TRANSLATED) or int(address) >> 32 == 0:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if name == ANY:
        return ipaddress.ip_network("::/0")
    try:
        return ipaddress.ip_network(name, strict=False)
    except ValueError as error:
        raise ValueError(
            f"allowed_private_addresses holds {name!r}, expected IP addresses or networks such as '10.0.0.0/8'."
        ) from error


class MediaRefusedError(PermissionError, ValueError):
    """What a media policy does not allow. It says nothing about whether a file exists, or how large it is."""


@dataclass(frozen=True, kw_only=True)
class MediaPolicy:
    """What may be read for images and videos, and how much.

    Without arguments it is the policy "inline": objects, bytes, file objects, data URIs and base64 text are read, no
    path and no URL. The policy "local" reads every path and URL that the process can reach, with few limits. Limits
    hold for one image or video (item), or for all that one call of a processor reads. None is no limit.

    Attributes:
        allowed_local_media_path: Folder from which paths and `file:` URLs may be read, symbolic links resolved;
            None for none, "/" for all files.
        allowed_media_domains: Names of hosts from which http and https URLs may be read, redirects included; exact,
            or "*" for every host.
        allowed_private_addresses: IP addresses and networks ("10.0.0.0/8") that a host may have although they are
            loopback, private or otherwise not public; "*" for all. An address that is itself one of the
            `allowed_media_domains` is named by that, and so is the loopback address by "localhost".
        allowed_image_formats: Pillow's names of the formats that may be opened; "*" for all that Pillow knows, some
            of which start other programs.
        max_bytes_per_item: Largest encoded image or video in bytes.
        max_bytes_per_call: Most bytes of all items.
        max_seconds_per_call: Seconds in total for downloading, and for decoding videos.
        max_pixels_per_item: Most pixels of one image or one frame.
        max_pixels_per_call: Most pixels of all images and frames.
        max_images_per_call: Most images, the frames of videos counted.
        max_frames_per_video: Most frames that a message may ask for.
        max_tiles_per_image: Most tiles of an image that a message may ask for, the thumbnail not counted.
        max_tiles_per_call: Most tiles of all images, thumbnails counted.

    Raises:
        TypeError, ValueError: If a value is of another type or out of its range.
    """

    allowed_local_media_path: str | os.PathLike | None = None
    allowed_media_domains: Sequence[str] = ()
    allowed_private_addresses: Sequence[str] = ()
    allowed_image_formats: Sequence[str] = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
    max_bytes_per_item: int | None = 64 << 20
    max_bytes_per_call: int | None = 256 << 20
    max_seconds_per_call: float | None = 30.0
    max_pixels_per_item: int | None = 50_000_000
    max_pixels_per_call: int | None = 200_000_000
    max_images_per_call: int | None = 64
    max_frames_per_video: int | None = 64
    max_tiles_per_image: int | None = 40
    max_tiles_per_call: int | None = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_"):
                _check_limit(field.name, value, Real if "seconds" in field.name else Integral)
            elif field.name != "allowed_local_media_path":
                object.__setattr__(self, field.name, _names(field.name, value))
        if self.allowed_local_media_path is not None:
            folder = _local_folder(self.allowed_local_media_path)
            object.__setattr__(self, "allowed_local_media_path", folder)
        for name in self.allowed_private_addresses:
            _network(name)
        domains = tuple(name.lower().rstrip(".").strip("[]") for name in self.allowed_media_domains)
        if wrong := [name for name in domains if name != ANY and ("/" in name or "*" in name or not name)]:
            raise ValueError(f"allowed_media_domains holds {wrong}, expected names of hosts such as 'example.com'.")
        object.__setattr__(self, "allowed_media_domains", domains)

    def allows_host(self, host: str) -> bool:
        """Whether a host may be asked at all; which of its addresses, `allows_address` says."""
        return ANY in self.allowed_media_domains or host.lower().rstrip(".") in self.allowed_media_domains

    def allows_address(self, address: str, host: str) -> bool:
        """Whether a host may have this IP address."""
        found = ipaddress.ip_address(address)
        meant = _embedded(found)
        if all(one.is_global and not one.is_multicast for one in (found, *meant)):
            return True
        named = [*self.allowed_private_addresses]
        named += [name for name in self.allowed_media_domains if _is_address(name)]
        named += ["127.0.0.0/8", "::1"] if host.lower() == "localhost" in self.allowed_media_domains else []
        return ANY in named or any(one in _network(name) for name in named for one in (found, *meant))

    def allows_path(self, path: str) -> bool:
        """Whether a path lies in the allowed folder, once its symbolic links and `..` are resolved."""
        folder = self.allowed_local_media_path
        if folder == Path(os.path.realpath(os.sep)):
            return True  # on other drives too, where a system has drives
        return folder is not None and Path(os.path.realpath(path)).is_relative_to(folder)

    @property
    def is_open(self) -> bool:
        """Whether every host and address is allowed, so that what a proxy would connect to needs no check."""
        return ANY in self.allowed_media_domains and ANY in self.allowed_private_addresses


LOCAL_POLICY = MediaPolicy(
    allowed_local_media_path=os.sep,
    allowed_media_domains=(ANY,),
    allowed_private_addresses=(ANY,),
    allowed_image_formats=(ANY,),
    **{field.name: None for field in fields(MediaPolicy) if field.name.startswith("max_")}
    | {"max_seconds_per_call": 300.0, "max_frames_per_video": 512, "max_tiles_per_image": 40},
)
POLICIES = {"inline": MediaPolicy(), "local": LOCAL_POLICY}


def media_policy(value: Any) -> MediaPolicy:
    """Return the policy that a caller means.

    Args:
        value: "inline", "local", a dict of attributes of `MediaPolicy` (whatever it does not name is as in "inline"),
            or a policy.

    Raises:
        TypeError: If it is of another type, or names what is no attribute.
        ValueError: If it is no name of a policy, or a value is out of its range.
    """
    if isinstance(value, str):
        if value not in POLICIES:
            raise ValueError(f"media_policy is {value!r}, expected 'inline', 'local' or a dict: see MediaPolicy.")
        return POLICIES[value]
    # A policy may come from another copy of this file: Transformers makes one for each class that it loads.
    if type(value).__name__ == MediaPolicy.__name__:
        value = asdict(value)
    if not isinstance(value, Mapping):
        raise TypeError(f"media_policy is {value!r}, expected 'inline', 'local' or a dict: see MediaPolicy.")
    known = [field.name for field in fields(MediaPolicy)]
    if unknown := sorted(value.keys() - set(known)):
        raise TypeError(f"media_policy holds {unknown}, expected some of {', '.join(known)}: check the spelling.")
    return MediaPolicy(**value)


class MediaReader:
    """Reads for one call, within a policy, and counts what has been used.

    Args:
        policy: What may be read; by default everything.
    """

    def __init__(self, policy: MediaPolicy = LOCAL_POLICY) -> None:
        self.policy = policy
        self.bytes_left = policy.max_bytes_per_call
        self.pixels_left = policy.max_pixels_per_call
        self.images_left = policy.max_images_per_call
        seconds = policy.max_seconds_per_call
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def check(self, source: Any, name: str) -> None:
        """Refuse what can be refused before anything is opened: forbidden places, and what is too large in memory."""
        source = _unwrapped(source, name)
        if isinstance(source, str):
            kind = _kind(source)
            if kind in ("http", "https"):
                self._check_url(source, name)
            elif kind == "file":
                self._check_path(_path_of_url(source, name), name)
            else:
                # What the text must hold at least: four signs of base64 are three bytes, "%20" is one.
                start = source.find(",") + 1 if kind else 0
                is_base64 = not kind or source[:start].lower().endswith(";base64,")
                self._check_bytes((len(source) - start - 3) * 3 // 4 if is_base64 else len(source) // 3, name)
        elif isinstance(source, os.PathLike):
            self._check_path(os.fspath(source), name)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            self._check_bytes(memoryview(source).nbytes, name)

    def check_time(self, name: str) -> None:
        """Refuse to go on when the seconds of the call are used up."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            seconds = self.policy.max_seconds_per_call
            raise MediaRefusedError(
                f"{name} is not read within the {seconds:g} seconds that media_policy allows a call."
            )

    def count_images(self, images: int) -> None:
        """Count images, or frames of a video, before any of them is opened or decoded."""
        if self.images_left is not None:
            self.images_left -= images
            if self.images_left < 0:
                raise MediaRefusedError(
                    f"There are more images and frames than media_policy allows a call: "
                    f"{self.policy.max_images_per_call} (max_images_per_call): give fewer."
                )

    def count_pixels(self, pixels: int, name: str) -> None:
        """Count the pixels of an image before it is decoded."""
        limit = self.policy.max_pixels_per_item
        if limit is not None and pixels > limit:
            raise MediaRefusedError(
                f"{name} is too large: media_policy allows {limit} pixels an image (max_pixels_per_item): scale it."
            )
        if self.pixels_left is not None:
            self.pixels_left -= pixels
            if self.pixels_left < 0:
                raise MediaRefusedError(
                    f"{name} is too large beside the images before it: media_policy allows "
                    f"{self.policy.max_pixels_per_call} pixels a call (max_pixels_per_call): give fewer."
                )

    def read(self, source: Any, name: str) -> bytes:
        """Read the bytes of an image or a video.

        Args:
            source: Path, URL (http, https, file, data), base64 text, bytes, a binary file object, or a dict with
                `bytes` or `path`, as cells of data sets are.
            name: What error messages call it.

        Raises:
            MediaRefusedError: If the policy does not allow it.
            OSError: If it cannot be read; FileNotFoundError if text is no path, no URL and no base64.
            TypeError: If it is of another type.
        """
        source = _unwrapped(source, name)
        self.check(source, name)
        if isinstance(source, str) and _kind(source) in ("http", "https"):
            return self._download(source, name)
        if isinstance(source, str) and _kind(source) == "data":
            return self._counted(_decode_data_url(source, name), name)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return self._counted(bytes(source), name)
        if self.is_text(source):
            return self._counted(self._decode_text(source, name), name)
        with self.open(source, name) as file:
            return self._counted(self._read_all(file, name), name)

    def open(self, source: Any, name: str) -> BinaryIO:
        """Open a video: a local file as it is, which is not read into memory, anything else as its bytes.

        Args:
            source: See `read`.
            name: What error messages call it.

        Raises:
            MediaRefusedError, OSError, TypeError: See `read`.
        """
        source = _unwrapped(source, name)
        self.check(source, name)
        if hasattr(source, "read"):
            return BytesIO(_read_object(source, self._limit, name))
        is_path = isinstance(source, os.PathLike) or (isinstance(source, str) and not self.is_text(source))
        if not is_path or (isinstance(source, str) and _kind(source) not in ("", "file")):
            return BytesIO(self.read(source, name))
        path = _path_of_url(source, name) if isinstance(source, str) and _kind(source) else os.fspath(source)
        if not os.path.isfile(path):  # neither folders nor pipes, which could block for ever
            if isinstance(source, str) and _kind(source):
                raise FileNotFoundError(
                    f"{name}, {_shortened(source)!r}, cannot be read (no such file): check the URL."
                )
            raise _no_such_file(path, name)
        file = Path(path).open("rb")  # noqa: SIM115 (the caller closes it)
        if self._limit is not None and os.fstat(file.fileno()).st_size > self._limit:
            file.close()
            raise self._too_many_bytes(name)
        return file

    def is_text(self, source: Any) -> bool:
        """Whether a source is text but no path and no URL; no file is looked for where paths are not allowed."""
        return (
            isinstance(source, str)
            and not _kind(source)
            and not (self.policy.allowed_local_media_path is not None and self._finds(source))
        )

    @property
    def _limit(self) -> int | None:
        """Bytes that the next item may have."""
        return min((one for one in (self.policy.max_bytes_per_item, self.bytes_left) if one is not None), default=None)

    def _finds(self, path: str) -> bool:
        """Whether there is a file that may be read; what lies outside the folder is as good as missing."""
        # `isfile` and `realpath` take what is too long or too odd for a path in different ways.
        return "\0" not in path and len(path) < 1 << 15 and self.policy.allows_path(path) and os.path.isfile(path)

    def _decode_text(self, text: str, name: str) -> bytes:
        data = decode_base64(text.encode(errors="replace"))
        if data is None:
            raise self.unknown_text(text, name)
        return data

    def unknown_text(self, text: str, name: str) -> OSError:
        """Return the error for text that is no path, no URL and no base64 of an image."""
        if self.policy.allows_path(os.sep):
            return _no_such_file(text, name)
        return MediaRefusedError(
            f"{name}, {_shortened(text)!r}, is neither a data URI nor base64 of an image, and media_policy does not "
            "allow it to be read as a path: give the image's bytes, or set allowed_local_media_path."
        )

    def _check_path(self, path: str, name: str) -> None:
        if "\0" in path or not self.policy.allows_path(path):
            raise MediaRefusedError(
                f"{name}, {_shortened(path)!r}, is a path that media_policy does not allow: give the image's bytes, "
                "or set allowed_local_media_path."
            )

    def _check_url(self, url: str, name: str) -> None:
        """Refuse a URL by its text: the host, and forms that programs read in different ways."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if (
            not host
            or "\\" in url
            or "@" in parts.netloc
            or any(sign.isspace() or not sign.isprintable() for sign in url)
        ):
            raise MediaRefusedError(
                f"{name}, {_shortened(url)!r}, is no plain URL: expected http(s)://host/path, blanks written as %20, "
                "no user name."
            )
        if not self.policy.allows_host(host):
            raise _forbidden_host(host)

    def _check_bytes(self, size: int, name: str) -> None:
        if self._limit is not None and size > self._limit:
            raise self._too_many_bytes(name)

    def _too_many_bytes(self, name: str) -> MediaRefusedError:
        return MediaRefusedError(
            f"{name} is too large: media_policy allows {self.policy.max_bytes_per_item} bytes an item and "
            f"{self.policy.max_bytes_per_call} a call (max_bytes_per_item, max_bytes_per_call)."
        )

    def _counted(self, data: bytes, name: str) -> bytes:
        self._check_bytes(len(data), name)
        if self.bytes_left is not None:
            self.bytes_left -= len(data)
        return data

    def _read_all(self, file: BinaryIO, name: str) -> bytes:
        data = file.read() if self._limit is None else file.read(self._limit + 1)
        self._check_bytes(len(data), name)
        return data

    def _download(self, url: str, name: str) -> bytes:
        try:
            with _opener(self).open(urllib.request.Request(url, headers=HEADERS)) as answer:
                announced = answer.headers.get("Content-Length") or ""
                self._check_bytes(int(announced) if announced.isdigit() else 0, name)
                return self._counted(self._read_answer(answer, name), name)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, MediaRefusedError):
                raise reason from error
            self.check_time(name)
            raise OSError(f"{name}, {_shortened(url)!r}, cannot be read ({error}): check the URL.") from error

    def _read_answer(self, answer: http.client.HTTPResponse, name: str) -> bytes:
        data = bytearray()
        while chunk := answer.read(CHUNK):
            data += chunk
            self._check_bytes(len(data), name)
            self.check_time(name)
        return bytes(data)


def decode_base64(text: bytes) -> bytes | None:
    """Decode base64 text that may be broken into lines; None if it is something else."""
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        return None


# Connections: the place that connects is the place that checks, so that redirects need no check of their own.


class _TimedSocket(socket.socket):
    """A socket whose reads together take no longer than to the deadline of the call."""

    reader: MediaReader | None = None

    def recv_into(self, *args: Any) -> int:
        _limit_wait(self, self.reader)
        return super().recv_into(*args)


class _TimedSSLSocket(ssl.SSLSocket):
    reader: MediaReader | None = None

    def recv_into(self, *args: Any) -> int:
        _limit_wait(self, self.reader)
        return super().recv_into(*args)


def _limit_wait(connection: socket.socket, reader: MediaReader | None) -> None:
    if reader is not None and reader.deadline is not None:
        reader.check_time("The answer of a host")
        connection.settimeout(max(reader.deadline - time.monotonic(), 0.001))


class _CheckedConnection(http.client.HTTPConnection):
    """Connects to an address that was checked, and to no other: names are resolved once."""

    def __init__(self, *args: Any, reader: MediaReader, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reader = reader

    def connect(self) -> None:
        self.sock = _connected(self.reader, self.host, self.port)
        if self._tunnel_host:
            self._tunnel()


class _CheckedTLSConnection(http.client.HTTPSConnection):
    def __init__(self, *args: Any, reader: MediaReader, **kwargs: Any) -> None:
        context = ssl.create_default_context()
        context.sslsocket_class = _TimedSSLSocket
        super().__init__(*args, context=context, **kwargs)
        self.reader, self.context = reader, context

    def connect(self) -> None:
        self.sock = _connected(self.reader, self.host, self.port)
        if self._tunnel_host:
            self._tunnel()
        self.sock = self.context.wrap_socket(self.sock, server_hostname=self._tunnel_host or self.host)
        self.sock.reader = self.reader


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, reader: MediaReader) -> None:
        super().__init__()
        self.reader = reader

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_CheckedConnection, reader=self.reader), request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, reader: MediaReader) -> None:
        super().__init__()
        self.reader = reader

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(_CheckedTLSConnection, reader=self.reader), request)


def _opener(reader: MediaReader) -> urllib.request.OpenerDirector:
    """Return what reads http and https, and nothing else: urllib's own reads ftp and files as well."""
    opener = urllib.request.OpenerDirector()
    handlers = [
        _HTTPHandler(reader),
        _HTTPSHandler(reader),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ]
    if reader.policy.is_open:  # a proxy resolves names itself, out of reach of the checks
        handlers.append(urllib.request.ProxyHandler())
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _connected(reader: MediaReader, host: str, port: int) -> socket.socket:
    """Resolve a host, check its addresses, and connect to one of them."""
    policy = reader.policy
    if not policy.allows_host(host):
        raise _forbidden_host(host)
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    answers = [answer for answer in answers if policy.allows_address(answer[4][0], host)]
    if not answers:
        raise MediaRefusedError(
            f"The host {host!r} has no address that media_policy allows: it is not public, and not named in "
            "allowed_private_addresses."
        )
    for index, (family, kind, protocol, _, address) in enumerate(answers):
        connection = _TimedSocket(family, kind, protocol)
        connection.reader = reader
        try:
            _limit_wait(connection, reader)
            connection.connect(address)
        except OSError:
            connection.close()
            if index + 1 == len(answers):
                raise
        else:
            return connection
    raise OSError(f"The host {host!r} has no address.")


def _forbidden_host(host: str) -> MediaRefusedError:
    return MediaRefusedError(
        f"The host {_shortened(host)!r} is not allowed by media_policy: name it in allowed_media_domains, or give the "
        "image's bytes."
    )


# Sources


def _kind(source: str) -> str:
    """Return the scheme of a URL in lower case; nothing for other text."""
    start = source[:8].lower()
    return next((prefix.partition(":")[0] for prefix in URL_PREFIXES if start.startswith(prefix)), "")


def _unwrapped(source: Any, name: str) -> Any:
    """Take a cell of a data set, a dict of bytes and path, for what it holds."""
    if not isinstance(source, dict):
        known = (str, os.PathLike, bytes, bytearray, memoryview)
        if not isinstance(source, known) and not hasattr(source, "read"):
            raise TypeError(
                f"{name} is of type {type(source).__name__}, expected a path, a URL, base64 text or bytes."
            )
        return source
    if not source or not source.keys() <= {"bytes", "path"}:
        raise TypeError(f"{name} is a dict with {sorted(map(str, source))}, expected 'bytes' or 'path'.")
    held = source.get("bytes")
    held = source.get("path") if held is None else held
    if isinstance(held, dict) or held is None:
        raise TypeError(f"{name} is a dict whose 'bytes' and 'path' are empty, expected one of them.")
    return _unwrapped(Path(held) if isinstance(held, str) and not _kind(held) else held, name)


def _read_object(file: Any, limit: int | None, name: str) -> bytes:
    """Read a file object from its start."""
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    data = file.read() if limit is None else file.read(limit + 1)
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"{name} is a file that gives {type(data).__name__}, expected bytes: open it with mode 'rb'.")
    return bytes(data)


def _decode_data_url(url: str, name: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise OSError(f"{name}, {_shortened(url)!r}, cannot be read (a data URI without a comma): check the URL.")
    data = unquote_to_bytes(body)
    if head.rpartition(";")[2].strip().lower() != "base64":
        return data
    decoded = decode_base64(data)
    if decoded is None:
        raise OSError(f"{name}, {_shortened(url)!r}, cannot be read (its base64 is damaged): check the URL.")
    return decoded


def _path_of_url(url: str, name: str) -> str:
    parts = urlsplit(url)
    if parts.netloc.lower() not in ("", "localhost"):
        raise MediaRefusedError(f"{name}, {_shortened(url)!r}, names a file of another host: expected file:///path.")
    path = unquote(parts.path)
    return path[1:] if os.name == "nt" else path


def _no_such_file(path: str, name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name}, {_shortened(path)!r}, is no existing file, no URL ({', '.join(URL_PREFIXES)}) and no image in "
        "base64: check the path, relative ones start at the current folder."
    )


def _shortened(source: str) -> str:
    return source if len(source) <= 80 else f"{source[:77]}..."
