"""Masks: each kind is found where it was planted and counted, and nothing is found in clean text."""

import random
from collections.abc import Callable

import pytest

from tests.corpus.real import book_texts
from tests.corpus.tiny import sentence
from utils.corpus.pii import MaskSettings, is_card, mask

ALL = MaskSettings(urls="mask", pii="mask")
PLANTED = {
    "email": ["ann.lee+x@mail.example.org", "B_O@x-y.co", "o'neil@example.com", "1@2.net"],
    "ip": ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e"],
    "phone": ["+44 20 7946 0958", "(555) 123-4567", "555.123.4567", "+1-800-555-0199", "(020) 7946 0958",
              "+49 (30) 901820", "1-212-555-0100"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011111111111117"],
    "url": ["https://example.org/a?b=c#d", "http://x.y", "www.example.com", "HTTPS://Example.com/A_(b)"],
}  # fmt: skip
CLEAN = [
    "In 1914-1918 and 1939-1945", "at 12:30:45 on 2024-05-17", "version 1.2.3", "it cost 1,234,567.89",
    "pages 100-250", "192.168.0.1 and 10.0.0.1 and 127.0.0.1", "300.1.2.3", "ISBN 978-3-16-148410-0",
    "1234567890123456", "4111 1111 1111 1112", "@ann", "a @ b", "std::vector::iterator", "::1", "fe80::1",
    "3.14159265358979", "Psalm 119:105", "2001:db8::1", "5551234567", "+1", "$1.555.123.4567", "a@b",
    "5,500,000,000,000,004", "the ratio 16:9:4", "Chapter 555-123", "0x7fff::", "e.g. this", "www", "http",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "planted"), [(kind, text) for kind in PLANTED for text in PLANTED[kind]])
def test_each_kind_is_masked_and_counted(kind: str, planted: str):
    for before, after in (("", ""), ("see ", " there"), ("(", ")"), ("it is ", "."), ("so: ", ", yes")):
        masked = mask(f"{before}{planted}{after}", ALL)
        name = planted.split("@")[0][:2] if planted.startswith("o'") else ""
        assert masked.text == f"{before}{name}[{kind.upper()}]{after}"
        assert masked.counts == {kind: 1}


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_alike_stays(text: str):
    assert mask(text, ALL) == (text, {})


def _dotted(generator: random.Random, *parts: object) -> str:
    return ".".join(str(part if isinstance(part, int) else generator.randint(*part)) for part in parts)


def _grouped(number: int, mark: str) -> str:
    return f"{number:,}".replace(",", mark)


def _isbn(digits: str) -> str:
    """Twelve digits as an ISBN with its check digit, in groups as books print them."""
    check = -sum(int(digit) * (1, 3)[i % 2] for i, digit in enumerate(digits)) % 10
    return f"{digits[:3]}-{digits[3]}-{digits[4:7]}-{digits[7:]}-{check}"


NUMBERS: dict[str, Callable[[random.Random], str]] = {
    "years": lambda g: f"from {g.randint(1000, 1999)} to {g.randint(2000, 2099)}",
    "span": lambda g: f"in {g.randint(1000, 1949)}-{g.randint(1950, 2030)}",
    "date": lambda g: f"on {g.randint(1900, 2030)}-{g.randint(1, 12):02}-{g.randint(1, 28):02}",
    "other date": lambda g: f"on {g.randint(1, 28):02}.{g.randint(1, 12):02}.{g.randint(1900, 2030)}",
    "time": lambda g: f"at {g.randint(0, 23):02}:{g.randint(0, 59):02}:{g.randint(0, 59):02}",
    "sum": lambda g: f"for ${_grouped(g.randint(1_000, 10**9), ',')}.{g.randint(0, 99):02}",
    "sum with blanks": lambda g: f"for {_grouped(g.randint(1_000, 10**12), ' ')} euros",
    "sum with dots": lambda g: f"for {_grouped(g.randint(1_000, 10**9 - 1), '.')},{g.randint(0, 99):02} EUR",
    "number": lambda g: f"as number {g.randint(1_000, 10**12)}",
    "version": lambda g: f"with version {_dotted(g, (0, 40), (0, 99), (0, 999))}",
    "build": lambda g: f"with version {_dotted(g, (0, 40), (0, 99), (1_000, 99_999), (0, 999))}",
    "isbn": lambda g: f"as ISBN {_isbn('978' + str(g.randint(10**8, 10**9 - 1)))}",
    "plain isbn": lambda g: f"as ISBN {_isbn('979' + str(g.randint(10**8, 10**9 - 1))).replace('-', '')}",
    "private ip": lambda g: f"from {_dotted(g, 10, (0, 255), (0, 255), (1, 254))}",
    "home ip": lambda g: f"from {_dotted(g, 192, 168, (0, 255), (1, 254))}",
    "office ip": lambda g: f"from {_dotted(g, 172, (16, 31), (0, 255), (1, 254))}",
    "private ip 6": lambda g: (
        f"from fd{g.randint(0, 255):02x}:{g.randint(0, 65535):x}::{g.randint(1, 65535):x}"
    ),
    "fraction": lambda g: f"by {g.random()}",
    "pages": lambda g: f"on pages {g.randint(100, 400)}-{g.randint(401, 999)}",
}


def test_nothing_is_found_in_a_thousand_clean_texts():
    """Each holds one number of every kind that is no secret."""
    generator = random.Random(5)
    for _ in range(1_000):
        parts = [f"{sentence(generator)[:-1]} {number(generator)}." for number in NUMBERS.values()]
        text = " ".join(generator.sample(parts, len(parts)))
        assert mask(text, ALL) == (text, {})


def test_books_have_next_to_none():
    texts = book_texts(every=4)
    assert len(texts) > 1_000
    counts = [mask(text, MaskSettings(pii="mask")).counts for text in texts]
    assert sum(sum(found.values()) for found in counts) <= 2


def test_kept_by_default():
    text = "ann@example.org https://example.org"
    assert mask(text, MaskSettings()) == (text, {})
    assert mask(text, MaskSettings(urls="mask")) == ("ann@example.org [URL]", {"url": 1})
    assert mask(text, MaskSettings(pii="mask")) == ("[EMAIL] https://example.org", {"email": 1})


def test_removed_addresses_leave_tidy_lines():
    text = "see https://a.example\n\nhttps://b.example.\n\nand (www.c.example) end"
    assert mask(text, MaskSettings(urls="remove")) == ("see\n\n.\n\nand () end", {"url": 3})


def test_luhn():
    assert is_card("4111111111111111") and not is_card("4111111111111112")
    assert not is_card("1111111111111117")  # right sum, no issuer


def test_long_runs_take_no_time():
    for run in ("a." * 50_000, "1 " * 50_000, "1:" * 50_000, "+1 " * 50_000, "(" * 100_000, "1" * 100_000):
        assert mask(run, ALL).counts == {}
