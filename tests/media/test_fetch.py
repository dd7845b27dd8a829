"""URLs: from allowed hosts and public addresses alone, redirects too, and no more than is allowed."""

from __future__ import annotations

import http.server
import ssl
import time
from typing import Any

import pytest

from vllm_cls.errors import PromptError
from vllm_cls.media import fetch
from vllm_cls.media.addresses import is_public, resolved
from vllm_cls.media.policy import Allowance, MediaPolicy

from .conftest import Web
from .samples import encoded, one, painted, pixels

PNG = encoded(painted())
HOSTS = ("images.test",)


def test_an_image_is_fetched(web: Web) -> None:
    web.pages["/a%20b.png?x=1&y=%C3%A4"] = PNG
    item = one("image", web.url("/a%20b.png?x=1&y=ä#part"), web.policy())
    assert pixels(item).tobytes() == painted().tobytes()
    assert web.asked == [(f"images.test:{web.port}", "/a%20b.png?x=1&y=%C3%A4")]


def test_hosts_are_compared_without_case(web: Web) -> None:
    web.pages["/a"] = PNG
    assert one("image", web.url(host="IMAGES.test"), web.policy("Images.Test"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://other.test/a", "host 'other.test' is not allowed"),
        ("http://images.test.other.test/", "not allowed"),
        ("http://evilimages.test/", "not allowed"),
        ("http://sub.images.test/", "not allowed"),
        ("http://images.test:81/", "'images.test:81' is not allowed"),
        ("https://images.test:80/", "not allowed"),
        ("http://images.test./", "is not one"),
        ("http://images.test@other.test/", "user name"),
        ("http://other.test\\@images.test/", "backslash"),
        ("http://images.test\\.other.test/", "backslash"),
        ("http://other.test#@images.test/", "host 'other.test' is not allowed"),
        ("http://other.test?@images.test/", "host 'other.test' is not allowed"),
        ("http://user:word@images.test/", "user name"),
        ("http://images.test /", "blank"),
        ("http://images.test/\r\nHost: other.test", "blank"),
        ("http://images.test/a\tb", "blank"),
        (" http://images.test/", "No such file|cannot be read|blank"),
        ("http://images.test:99999/", "not a URL"),
        ("http://images.test:port/", "not a URL"),
        ("http://images。test/", "not a URL|is not one"),
        ("http://ımages.test/", "is not one"),
        ("http://images%2etest/", "is not one"),
        ("http://[::1", "not a URL"),
        ("http://[::1%25lo]/", "is not one|not a URL"),
        ("http:///a", "is not one"),
        ("http:images.test/a", "is not one"),
        ("//images.test/a", "cannot be read"),
        ("http://2130706433/", "not allowed"),
        ("http://0x7f.1/", "not allowed"),
        ("ftp://images.test/a", "'ftp' is not fetched"),
        ("gopher://images.test/a", "'gopher' is not fetched"),
        ("javascript:alert(1)", "'javascript' is not fetched"),
    ],
)
def test_urls_that_are_not_fetched(url: str, said: str) -> None:
    def nobody(*_: Any) -> Any:
        pytest.fail("an address was asked for")

    with pytest.raises(PromptError, match=said):
        one("image", url, MediaPolicy(HOSTS, resolve=nobody, may_connect=nobody))


def test_nothing_is_fetched_where_no_host_is_named() -> None:
    with pytest.raises(PromptError, match="--allowed-media-domains"):
        one("image", "https://images.test/a", MediaPolicy())


def test_a_port_is_named_with_its_host() -> None:
    assert fetch.address_of("https://images.test/a", HOSTS).port == 443
    assert fetch.address_of("https://images.test:443/a", HOSTS).host_header == "images.test"
    assert fetch.address_of("http://images.test:8080/a", ("images.test:8080",)).port == 8080
    with pytest.raises(PromptError, match="not allowed"):
        fetch.address_of("http://images.test/a", ("images.test:8080",))


