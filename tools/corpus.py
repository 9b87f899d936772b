"""Clean a corpus of fiction and turn it into tokens: the first stage of training storyteller.

Reads JSON lines (xz or plain), one book a line: ``code``, ``author``, ``title``, ``pg``, ``text``
(a paragraph a line). Writes to ``--out``:

    tokenizer.json         byte-level BPE, trained on the selected books
    train-CODE.bin         uint16 tokens, books joined by ``<|endoftext|><|CODE|>``; under the
                           eighth code, Quest, text adventures that quests.py writes
    held-out.jsonl         books for validation: code, author, title, pg, text
    books.json             every selected book: provenance, size, plainness, train or held out
    PROVENANCE.md          the same as a list to read
    dropped.json           every book left out, with the reason

The rules are few; their thresholds are the constants below. They prefer plain, readable prose: a
small model that sees few tokens learns a narrow, clean corpus far better than a broad one.

Example:
    python tools/corpus.py stories.jsonl.xz --out runs/corpus
"""

from __future__ import annotations

import argparse
import collections
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from quests import quests
from windows import CODES, END, QUEST, SHARES

SPECIAL = [END, *(f"<|{code}|>" for code in SHARES)]  # ids 0 to 8
VOCABULARY = 4096

QUESTS = 2000  # text adventures, some 2 million characters
BUDGET = 9_000_000  # characters selected for each genre, plainest books first
AUTHOR_SHARE = 0.8  # of a genre's budget, at most, from one author
LEAST_BOOK = 10_000  # characters left after cleaning
DIALECT = 12.0  # words clipped with an apostrophe ('em, goin') in a thousand, at most
REPEATED = 0.3  # of a book's paragraphs already seen in other books, at most
DROPPED = 0.4  # of a book's characters that cleaning may drop before the book is no prose
SHORT = 40  # characters; a line of dialogue this short may be marks and capitals for the most part
CAPITALS = 0.2  # words capitalized within a sentence: above this it is verse or a list
SENTENCE_COST = 0.004  # plainness lost for each word of mean sentence length
SINGLE_QUOTED = 1.0  # double quotes in a thousand characters; fewer means 'dialogue' is single

# Whole books for validation, three a genre, by Gutenberg number.
HELD_OUT = {
    "27826", "518", "20850",  # The Olive Fairy Book, The Enchanted Island of Yew, Prince Prigio
    "108", "204", "2097",  # The Return of Sherlock Holmes, Father Brown, The Sign of the Four
    "120", "7870", "3785",  # Treasure Island, Tales of Daring and Danger, In the Reign of Terror
    "11438", "3781", "10150",  # The Willows, The Jewel of Seven Stars, Dracula's Guest
    "8164", "3184", "6684",  # My Man Jeeves, Alonzo Fitz and Other Stories, Uneasy Money
    "105", "5341", "544",  # Persuasion, Kilmeny of the Orchard, Anne's House of Dreams
    "456", "3748", "1013",  # The Door in the Wall, Interior of the Earth, First Men in the Moon
}  # fmt: skip

# The corpus codes books by their author. These are of another genre than their author's, or ("")
# of none: society novels of adventure writers, mixed volumes, historical romances.
GENRES = {
    # Verne without machines or other worlds, and Tarzan
    **dict.fromkeys("1842 8992 23489 22759 9618 10339 1268 2154 1698 3526 8991 28657 106".split(),
                    "Adventure"),
    "1355": "", "33516": "", "13527": "", "9150": "", "27894": "",
    "3091": "", "11263": "", "34962": "",
    # Doyle without Holmes
    **dict.fromkeys("34627 34797 10446 11247 294".split(), "Adventure"),
    "139": "SciFi", "126": "SciFi", "537": "Horror", "32777": "Horror", "7964": "Horror",
    "54109": "", "8727": "", "26153": "", "15466": "",
    # Chesterton without a crime; Collins's society novels
    "1718": "", "5265": "", "59239": "", "20058": "", "7892": "", "4605": "", "2324": "",
    "1588": "", "3606": "", "7893": "", "1630": "",
    # Stevenson's horror; his and Henty's crime and society
    "43": "Horror", "839": "", "647": "", "344": "", "372": "", "56255": "", "59529": "",
    "54091": "", "36103": "", "36236": "", "36359": "", "8155": "", "17436": "",
    "35012": "", "35265": "", "35266": "", "31128": "",
    # Poe at sea and in jest, Shelley's and Stoker's romances
    "51060": "Adventure", "2149": "", "2150": "", "56665": "", "18247": "", "42455": "",
    "3180": "", "1028": "", "30486": "", "54212": "",
}  # fmt: skip
# Taken before the plainest of a genre: they are what it is known for.
FIRST = {
    "223", "1696", "1720", "1695",  # Father Brown's second book, Chesterton's other mysteries
    "2148", "932", "11074",  # Poe's best-known tales; The Damned
    "43", "537", "32777",  # Dr. Jekyll and Mr. Hyde, Doyle's tales of terror
    "56562", "589", "322", "864",  # Kidnapped, Catriona, St. Ives, The Master of Ballantrae
    "1260", "121",  # Jane Eyre, Northanger Abbey
    "62", "139", "126", "16457",  # A Princess of Mars, The Lost World, The Poison Belt, the Moon
}  # fmt: skip

