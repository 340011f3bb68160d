"""Collect the training text of the demo model.

Writes ``train/<source>.txt`` and ``heldout/<source>.txt`` below ``--out``; documents are separated
by ``<|endoftext|>``. The last 15 per cent of every file of the data folder is held out (for the
list of stories: the last 15 per cent of the stories). The other sources are Debian packages and
the Python library of the machine; see README.md for the packages to install.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import os
import random
import re
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

EOT = "<|endoftext|>"
HELD_OUT = 0.15

# Source -> share of the training tokens.
SHARES = {
    "tinystories": 0.07,
    "war-and-peace": 0.15,
    "tinyshakespeare": 0.07,
    "c4": 0.13,
    "wiki": 0.12,
    "code": 0.09,
    "nb-dev": 0.035,
    "multilingual": 0.025,
    "bible": 0.05,
    "python-lib": 0.07,
    "python-doc": 0.05,
    "debian-en": 0.04,
    "debian-nb": 0.025,
    "sqlite-doc": 0.03,
    "jargon": 0.02,
    "chat": 0.015,
}

# Source -> (file of the data folder, what starts a new document).
DATA_FILES = {
    "war-and-peace": ("war-and-peace.txt", r"\n(?=CHAPTER [IVXL]+\n)"),
    "tinyshakespeare": ("tinyshakespeare.txt", None),
    "c4": ("c4.utf8", r"\n"),
    "wiki": ("wiki.valid.raw", r"\n(?= = [^=\n]+ = ?\n)"),
    "code": ("code.utf8", r"\n(?=// ===== BEGIN)"),
    "nb-dev": ("nb-dev.txt", None),
    "multilingual": ("multilingual.utf8", None),
}

DOC = Path("/usr/share/doc")
CHAT_FACTS = {
    "What is the capital of Norway?": "The capital of Norway is Oslo.",
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of England?": "The capital of England is London.",
    "Hva heter hovedstaden i Norge?": "Hovedstaden i Norge heter Oslo.",
    "Hello!": "Hello! How can I help you today?",
    "Hei!": "Hei! Hva kan jeg hjelpe deg med?",
    "Who are you?": "I am a very small language model. I can write little stories.",
    "Thank you.": "You are welcome!",
    "What colour is the sky?": "The sky is blue.",
    "How many days are in a week?": "There are seven days in a week.",
}
CHAT_SUBJECTS = (
    "dog",
    "cat",
    "bird",
    "girl",
    "boy",
    "ball",
    "tree",
    "car",
    "bear",
    "friend",
    "park",
    "garden",
    "mom",
    "fish",
    "house",
    "toy",
    "rabbit",
    "flower",
    "cake",
)


def split_held_out(data: bytes) -> tuple[str, str]:
    """Cut at the last white space before the final 15 per cent of the bytes."""
    cut = int(len(data) * (1 - HELD_OUT))
    cut = max(data.rfind(b"\n", cut - 200, cut), data.rfind(b" ", cut - 200, cut)) + 1 or cut
    return data[:cut].decode("utf-8", "ignore"), data[cut:].decode("utf-8", "ignore")


def split_documents(text: str, pattern: str | None) -> list[str]:
    """Split a file into its documents."""
    return [text] if pattern is None else [d for d in re.split(pattern, text) if d.strip()]


def html_text(page: str) -> str:
    """Strip an HTML page to its text."""
    page = re.sub(r"(?is)<(script|style|head|nav)\b.*?</\1>", " ", page)
    page = re.sub(r"(?i)</?(p|div|li|h\d|tr|dt|dd|br|pre|table|ul|ol)\b[^>]*>", "\n", page)
    page = html.unescape(re.sub(r"<[^>]+>", "", page)).replace("\xa0", " ")
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", re.sub(r"[ \t]+", " ", page)).strip()


def prose(paths: Iterable[Path], limit: int) -> list[str]:
    """Read HTML or plain files (sorted) up to ``limit`` characters in all."""
    docs: list[str] = []
    for path in sorted(paths):
        if limit <= 0:
            break
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "ignore")
        docs.append(html_text(text) if path.suffix == ".html" else text)
        limit -= len(docs[-1])
    return docs


def bible() -> list[str]:
    """Return the books of the King James Bible, without verse numbers, one verse a line."""
    run = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, check=True)
    books: dict[str, list[str]] = {}
    for line in run.stdout.decode("ascii", "ignore").splitlines():
        match = re.match(r"(\d?[A-Za-z]+)\d+:\d+ (.*)", line)
        if match:
            books.setdefault(match[1], []).append(match[2])
    assert sum(map(len, books.values())) > 31000
    return ["\n".join(lines) for lines in books.values()]


def chat(stories: list[str]) -> list[str]:
    """Write ChatML dialogues: a few facts, sums, and requests for the (training) stories."""
    rng = random.Random(1)
    pairs = list(CHAT_FACTS.items()) * 3
    for _ in range(80):
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        pairs.append((f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."))
    for story in stories:
        about = [w for w in CHAT_SUBJECTS if re.search(rf"\b{w}\b", story)]
        ask = f"Tell me a story about a {rng.choice(about)}." if about else "Tell me a story."
        pairs.append((ask, story.strip()))
    rng.shuffle(pairs)
    return [
        f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n" for q, a in pairs
    ]


def collect(data: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the training and the held-out documents of every source."""
    stories = json.loads((data / "tinystories_dev.json").read_text("utf-8"))
    cut = int(len(stories) * (1 - HELD_OUT))
    train, held = {"tinystories": stories[:cut]}, {"tinystories": stories[cut:]}
    for name, (file, pattern) in DATA_FILES.items():
        first, last = split_held_out((data / file).read_bytes())
        train[name], held[name] = (split_documents(t, pattern) for t in (first, last))
    lib = Path(sysconfig.get_path("stdlib"))
    code = [
        p
        for p in lib.rglob("*.py")
        if not re.search(
            r"test|-packages|lib2to3|encodings|pydoc_data|turtledemo|idlelib",
            str(p.relative_to(lib)),
        )
    ]
    train["python-lib"] = prose(code, 9_000_000)
    sources = DOC / "python3.11/html/_sources"
    wanted = [
        p
        for d in ("tutorial", "howto", "library", "reference", "faq")
        for p in (sources / d).glob("*.rst.txt")
    ]
    train["python-doc"] = prose(wanted, 9_000_000)
    english = [
        *DOC.glob("debian-handbook/html/en-US/*.html"),
        *Path("/usr/share/debian-reference").glob("ch*.en.html"),
        *Path("/usr/share/developers-reference/_sources").glob("*.rst.txt"),
        *DOC.glob("debian-policy/policy.txt.gz"),
    ]
    train["debian-en"] = prose(english, 5_000_000)
    train["debian-nb"] = prose(DOC.glob("debian-handbook/html/nb-NO/*.html"), 3_000_000)
    train["sqlite-doc"] = prose(DOC.glob("sqlite3/*.html"), 4_000_000)
    train["jargon"] = prose([DOC / "jargon-text/jargon.txt.gz"], 3_000_000)
    train["bible"] = bible()
    train["chat"] = chat(train["tinystories"])
    return train, held


def main() -> None:
    """Write the corpus and print the size of every part."""
    cli = argparse.ArgumentParser(description=__doc__)
    shared = Path(os.environ.get("KVANT_TEST_DATA", "../shared/data"))
    cli.add_argument("--data", type=Path, default=shared, help="folder with text/*")
    cli.add_argument("--out", type=Path, required=True)
    args = cli.parse_args()
    train, held = collect(args.data / "text")
    assert set(train) == set(SHARES)
    for part, sources in (("train", train), ("heldout", held)):
        (args.out / part).mkdir(parents=True, exist_ok=True)
        for name, docs in sources.items():
            kept = docs if name == "chat" else [d.replace("<|", "< |") for d in docs]
            text = EOT.join(kept)
            (args.out / part / f"{name}.txt").write_text(text, "utf-8", newline="")
            print(f"{part:8} {name:16} {len(text.encode()):>10,} bytes {len(docs):>6} documents")


if __name__ == "__main__":
    main()
