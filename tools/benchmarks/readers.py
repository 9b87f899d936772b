"""Reads FairytaleQA, MCTest and lorebooks from folders, as texts with questions.

    FairytaleQA     …/questions/…/NAME-questions.csv and …/section-stories/…/NAME-story.csv, at any
                    depth: the public repository as it is, a part of it, or two flat folders
    MCTest          NAME.tsv and NAME.ans; a file may also hold answers to the tests of another
                    folder, as those of the test sets do
    lorebooks       every lorebook and character card that `softlore lore` reads

All files are read as data. What can't be read is a ConfigError or a LoreError that names the file.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from softlore.errors import ConfigError, LoreError
from softlore.lore import Entry, Lorebook
from softlore.lore.files import read_bytes
from softlore.lore.names import as_name
from softlore.lore.styles import style_blocks

CHOICES = 4  # answers to choose from, the right one included
LETTERS = "ABCD"
STORY, QUESTIONS = "-story.csv", "-questions.csv"
LORE_FILES = {".json", ".yaml", ".yml", ".toml", ".png", ".charx", ".lorebook"}


@dataclass(frozen=True)
class Question:
    """A call and what may follow it.

    Attributes:
        call: the text before an answer, which begins with a space.
        answers: right ones; the first is scored by its likelihood.
        choices: answers to choose from, the first right one among them; none: there is no choice.
        place: where in the text the answer is, 0 to 1.
        sections: the part of the text that has the answer.
    """

    call: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    place: float = 0.0
    sections: str = ""

    @classmethod
    def asked(cls, question: str, answers: Sequence[str], choices: Sequence[str] = ()) -> Question:
        """A question in words. Answers get a capital: after `A:` models expect one."""
        texts = (tuple(text[:1].upper() + text[1:] for text in some) for some in (answers, choices))
        return cls(f"Q: {question}\nA:", *texts)


@dataclass(frozen=True)
class Section:
    """A part of a tale, and the questions whose answers end in it, with their first section."""

    text: str
    questions: tuple[tuple[int, Question], ...] = ()


@dataclass(frozen=True)
class Tale:
    """A text in sections, with questions."""

    name: str
    sections: tuple[Section, ...]

    def cut(self, most: int, count: Callable[[str], int]) -> Iterator[Text]:
        """Texts of consecutive sections, of at most so many tokens where sections are no longer.

        A question that needs sections of two texts is left out, and a text without any.

        Args:
            most: 0: the whole tale.
            count: the tokens of a text.
        """
        start = 0
        for end in range(1, len(self.sections) + 1):
            longer = _joined(self.sections[start : end + 1])
            if end < len(self.sections) and (not most or count(longer) <= most):
                continue
            text = self._text(start, end)
            if text.questions:
                yield text
            start = end

    def _text(self, start: int, end: int) -> Text:
        sections = self.sections[start:end]
        questions = tuple(
            replace(
                question,
                place=number / max(1, len(sections) - 1),
                sections=_joined(sections[first - start : number + 1]),
            )
            for number, section in enumerate(sections)
            for first, question in section.questions
            if first >= start
        )
        whole = len(sections) == len(self.sections)
        name = as_name(self.name if whole else f"{self.name} {start + 1}")
        return Text(Entry(name=name, text=_joined(sections)), questions)


@dataclass(frozen=True)
class Text:
    """What is put before questions: an entry of lore, without calls."""

    entry: Entry
    questions: tuple[Question, ...]
    is_lore: bool = False

    @property
    def name(self) -> str:
        return self.entry.name


def _joined(sections: Iterable[Section]) -> str:
    return "\n\n".join(section.text for section in sections)


# FairytaleQA -----------------------------------------------------------------------------------


def read_fairytaleqa(folder: Path) -> list[Tale]:
    """The tales of which a folder has both sections and questions, in the order of their names."""
    stories: dict[str, Path] = {}
    for path in _files(folder, STORY):
        if "sentence-stories" not in path.parts:  # the same tales, a sentence a row
            stories.setdefault(path.name.removesuffix(STORY), path)
    questions: dict[str, Path] = {}
    for path in _files(folder, QUESTIONS):
        questions.setdefault(path.name.removesuffix(QUESTIONS), path)
    tales = [_read_tale(stories[n], questions[n]) for n in sorted(questions.keys() & stories)]
    if not tales:
        raise ConfigError(
            f"{str(folder)!r} has no tale of FairytaleQA; expected NAME{STORY} (sections) and "
            f"NAME{QUESTIONS} of one name, in it or in folders below; name the folder that has "
            "both"
        )
    return tales


def _read_tale(story: Path, questions: Path) -> Tale:
    texts = {
        _number(row["section"], story): row["text"].strip()
        for row in _read_csv(story, {"section", "text"})
    }
    numbers = sorted(texts)
    places = {number: place for place, number in enumerate(numbers)}
    asked = list(_questions(questions, places))
    answers = list(dict.fromkeys(question.answers[0] for _, _, question in asked))
    by_section: dict[int, list[tuple[int, Question]]] = {}
    for first, last, question in asked:
        by_section.setdefault(last, []).append((first, _with_choices(question, answers)))
    sections = [
        Section(texts[number], tuple(by_section.get(place, ())))
        for place, number in enumerate(numbers)
    ]
    name = story.name.removesuffix(STORY).replace("-", " ")
    return Tale(name[:1].upper() + name[1:], tuple(sections))


def _questions(path: Path, places: dict[int, int]) -> Iterator[tuple[int, int, Question]]:
    """Questions with the places of their first and last section."""
    for row in _read_csv(path, {"question", "cor_section", "answer1"}):
        answers = [row.get(f"answer{n}") or "" for n in range(1, 7)]
        answers = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
        sections = [places[int(n)] for n in re.findall(r"\d{1,9}", row["cor_section"])
                    if int(n) in places]  # fmt: skip
        if answers and sections and row["question"].strip():
            yield min(sections), max(sections), Question.asked(row["question"].strip(), answers)


def _with_choices(question: Question, answers: Sequence[str]) -> Question:
    """The question with answers of others of the tale to choose from, drawn by its own words."""
    right = question.answers[0]
    known = {_plain(answer) for answer in question.answers}
    wrong = [answer for answer in answers if _plain(answer) not in known]
    drawn = random.Random(question.call).sample(wrong, min(CHOICES - 1, len(wrong)))
    return replace(question, choices=(right, *drawn) if drawn else ())


def _plain(answer: str) -> str:
    return answer.lower().strip(" .!?\"'")


# MCTest ----------------------------------------------------------------------------------------


def read_mctest(folder: Path) -> list[Tale]:
    """The stories of which a folder has tests (.tsv) and answers (.ans), in their order."""
    answers: dict[str, Path] = {}
    for path in _files(folder, ".ans"):
        answers.setdefault(path.stem, path)
    tales: list[Tale] = []
    for path in _files(folder, ".tsv"):
        if path.stem in answers:
            tales += _read_tests(path, answers[path.stem])
    if not tales:
        raise ConfigError(
            f"{str(folder)!r} has no tests of MCTest; expected NAME.tsv and NAME.ans of one name, "
            "such as mc160.dev.tsv and mc160.dev.ans, in it or in folders below; name the folder "
            "that has both"
        )
    return tales


def _read_tests(tests: Path, answers: Path) -> Iterator[Tale]:
    rows, letters = _read_lines(tests), _read_lines(answers)
    if len(rows) != len(letters):
        raise ConfigError(
            f"{str(tests)!r} has {len(rows)} stories and {str(answers)!r} answers to "
            f"{len(letters)}; expected a line of each for every story; use the files of one set"
        )
    for number, (row, right) in enumerate(zip(rows, letters, strict=True), start=1):
        groups = [row[start : start + 5] for start in range(3, len(row), 5)]
        if len(row) < 8 or len(groups[-1]) != 5 or len(groups) != len(right):
            raise ConfigError(
                f"line {number} of {str(tests)!r} has {len(row)} fields, and its answers are "
                f"{' '.join(right)[:40]!r}; expected id, properties, story, and a question with "
                "four answers for each of these, with tabs between; use the file as it is published"
            )
        questions = [
            _question(group, letter, number, answers)
            for group, letter in zip(groups, right, strict=True)
        ]
        yield Tale(row[0], (Section(_unescaped(row[2]), tuple((0, q) for q in questions)),))


def _question(group: Sequence[str], letter: str, number: int, answers: Path) -> Question:
    place = LETTERS.find(letter.strip().upper() or "?")
    if place < 0:
        raise ConfigError(
            f"line {number} of {str(answers)!r} has {letter[:20]!r} as an answer; expected A, B, C "
            "or D; use the file as it is published"
        )
    asked, *choices = (_unescaped(field) for field in group)
    right = choices.pop(place)
    return Question.asked(re.sub(r"^(one|multiple):\s*", "", asked), [right], [right, *choices])


def _unescaped(field: str) -> str:
    return field.replace("\\newline", "\n").replace("\\tab", " ").strip()


# lorebooks -------------------------------------------------------------------------------------


def read_lorebooks(folder: Path) -> list[Text]:
    """Every entry with a text, of every lorebook and card; its calls are sentences of the text.

    A file of another kind is left out, unless there is nothing else.
    """
    texts: list[Text] = []
    errors: list[LoreError] = []
    for path in sorted(_existing(folder).rglob("*")):
        if path.suffix.lower() not in LORE_FILES or not path.is_file():
            continue
        try:
            book = Lorebook.load(path)
        except LoreError as error:
            errors.append(error)
            continue
        texts += (_lore(entry, path.stem) for entry in book if entry.text.strip())
    if not texts and errors:
        raise errors[0]
    if not texts:
        raise ConfigError(
            f"{str(folder)!r} has no lorebook with a text; expected files of lorebooks or "
            f"character cards ({', '.join(sorted(LORE_FILES))}); name the folder that has some"
        )
    return texts


def _lore(entry: Entry, book: str) -> Text:
    """An entry; without held-out calls of its own, its sentences with a pronoun, cut."""
    blocks = entry.held_out or style_blocks(entry, "pronoun")
    calls = tuple(
        Question(block.call, tuple(response.strip() for response in block.responses))
        for block in blocks
        if any(response.strip() for response in block.responses)
    )
    plain = entry.model_copy(update={"blocks": [], "held_out": []})
    return Text(plain, calls, is_lore=True)


# files -----------------------------------------------------------------------------------------


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError(
            f"{str(folder)!r} is no folder; expected one with the data's files; check the name"
        )
    return folder


def _files(folder: Path, ending: str) -> list[Path]:
    return [path for path in sorted(_existing(folder).rglob(f"*{ending}")) if path.is_file()]


def _read_text(path: Path) -> str:
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _read_csv(path: Path, columns: set[str]) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    try:
        missing = columns - set(reader.fieldnames or ())
        rows = [] if missing else list(reader)
    except csv.Error as error:
        raise ConfigError(
            f"{str(path)!r} can't be read as CSV ({error}); expected a table of FairytaleQA; use "
            "the file as it is published"
        ) from None
    if missing or not rows:
        what = f"no column {', '.join(sorted(missing))}" if missing else "no row"
        raise ConfigError(
            f"{str(path)!r} has {what}; expected the columns {', '.join(sorted(columns))}; use the "
            "file as it is published"
        )
    return [{name: row.get(name) or "" for name in reader.fieldnames or ()} for row in rows]


def _read_lines(path: Path) -> list[list[str]]:
    lines = re.split(r"\r?\n", _read_text(path))
    return [line.split("\t") for line in lines if line.strip()]


def _number(value: str, path: Path) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigError(
            f"{str(path)!r} has {value[:20]!r} as the number of a section; expected a whole "
            "number; use the file as it is published"
        ) from None