# Verse, plays, letters, essays, and books that are not of their author's genre.
NOT_NARRATIVE = re.compile(
    r"poem|poetic|verses?\b|ballad|\bplay\b|letters|notes to|her life|my life|robert browning|"
    r"travels and travellers|philosophy|prose poem|impostors|spirit photo|hamburgs|invisible king|"
    r"midas|comic tragedies|six weeks|fruitlands|hospital sketches|miscellany|sketches|"
    r"aunt jane|mary louise|flying girl|fortune hunters|sam steele|daring|annabel|tamawaca|"
    r"last egyptian|fate of a crown|daughters of destiny|pickle the spy|helen of troy|o\. t\.|"
    r"pictures of sweden|best american humorous|search after happiness|shawl-straps|"
    r"works of edgar allan poe volume 5|works of robert louis|roughing it|tramp abroad|"
    r"huckleberry|king arthur's court, part|round the world in eighty|in search of the castaways|"
    r"extra day|prisoner in fairyland|^the man$|bright messenger|promise of air|the wave an|"
    r"best british|dick sand|tono bungay|waif of|gerard|great shadow|red lamp|golden canyon",
    re.IGNORECASE,
)
KEPT_TITLES = re.compile(r"tales of daring", re.IGNORECASE)
HEADING = re.compile(
    r"^\W*(chapter|book|part|act|scene|volume|vol|section|letter|footnote|transcriber|contents|"
    r"illustrat|note|preface|introduction|epilogue|prologue|the end|finis|appendix|index|"
    r"by the (same )?author|copyright|printed|published|produced by|dedicat)\b.{0,80}$",
    re.IGNORECASE,
)
JUNK = re.compile(r"[*|=<>{}\[\]\\^~]|https?:|gutenberg|transcrib|footnote|\billus\b", re.I)
CONTENTS = re.compile(r"(\b[IVXL]{2,}\b\.?.*){3}|(\bchapter\b.*){2}", re.IGNORECASE)
SHOUTED_OPENING = re.compile(r'^(["\']?)([A-Z]{2,}(?:[ \'-][A-Z]+)*)(?=[ ,][a-zI\'"])')
SENTENCE_END = re.compile(r"[.!?—:;,\"'\)-]$")
CLIPPED = re.compile(r"(?<![\w'])'(?!s\b)[a-z]+|[a-z]in'(?!\w)|\b(?:an|o|th|wi|ol)'(?!\w)")
INNER_CAPITAL = re.compile(r"(?<=[a-z,;:] )(?!I\b)[A-Z]")
WORD = re.compile(r"[a-z]+")


