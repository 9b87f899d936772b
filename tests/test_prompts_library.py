"""PromptLibrary: a folder of prompts, by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from softlore import Context, PromptLibrary, SoftPrompt
from softlore.errors import PromptFileError, StorageError, UnknownPromptError
from softlore.prompts import Reason, default_folder, native, slug_of
from softlore.prompts import library as library_module
from waiting import cost


def prompt(name: str, value: float = 1.0) -> SoftPrompt:
    return SoftPrompt(name, "embedding", torch.full((2, 3), value))


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTLORE_PROMPTS", str(tmp_path))
    assert default_folder() == tmp_path == PromptLibrary().folder
    monkeypatch.setenv("SOFTLORE_PROMPTS", "~/lore")
    assert default_folder() == Path.home() / "lore"
    monkeypatch.setenv("SOFTLORE_PROMPTS", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder().parts[-2:] == ("softlore", "prompts")


def test_saves_and_gets_by_name(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path / "new" / "folder")
    assert len(library) == 0
    dog, emma = prompt("dog"), prompt("Emma's house")
    assert library.save(dog) == library.folder / "dog.safetensors"
    assert library.save(emma) == library.folder / "emma-s-house.safetensors"
    assert list(library) == ["Emma's house", "dog"]
    assert library["dog"] == dog
    assert library["Emma's house"] == emma
    assert "dog" in library
    assert "cat" not in library
    assert library.get("cat") is None
    assert dict(library) == {"dog": dog, "Emma's house": emma}


def test_context_parses_with_a_library(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path)
    library.save(prompt("dog"))
    assert Context.parse("A [[soft:dog]]", library) == "A " + library["dog"]
    with pytest.raises(UnknownPromptError, match=r"did you mean \[\[soft:dog\]\]\?"):
        Context.parse("A [[soft:dgo]]", library)


def test_unknown_name(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path)
    with pytest.raises(UnknownPromptError, match=r"there is no prompt 'dog' .* train it first"):
        library["dog"]
    library.save(prompt("dog"))
    with pytest.raises(UnknownPromptError, match="did you mean 'dog'") as caught:
        library.header("dig")
    assert str(caught.value).startswith("there is no prompt")


def test_saving_again_replaces(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path)
    library.save(prompt("dog"))
    (tmp_path / "dog.safetensors").rename(tmp_path / "my dog.safetensors")
    newer = prompt("dog", 2.0)
    assert library.save(newer) == tmp_path / "my dog.safetensors"
    assert library["dog"] == newer
    assert len(list(tmp_path.iterdir())) == 1


def test_file_names_never_clash(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path)
    (tmp_path / "dog.safetensors").write_bytes(b"not a prompt, and not ours to replace")
    names = ["dog", "Dog", "dog.", "-dog"]
    paths = [library.save(prompt(name)).name for name in names]
    assert paths == [f"dog-{n}.safetensors" for n in (2, 3, 4, 5)]
    assert sorted(library) == sorted(names)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Emma's House", "emma-s-house"),
        ("Zoë", "zoe"),
        ("...a", "a"),
        ("NUL", "prompt-nul"),
        ("com1", "prompt-com1"),
        ("犬", "prompt-1e82f9b0b675"),
        ("x" * 128, "x" * 80),
    ],
)
def test_slugs(name: str, slug: str) -> None:
    assert slug_of(name) == slug


def test_bad_files_are_skipped_and_reported(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path)
    library.save(prompt("dog"))
    (tmp_path / "a-copy.safetensors").write_bytes((tmp_path / "dog.safetensors").read_bytes())
    (tmp_path / "cut.safetensors").write_bytes(b"\0\0")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".softlore-0.tmp").write_bytes(b"left by a killed write")
    (tmp_path / ".hidden.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not looked at")
    for _ in range(2):
        listing = library.listing()
        assert [(header.name, header.path.name) for header in listing.headers] == [
            ("dog", "a-copy.safetensors")
        ]
        errors = {bad.path.stem: bad.error for bad in listing.bad}
        assert all(isinstance(error, PromptFileError) for error in errors.values())
        assert {stem: error.reason for stem, error in errors.items()} == {  # type: ignore[attr-defined]
            "cut": Reason.TOO_SHORT,
            "dog": Reason.DUPLICATE_NAME,
            "folder": Reason.NOT_A_FILE,
            "link": Reason.MISSING,
        }
    assert list(library) == ["dog"]


def test_sees_changes(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path)
    library.save(prompt("dog"))
    assert list(library) == ["dog"]
    path = tmp_path / "dog.safetensors"
    prompt("wolf").save(path)
    os.utime(path, ns=(1, 1))
    assert list(library) == ["wolf"]
    library.remove("wolf")
    assert list(library) == []
    with pytest.raises(UnknownPromptError):
        library.remove("wolf")


def test_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    library = PromptLibrary(tmp_path / "file")
    with pytest.raises(StorageError, match="could not list"):
        list(library)
    with pytest.raises(StorageError, match="could not make the folder"):
        library.save(prompt("dog"))


def test_a_thousand_are_listed_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)  # a thousand would take seconds
        for number in range(1000):
            prompt(f"dog {number}").save(tmp_path / f"{number}.safetensors")
    library = PromptLibrary(tmp_path)
    assert cost(lambda: len(library), 1) < 200  # about 10
    assert len(library) == 1000
    monkeypatch.setattr(native, "read_header", None)  # read once: unchanged files are known
    assert len(library) == 1000


def test_names_are_looked_up_without_listing_a_folder_that_has_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, library = PromptLibrary(tmp_path), PromptLibrary(tmp_path)
    for name in ("dog", "cat"):
        writer.save(prompt(name))
    listed = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scan(path))
    assert "dog" in library
    assert "cat" in library
    assert len(listed) == 1
    assert "wolf" not in library
    assert len(listed) == 2  # a folder this young could have changed at the same time stamp
    _make_old(tmp_path)
    assert list(library) == ["cat", "dog"]
    del listed[:]
    assert "dog" in library
    assert "wolf" not in library
    assert library["cat"].name == "cat"
    assert not listed
    writer.save(prompt("wolf"))
    assert library["wolf"].name == "wolf"
    _make_old(tmp_path)
    assert list(library) == ["cat", "dog", "wolf"]
    del listed[:]
    dog = library.header("dog").path
    dog.write_bytes(dog.read_bytes()[:-1])  # in place: the folder's own time stamp stays
    os.utime(dog, ns=(7, 7))
    with pytest.raises(UnknownPromptError, match="one of its 2 prompts"):
        library["dog"]
    assert listed


def test_saving_many_does_not_list_the_folder_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, listed, scan = PromptLibrary(tmp_path), [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scan(path))
    for number in range(50):
        library.save(prompt(f"dog {number}"))
    assert len(listed) == 1
    PromptLibrary(tmp_path).save(prompt("cat"))
    library.save(prompt("dog 7", 2.0))
    assert len(library) == 51
    assert float(library["dog 7"].tensor[0, 0]) == 2.0


def test_missing_names_cost_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = PromptLibrary(tmp_path)
    library.save(prompt("dog"))
    listed, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scan(path))
    assert [library.get(f"nobody {number}") for number in range(9)] == [None] * 9
    assert library.get("nobody", 3) == 3
    assert library.get("dog").name == "dog"
    assert not listed


def _make_old(folder: Path) -> None:
    """As if nothing had been added to a folder for a minute."""
    old = folder.stat().st_mtime_ns - 60_000_000_000
    os.utime(folder, ns=(old, old))


def test_the_prompts_used_least_lately_leave_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = PromptLibrary(tmp_path)
    for name in ("dog", "cat", "wolf"):
        library.save(prompt(name))
    monkeypatch.setattr(library_module, "MAX_CACHED_BYTES", 2 * prompt("dog").tensor.nbytes)
    dog, cat = library["dog"], library["cat"]
    assert library["dog"] is dog
    assert library["wolf"].name == "wolf"
    assert library["dog"] is dog
    assert library["cat"] is not cat


def test_a_prompt_is_read_once_until_its_file_changes(tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path)
    library.save(prompt("dog"))
    first = library["dog"]
    assert library["dog"] is first
    path = library.header("dog").path
    library.save(prompt("dog", 2.0))
    os.utime(path, ns=(1, 1))
    assert float(library["dog"].tensor[0, 0]) == 2.0
    library.remove("dog")
    with pytest.raises(UnknownPromptError):
        library["dog"]


def test_a_recent_listing_is_kept_until_the_folder_changes(tmp_path: Path) -> None:
    library, other = PromptLibrary(tmp_path), PromptLibrary(tmp_path)
    library.save(prompt("dog"))
    age(tmp_path)
    first = library.listing()
    assert library.listing(60) is first
    assert library.listing() is not first
    other.save(prompt("cat"))  # by another process
    assert [header.name for header in library.listing(60).headers] == ["cat", "dog"]
    age(tmp_path)
    library.listing()
    library.save(prompt("emu"))
    assert [header.name for header in library.listing(60).headers] == ["cat", "dog", "emu"]
    age(tmp_path)
    library.listing()
    other.remove("cat")
    assert [header.name for header in library.listing(60).headers] == ["dog", "emu"]


def test_a_file_that_is_written_over_in_place_is_noticed_once_the_listing_is_old(
    tmp_path: Path,
) -> None:
    library = PromptLibrary(tmp_path)
    path = library.save(prompt("dog"))
    elsewhere = PromptLibrary(tmp_path / "elsewhere").save(prompt("hound", 2.0))
    age(tmp_path)
    library.listing()
    folder_changed = tmp_path.stat().st_mtime_ns
    path.write_bytes(elsewhere.read_bytes())
    assert tmp_path.stat().st_mtime_ns == folder_changed
    assert [header.name for header in library.listing(0).headers] == ["hound"]


def age(folder: Path) -> None:
    """Makes a folder one that has not changed for a while."""
    os.utime(folder, ns=(10**18 + 1, 10**18 + 1))