def test_redirects_are_followed_to_allowed_hosts(web: Web) -> None:
    web.pages |= {"/a": "/b", "/b": web.url("/c", "other.test"), "/c": PNG}
    assert one("image", web.url(), web.policy("images.test", "other.test"))
    assert [host.partition(":")[0] for host, _ in web.asked] == ["images.test", "images.test", "other.test"]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://secret.test/", "'secret.test' is not allowed"),
        ("//secret.test/", "'secret.test' is not allowed"),
        ("file:///etc/passwd", "'file' is not fetched"),
        ("ftp://images.test/", "'ftp' is not fetched"),
        ("data:image/png;base64,AAAA", "'data' is not fetched"),
        ("http://images.test@secret.test/", "user name"),
        ("http://images.test\\@secret.test/", "backslash"),
        ("/a", "more than 3 redirects"),
    ],
)
def test_redirects_that_are_not_followed(web: Web, location: str, said: str) -> None:
    web.pages["/a"] = location
    with pytest.raises(PromptError, match=said):
        one("image", web.url(), web.policy())
    assert {path for _, path in web.asked} == {"/a"}


def test_each_redirect_is_looked_up_anew(web: Web) -> None:
    """DNS rebinding: a name that was public at first is not when it is asked again."""
    answers = iter(["127.0.0.1", "169.254.169.254"])
    policy = web.policy(resolve=lambda *_: [next(answers)], may_connect=lambda address: address == "127.0.0.1")
    web.pages |= {"/a": "/b", "/b": PNG}
    with pytest.raises(PromptError, match="not of the public internet"):
        one("image", web.url(), policy)
    assert [path for _, path in web.asked] == ["/a"]


def test_a_name_is_looked_up_once(web: Web) -> None:
    """What was checked is what is connected to: nobody asks for the address a second time."""
    asked = []
    web.pages["/a"] = PNG
    policy = web.policy(resolve=lambda *args: asked.append(args[:2]) or ["127.0.0.1"])
    assert one("image", web.url(), policy)
    assert asked == [("images.test", web.port)]


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::1"], ["not an address"]])
def test_a_host_with_any_address_that_is_not_public(web: Web, addresses: list[str]) -> None:
    with pytest.raises(PromptError, match="not of the public internet"):
        one("image", web.url(), web.policy(resolve=lambda *_: addresses, may_connect=is_public))
    assert not web.asked


def test_the_sockets_own_address_counts(web: Web) -> None:
    checked = []

    def may(address: str) -> bool:
        checked.append(address)
        return len(checked) == 1

    with pytest.raises(PromptError, match="not of the public internet"):
        one("image", web.url(), web.policy(may_connect=may))
    assert checked == ["127.0.0.1", "127.0.0.1"] and not web.asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1",
        "ff02::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001:db8::1", "2001::1",
        "100::1", "2001:0:7f00:1::", "", "localhost", "0x7f.1", "127.1", "2130706433",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "172.32.0.1", "100.63.255.255", "100.128.0.1", "2606:4700::1111", "2001:4860:4860::8888",
     "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)  # fmt: skip
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_names_that_lead_to_loopback_are_refused_as_they_are_found() -> None:
    assert not any(map(is_public, resolved("localhost", 80, 5)))
    with pytest.raises(PromptError, match="has an address that is not of the public internet"):
        one("image", "http://localhost/", MediaPolicy(("localhost",)))
    with pytest.raises(PromptError, match="is not found"):
        one("image", "http://a..b/", MediaPolicy(("a..b",)))


def test_a_slow_lookup_ends() -> None:
    def slow(host: str, port: int, timeout: float) -> list[str]:
        assert 0 < timeout <= 7
        raise PromptError("finding the address took too long")

    with pytest.raises(PromptError, match="took too long"):
        one("image", "http://images.test/", MediaPolicy(HOSTS, timeout=7, resolve=slow))


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 500])
def test_other_answers_are_refused(web: Web, status: int) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.pages["/a"] = answer
    with pytest.raises(PromptError, match=f"'images.test' answered {status}"):
        one("image", web.url(), web.policy())