def read_books(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the corpus a book at a time."""
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def plain_marks(text: str) -> str:
    """Bring quotes, dashes and dots to one style: straight quotes, em dash, three dots."""
    text = text.translate(str.maketrans("“”‘’`´", "\"\"''''")).replace("_", "")
    text = re.sub(r"\[(?:\d+|illustration[^\]]*|footnote[^\]]*)\]", "", text, flags=re.I)
    text = re.sub(r"\s*(?:--+|—|–(?=\D))\s*", "—", text)
    text = re.sub(r"\.(?: ?\.){2,}", "...", text)
    if text.count('"') * 1000 < SINGLE_QUOTED * len(text):
        text = double_quotes(text)
    return re.sub(r"[ \t\u00a0]+", " ", text)


def double_quotes(text: str) -> str:
    """Turn the single quotes round dialogue to double ones (and double, within, to single)."""
    text = text.replace('"', "\0")
    text = re.sub(r"(?<![\w'])'(?!(?:tis|twas|em|twere|twill|til)\b)(?=[\w—\.])", '"', text)
    text = re.sub(r"(?<=[,.!?—;:])'(?!\w)", '"', text)
    return text.replace("\0", "'")


def clean_paragraph(line: str) -> str | None:
    """Return the paragraph as it is trained on, or None when it is no narrative prose."""
    line = line.strip()
    if len(line) < 2 or not SENTENCE_END.search(line) or JUNK.search(line):
        return None
    if HEADING.match(line) or CONTENTS.search(line[:400]):
        return None
    letters = [c for c in line if c.isalpha()]
    if not letters:
        return None
    if len(line) > SHORT and (
        len(letters) < 0.65 * len(line) or sum(map(str.isupper, letters)) > 0.4 * len(letters)
    ):
        return None
    if len(INNER_CAPITAL.findall(line)) > max(3, CAPITALS * line.count(" ")):
        return None
    return SHOUTED_OPENING.sub(lambda m: m[1] + m[2].capitalize(), line)


def clean_book(book: dict[str, Any], seen: set[int]) -> tuple[list[str], str]:
    """Return a book's paragraphs and, when it is to be left out, the reason."""
    title = book["title"]
    if not book["pg"]:
        return [], "no Gutenberg number"
    if not GENRES.get(book["pg"], book["code"]):
        return [], "not of its author's genre"
    if NOT_NARRATIVE.search(title) and not KEPT_TITLES.search(title):
        return [], "not narrative, or not of its genre"
    selected: list[str] = []
    new: list[int] = []
    repeats = 0
    for line in plain_marks(book["text"]).split("\n"):
        paragraph = clean_paragraph(line)
        if paragraph is None:
            continue
        key = hash("".join(WORD.findall(paragraph.lower())))
        if len(paragraph) > 60 and key in seen:
            repeats += 1
            continue
        new.append(key)
        selected.append(paragraph)
    size = sum(map(len, selected))
    if repeats > REPEATED * (len(selected) + 1):
        return [], f"another edition of a book already read ({repeats} paragraphs)"
    if size < LEAST_BOOK or size < (1 - DROPPED) * len(book["text"]):
        return [], f"too little prose: {size} of {len(book['text'])} characters"
    clipped = 1000 * len(CLIPPED.findall(" ".join(selected))) / (size / 5.5)
    if clipped > DIALECT and book["pg"] not in HELD_OUT:
        return [], f"dialect: {clipped:.0f} clipped words in a thousand"
    seen.update(new)
    return selected, ""


def plainness(paragraphs: list[str], common: set[str]) -> float:
    """Return the share of common words, less a cost for long sentences. Higher is plainer."""
    text = " ".join(paragraphs)
    words = WORD.findall(text.lower())
    sentences = max(1, len(re.findall(r"[.!?]+", text)))
    share = sum(word in common for word in words) / max(1, len(words))
    return share - SENTENCE_COST * len(words) / sentences


def choose(books: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep, in each genre, the plainest books up to the budget, no author above their share."""
    selected = []
    for code in CODES:
        total: int = 0
        by_author: collections.Counter[str] = collections.Counter()
        for book in sorted(books, key=lambda b: (b["pg"] not in FIRST, -b["plainness"])):
            if book["code"] != code:
                continue
            if book["pg"] in HELD_OUT:
                selected.append({**book, "use": "held out"})
                continue
            if total > BUDGET or by_author[book["author"]] > AUTHOR_SHARE * BUDGET:
                dropped.append({**book, "paragraphs": None, "reason": "less plain than the rest"})
                continue
            total += book["characters"]
            by_author[book["author"]] += book["characters"]
            selected.append({**book, "use": "train"})
    return selected


def train_tokenizer(texts: Iterator[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train a byte-level BPE: lossless for any text, adds no special token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokens(books: list[dict[str, Any]], tokenizer: Tokenizer, out: Path) -> dict[str, int]:
    """Write each genre's training books as one uint16 file; return tokens a genre."""
    counts = {}
    for code in CODES:
        ids: list[int] = []
        mark = [tokenizer.token_to_id(END), tokenizer.token_to_id(f"<|{code}|>")]
        texts = [
            "\n".join(b["paragraphs"]) for b in books if (b["code"], b["use"]) == (code, "train")
        ]
        for encoding in tokenizer.encode_batch_fast(texts):
            ids += [*encoding.ids, *mark]
        np.asarray(ids, dtype=np.uint16).tofile(out / f"train-{code}.bin")
        counts[code] = len(ids)
    return counts


def write_quests(tokenizer: Tokenizer, out: Path, count: int) -> int:
    """Write ``count`` text adventures as one uint16 file, as a genre's; return its tokens."""
    mark = f"{END}<|{QUEST}|>"
    ids = tokenizer.encode("".join(text + mark for text in quests(count))).ids
    np.asarray(ids, dtype=np.uint16).tofile(out / f"train-{QUEST}.bin")
    return len(ids)


def provenance(books: list[dict[str, Any]]) -> str:
    """The list of books as Markdown: title, author, Gutenberg number, characters, use."""
    lines = [
        "# The books that storyteller was trained and measured on",
        "",
        "All are in the public domain in the United States, from Project Gutenberg.",
        "`characters` counts what cleaning left; `held out` books were never trained on.",
    ]
    for code in CODES:
        lines += ["", f"## {code}", "", "| title | author | Gutenberg | characters | use |"]
        lines.append("|---|---|---|---|---|")
        for book in sorted(books, key=lambda b: (b["author"], b["title"])):
            if book["code"] == code:
                link = f"[{book['pg']}](https://www.gutenberg.org/ebooks/{book['pg']})"
                cells = (
                    book["title"].strip(),
                    book["author"],
                    link,
                    book["characters"],
                    book["use"],
                )
                lines.append("| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def prepare(
    path: Path, out: Path, vocabulary: int = VOCABULARY, tokenizer_file: Path | None = None
) -> dict[str, int]:
    """Run the stage, with an existing tokenizer if given; return the tokens of each genre."""
    out.mkdir(parents=True, exist_ok=True)
    books, dropped, seen = [], [], set[int]()
    words: collections.Counter[str] = collections.Counter()
    # Held-out books go first, so that a training book which repeats them loses the repeats.
    for book in sorted(read_books(path), key=lambda b: b["pg"] not in HELD_OUT):
        paragraphs, reason = clean_book(book, seen)
        entry = {key: book[key] for key in ("code", "author", "title", "pg")}
        entry["code"] = GENRES.get(book["pg"]) or book["code"]
        if reason:
            dropped.append({**entry, "reason": reason})
            continue
        words.update(WORD.findall(" ".join(paragraphs).lower()))
        books.append({**entry, "paragraphs": paragraphs, "characters": sum(map(len, paragraphs))})
    common = {word for word, _ in words.most_common(2000)}
    for book in books:
        book["plainness"] = round(plainness(book["paragraphs"], common), 4)
    books = choose(books, dropped)
    training = [book for book in books if book["use"] == "train"]
    if tokenizer_file:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    else:
        tokenizer = train_tokenizer(("\n".join(b["paragraphs"]) for b in training), vocabulary)
    tokenizer.save(str(out / "tokenizer.json"))
    counts = write_tokens(books, tokenizer, out)
    counts[QUEST] = write_quests(tokenizer, out, QUESTS)
    with (out / "held-out.jsonl").open("w", encoding="utf-8") as file:
        for book in books:
            if book["use"] == "held out":
                record = {key: book[key] for key in ("code", "author", "title", "pg")}
                file.write(json.dumps({**record, "text": "\n".join(book["paragraphs"])}) + "\n")
    for name, table in (("books", books), ("dropped", dropped)):
        rows = [{k: v for k, v in row.items() if k != "paragraphs"} for row in table]
        (out / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    (out / "PROVENANCE.md").write_text(provenance(books))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="JSON lines of books, .xz or plain")
    parser.add_argument("--out", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--tokenizer", type=Path, help="an existing tokenizer.json")
    args = parser.parse_args()
    counts = prepare(args.corpus, args.out, args.vocabulary, args.tokenizer)
    for code, tokens in counts.items():
        print(f"{code:10} {tokens / 1e6:6.2f} M tokens")
    print(f"{'all':10} {sum(counts.values()) / 1e6:6.2f} M tokens in {args.out}")


if __name__ == "__main__":
    main()