def sender(
    data: bytes, *headers: tuple[str, str], chunked: bool = False, times: int = 1, taken: list[int] | None = None
) -> Any:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers:
            handler.send_header(name, value)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.close_connection = True
        for number in range(times):
            if taken is not None:
                taken.append(number)
            try:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
            except OSError:
                return
        handler.wfile.write(b"0\r\n\r\n" if chunked else b"")

    return answer


def test_bytes_are_counted_as_they_come(web: Web) -> None:
    taken: list[int] = []
    web.pages |= {
        "/said": sender(b"", ("Content-Length", "2000")),
        "/chunked": sender(bytes(500), chunked=True, times=20_000, taken=taken),
        "/open": sender(bytes(500), times=20_000, taken=taken),
        "/good": sender(PNG, chunked=True),
    }
    policy = web.policy(max_bytes=1000)
    for path in ("/said", "/chunked", "/open"):
        with pytest.raises(PromptError, match="more than the 1,000 bytes"):
            one("image", web.url(path), policy)
    assert one("image", web.url("/good"), policy)
    assert len(taken) < 30_000, "they were read to their ends"


def test_compressed_answers_are_refused(web: Web) -> None:
    web.pages["/a"] = sender(b"x", ("Content-Encoding", "gzip"), ("Content-Length", "1"))
    with pytest.raises(PromptError, match="compressed"):
        one("image", web.url(), web.policy())


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_peer_that_drips_gets_no_more_time(web: Web, head: bytes) -> None:
    """Each byte comes in time; all of them together do not."""

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        try:
            handler.wfile.write(head)
            for _ in range(300):
                handler.wfile.write(b"X")
                handler.wfile.flush()
                time.sleep(0.02)
        except OSError:
            pass

    web.pages["/a"] = drip
    with pytest.raises(PromptError, match="took longer than the 0.2 seconds|did not answer in time"):
        one("image", web.url(), web.policy(timeout=0.2))


def test_a_peer_that_breaks_off(web: Web) -> None:
    web.pages["/a"] = sender(PNG, ("Content-Length", "99999"))
    with pytest.raises(PromptError, match="could not be asked"):
        one("image", web.url(), web.policy())


def test_nobody_listens() -> None:
    policy = MediaPolicy(("images.test:1",), resolve=lambda *_: ["127.0.0.1"], may_connect=lambda _: True)
    with pytest.raises(PromptError, match="'images.test' could not be asked"):
        one("image", "http://images.test:1/", policy)


def test_tls_asks_for_the_name_of_the_url(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is connected to, and the certificate must be the host's."""
    named = []
    start = ssl.SSLContext.wrap_socket

    def wrap(self: ssl.SSLContext, sock: Any, **options: Any) -> Any:
        named.append((options["server_hostname"], self.check_hostname, self.verify_mode))
        return start(self, sock, **options)

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
    with pytest.raises(PromptError, match="'images.test' could not be asked"):
        one("image", f"https://images.test:{web.port}/", web.policy())
    assert named == [("images.test", True, ssl.CERT_REQUIRED)]


def test_no_redirect_from_https_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(address: fetch.WebAddress, allowance: Allowance) -> tuple[bytes, str | None]:
        asked.append(address.scheme)
        return b"", "http://images.test/"

    monkeypatch.setattr(fetch, "get", get)
    with pytest.raises(PromptError, match="from https to less"):
        fetch.fetch("https://images.test/", Allowance(MediaPolicy(HOSTS)))
    assert asked == ["https"]


def test_a_proxy_of_the_environment_is_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    web.pages["/a"] = PNG
    assert one("image", web.url(), web.policy())
