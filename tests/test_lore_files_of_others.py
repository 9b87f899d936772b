"""Lorebook files of other programs as bytes: pictures, archives, broken ones; softlore lore."""

import base64
import io
import json
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import lore_samples as samples
from running import save_tiny_model, softlore
from softlore.cli.lore import FORMATS
from softlore.errors import LoreError
from softlore.lore import Block, Entry, Lorebook, files
from softlore.lore.formats import containers
from softlore.lore.formats.registry import EXPORTERS


def chunk(kind, body, crc=None):
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


HEAD = containers.PNG + chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 8, 0, 0, 0, 0))
BODY = chunk(b"IDAT", zlib.compress(b"\0\0"))
END = chunk(b"IEND", b"")


def text_chunk(keyword, data):
    text = data if isinstance(data, bytes) else base64.b64encode(json.dumps(data).encode())
    return chunk(b"tEXt", keyword + b"\0" + text)


def picture(*chunks):
    return HEAD + b"".join(chunks) + BODY + END


def archive(members, method=zipfile.ZIP_DEFLATED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return made.getvalue()


def texts_of(content):
    """The text chunks of a picture, parsed independently."""
    found, place = {}, len(containers.PNG)
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + length]
        (crc,) = struct.unpack_from(">I", content, place + 8 + length)
        assert crc == zlib.crc32(kind + body)
        if kind == b"tEXt":
            keyword, _, text = body.partition(b"\0")
            assert keyword not in found
            found[keyword.decode()] = text
        place += 12 + length
    assert kind == b"IEND"
    return found


def card_in(text):
    return json.loads(base64.b64decode(text))


def error_message(path, content=None):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoreError) as caught:
        Lorebook.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# pictures -----------------------------------------------------------------------------------------


def test_a_card_in_a_picture(tmp_path):
    path = tmp_path / "emma.png"
    path.write_bytes(picture(text_chunk(b"Chara", samples.CARD_V2), text_chunk(b"Title", b"x")))
    assert Lorebook.load(path)["Zoë"].text.startswith("Zoë is a night watch.")
    path.write_bytes(
        picture(text_chunk(b"chara", samples.CARD_V1), text_chunk(b"ccv3", samples.CARD_V3))
    )
    assert Lorebook.load(path).origin["data"]["spec"] == "chara_card_v3"


def test_a_card_goes_into_a_picture(tmp_path):
    mine = tmp_path / "mine.png"
    mine.write_bytes(picture(text_chunk(b"chara", samples.CARD_V1), text_chunk(b"Title", b"x")))
    (tmp_path / "card.json").write_text(json.dumps(samples.CARD_V3))
    book = Lorebook.load(tmp_path / "card.json")
    out = tmp_path / "out.png"
    book.save(out, "card-v3", into=mine)
    found = texts_of(out.read_bytes())
    assert list(found) == ["Title", "chara", "ccv3"]
    assert card_in(found["ccv3"]) == samples.CARD_V3
    assert card_in(found["chara"]) == samples.CARD_V3 | {
        "spec": "chara_card_v2",
        "spec_version": "2.0",
    }
    assert Lorebook.load(out) == book
    book.save(out, "card-v2", into=out)
    assert list(texts_of(out.read_bytes())) == ["Title", "chara"]
    assert card_in(texts_of(mine.read_bytes())["chara"]) == samples.CARD_V1  # as it was


def test_a_plain_picture(tmp_path):
    images = pytest.importorskip("PIL.Image")
    book = Lorebook(name="book", entries=[Entry(name="Emma", text="Emma is a spy.")])
    book.save(tmp_path / "book.png", "card-v3")
    with images.open(tmp_path / "book.png") as image:
        image.load()
        assert (image.size, image.getpixel((5, 5))) == ((256, 384), 96)
        assert set(image.text) == {"chara", "ccv3"}
    assert (tmp_path / "book.png").stat().st_size < 8000


def packed_chunk(kind, keyword, data):
    """A text chunk of another kind; `i`: compressed iTXt, with a language and a translation."""
    text = base64.b64encode(json.dumps(data).encode())
    match kind:
        case "zTXt":
            return chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(text))
        case "iTXt":
            return chunk(b"iTXt", keyword + b"\0\0\0\0\0" + text)
    return chunk(b"iTXt", keyword + b"\0\1\0de\0Karte\0" + zlib.compress(text))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "i"])
def test_a_card_in_other_text_chunks(tmp_path, kind):
    path = tmp_path / "emma.png"
    path.write_bytes(picture(packed_chunk(kind, b"Chara", samples.CARD_V2)))
    book = Lorebook.load(path)
    assert book["Bram"].text == "Bram owns the inn."
    book["Bram"].text = "Bram sold the inn."
    out = tmp_path / "out.png"
    book.save(out, "card-v2", into=path)
    assert not any(kind in out.read_bytes() for kind in (b"zTXt", b"iTXt"))
    assert Lorebook.load(out)["Bram"].text == "Bram sold the inn."
    path.write_bytes(
        picture(packed_chunk(kind, b"chara", samples.CARD_V1), text_chunk(b"ccv3", samples.CARD_V3))
    )
    assert Lorebook.load(path).origin["data"]["spec"] == "chara_card_v3"


DAMAGED = {
    "cut": picture(text_chunk(b"chara", samples.CARD_V2))[:200],
    "signature": containers.PNG,
    "no card": picture(),
    "crc": HEAD + chunk(b"tEXt", b"chara\0e30=", crc=1) + END,
    "length": HEAD + struct.pack(">I", 2**32 - 1) + b"tEXtchara",
    "no end": HEAD + BODY,
    "base64": picture(text_chunk(b"chara", b"!!!!")),
    "padding": picture(text_chunk(b"chara", b"e30")),
    "not JSON": picture(text_chunk(b"chara", base64.b64encode(b"{"))),
    "not UTF-8": picture(text_chunk(b"chara", base64.b64encode(b'{"a": "\xff"}'))),
    "empty": picture(text_chunk(b"chara", b"")),
    "no card but JSON": picture(text_chunk(b"chara", {"a": 1})),
    "compressed, no card": picture(chunk(b"zTXt", b"chara\0\0" + zlib.compress(b"e30="))),
    "not compressed": picture(chunk(b"zTXt", b"chara\0\0e30=")),
    "compressed and cut": picture(chunk(b"zTXt", b"chara\0\0" + zlib.compress(b"e30=")[:-5])),
    "compressed by method 7": picture(chunk(b"zTXt", b"chara\0\7" + zlib.compress(b"e30="))),
    "compressed bomb": picture(chunk(b"zTXt", b"chara\0\0" + zlib.compress(b" " * (30 * 2**20)))),
    "JPEG": b"\xff\xd8\xff\xe0" + bytes(500),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_pictures(tmp_path, fault):
    error_message(tmp_path / "emma.png", DAMAGED[fault])


def test_a_picture_of_very_many_chunks(tmp_path):
    assert "damaged" in error_message(
        tmp_path / "a.png", HEAD + chunk(b"tEXt", b"") * 120_000 + END
    )


def test_what_is_no_picture_to_put_a_card_into(tmp_path):
    book = Lorebook(name="book", entries=[Entry(name="Emma", text="x")])
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(LoreError, match="is not a PNG picture"):
        book.save(tmp_path / "b.png", "card-v2", into=tmp_path / "a.jpg")
    with pytest.raises(LoreError, match="JSON, which does not go into a picture"):
        book.save(tmp_path / "b.json", "card-v2", into=tmp_path / "a.jpg")
    with pytest.raises(LoreError, match="does not go into a picture"):
        book.save(tmp_path / "b.png", "novelai")
    with pytest.raises(LoreError, match="does not exist"):
        book.save(tmp_path / "b.png", "card-v2", into=tmp_path / "none.png")
    with pytest.raises(LoreError, match="did you mean 'novelai'"):
        book.save(tmp_path / "b.json", "novel-ai")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


# archives -----------------------------------------------------------------------------------------


def test_a_card_in_an_archive(tmp_path):
    mine = tmp_path / "emma.charx"
    members = {"card.json": json.dumps(samples.CARD_V3), "assets/icon/a.png": b"\x89PNG"}
    mine.write_bytes(archive(members))
    book = Lorebook.load(mine)
    assert book["Bram"].text == "Bram owns the inn."
    out = tmp_path / "out.charx"
    book.save(out, "card-v3", into=mine)
    with zipfile.ZipFile(out) as made:
        assert sorted(made.namelist()) == ["assets/icon/a.png", "card.json"]
        assert made.read("assets/icon/a.png") == b"\x89PNG"
        assert json.loads(made.read("card.json")) == samples.CARD_V3
    once = out.read_bytes()
    book.save(out, "card-v3", into=mine)
    assert out.read_bytes() == once
    assert Lorebook.load(out) == book


def test_an_archive_behind_a_picture(tmp_path):
    front = b"\xff\xd8\xff\xe0" + bytes(496)
    mine, out = tmp_path / "emma.charx", tmp_path / "out.charx"
    mine.write_bytes(
        front + archive({"card.json": json.dumps(samples.CARD_V3), "a.png": b"\x89PNG"})
    )
    book = Lorebook.load(mine)
    book["Bram"].text = "Bram sold the inn."
    book.save(out, "card-v3", into=mine)
    assert out.read_bytes().startswith(front)
    with zipfile.ZipFile(out) as made:
        assert sorted(made.namelist()) == ["a.png", "card.json"]
        assert made.testzip() is None
    assert Lorebook.load(out)["Bram"].text == "Bram sold the inn."


def bomb():
    return archive({"card.json": b" " * (containers.MAX_CARD_BYTES + 1)})


def lying_size():
    content = bytearray(archive({"card.json": b"{}" * 5000}))
    at = content.rfind(b"PK\x01\x02")
    struct.pack_into("<L", content, at + 24, 10)  # said to unpack to 10 bytes
    return bytes(content)


def encrypted():
    content = bytearray(archive({"card.json": b"{}"}))
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rfind(magic) + place] |= 1
    return bytes(content)


def many():
    content = bytearray(archive({"card.json": b"{}"}))
    struct.pack_into("<2H", content, content.rfind(b"PK\x05\x06") + 8, 60_000, 60_000)
    return bytes(content)


ARCHIVES = {
    "no card": (archive({"a.txt": b"x"}), "holds no character card"),
    "empty": (archive({}), "holds no character card"),
    "bomb": (bomb(), "unpacks to more than 16 MiB"),
    "lie": (lying_size(), "charx"),
    "encrypted": (encrypted(), "cannot be read"),
    "many": (many(), "too many files"),
    "cut": (archive({"card.json": b"{}"})[:-30], "it has no end record"),
    "zip64": (
        archive({"card.json": b"{}"})[:-22] + b"PK\x06\x07" + bytes(16) + b"PK\x05\x06" + bytes(18),
        "too many files",
    ),
    "not JSON": (archive({"card.json": b"nothing"}), "not JSON"),
    "method": (archive({"card.json": b"{}"}).replace(b"\x08\x00", b"\x63\x00"), "by method 99"),
    "lzma": (archive({"card.json": b"{}"}, zipfile.ZIP_LZMA), "packed by method 14"),
    "bzip2": (archive({"card.json": b"{}"}, zipfile.ZIP_BZIP2), "packed by method 12"),
}


@pytest.mark.parametrize("fault", ARCHIVES)
def test_damaged_archives(tmp_path, fault):
    content, message = ARCHIVES[fault]
    assert message in error_message(tmp_path / "emma.charx", content)


def test_an_archive_that_unpacks_to_too_much_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MAX_BYTES", 1000)
    (tmp_path / "a.charx").write_bytes(
        archive({"card.json": b"{}", "a": b"x" * 600, "b": b"x" * 600})
    )
    book = Lorebook(name="book", entries=[Entry(name="Emma", text="x")])
    with pytest.raises(LoreError, match="unpacks to more than"):
        book.save(tmp_path / "b.charx", "card-v3", into=tmp_path / "a.charx")


@given(
    whole=st.sampled_from([picture(text_chunk(b"ccv3", samples.CARD_V3)),
                           archive({"card.json": json.dumps(samples.CARD_V2)})]),
    spots=st.lists(st.tuples(st.integers(8, 2000), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(8, 2000),
)  # fmt: skip
@settings(max_examples=300)
def test_no_bytes_break_the_readers(whole, spots, cut):
    content = bytearray(whole)
    for place, value in spots:
        content[place % len(content)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "card"
        path.write_bytes(bytes(content[:cut]))
        message = ""
        try:
            Lorebook.load(path)
        except LoreError as error:
            message = str(error)
        assert message.isprintable()


# broken JSON --------------------------------------------------------------------------------------


def tavern(**fields):
    return {"entries": {"0": {"key": [], "content": "x", **fields}}}


def card(**data):
    return {"spec": "chara_card_v3", "data": {"name": "E", **data}}


MUST_BE_FLAG = "must be true or false"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tavern(content=[1]), "entry 1 of SillyTavern's World Info: `content` must be text, but"),
        (tavern(key=["a", {}]), "`key` must be text, but is fields ()"),
        (tavern(order="much"), "`order` must be a number"),
        (tavern(disable="perhaps"), f"`disable` {MUST_BE_FLAG}"),
        (tavern(position=[]), "`position` must be one of "),
        (tavern(useProbability={}), MUST_BE_FLAG),
        (tavern(softlore={"fields": {"order": "b"}}), "`order`"),
        (
            {"spec": "chara_card_v2", "data": []},
            "`data` must be a mapping of fields, but is a list",
        ),
        (card(character_book={"entries": 3}), "`data.character_book.entries` must be a list of"),
        (card(character_book={"entries": [3]}), "entry 1 of the character card: must be a mapping"),
        (
            {"spec": "lorebook_v3", "data": {"entries": [{"keys": 3, "content": 3}]}},
            "`content` must be text",
        ),
        ({"lorebookVersion": 6, "entries": ["a"]}, "entry 1 of NovelAI's lorebook"),
        ({"lorebookVersion": 6, "entries": [{"text": "x", "keys": [[]]}]}, "`keys` must be text"),
        ({"worldinfo": [{"key": {}}]}, "`key` must be text"),
        (
            {"kind": "memory", "entries": [{"entry": "x", "enabled": []}]},
            f"`enabled` {MUST_BE_FLAG}",
        ),
        ([{"keys": True, "value": "x"}], "`keys` must be text, but is the value true"),
        (
            {"worldinfo": [], "softlore": {"fields": {"training": 3}}},
            "`training` must be a mapping",
        ),
    ],
)
def test_broken_data(tmp_path, data, message):
    assert message in error_message(tmp_path / "a.json", json.dumps(data).encode())


def test_origins_are_checked_when_a_lorebook_is_read(tmp_path):
    path = tmp_path / "lore.json"
    for origin in ({"format": "novelai"}, {"format": 1, "name": "x", "data": 1}, 7):
        entry = {"name": "Emma", "text": "x", "origin": origin}
        assert "`origin` must" in error_message(path, json.dumps({"entries": [entry]}).encode())
    entry = {"name": "Emma", "text": "x", "origin": {"format": "novelai", "name": "E", "data": 7}}
    for form in ("novelai", "card", "aidungeon", "koboldai", "sillytavern"):
        for data in (7, [7], None):
            origin = {
                "format": form,
                "name": "x",
                "data": data,
                "without_lore": [7, {"place": "x"}],
            }
            book = Lorebook.from_data({"entries": [entry], "origin": origin})
            for to in EXPORTERS.keys() - {"mkultra"}:
                book.save(tmp_path / "out.json", to)
                assert Lorebook.load(tmp_path / "out.json")["Emma"].text == "x"


def test_an_origin_with_values_no_file_can_hold():
    with pytest.raises(LoreError, match="finite"):
        Entry(name="E", text="x", origin={"format": "a", "name": "b", "data": float("nan")})


# softlore lore ------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("world.json").write_text(json.dumps(samples.SILLYTAVERN))
    Path("emma.png").write_bytes(picture(text_chunk(b"chara", samples.CARD_V2)))
    return tmp_path


def run(*arguments):
    ended = softlore("lore", *arguments)
    assert ended.code == 0, ended.err
    return ended


def test_the_command_line_knows_every_format():
    assert list(FORMATS) == list(EXPORTERS)


def test_import_and_export(here):
    ended = run("import", "world.json", "--out", "lore.yaml")
    assert ended.out == "read 3 entries from world.json (sillytavern); wrote lore.yaml\n"
    assert ended.err == "1 entry without text saved for the way back\n"
    run("export", "lore.yaml", "--to", "sillytavern", "--out", "again.json")
    assert json.loads(Path("again.json").read_text()) == samples.SILLYTAVERN
    run("import", "emma.png")
    run("export", "emma.yaml", "--to", "card-v2", "--out", "card.png", "--into", "emma.png")
    assert card_in(texts_of(Path("card.png").read_bytes())["chara"]) == samples.CARD_V2
    run("export", "emma.png", "--to", "novelai")
    assert Path("People.lorebook").exists()


def test_a_downloaded_card_trains_with_one_command(here):
    model = save_tiny_model(here / "model")
    short = ["--n-tokens", 2, "--max-steps", 1, "--entry", "Bram"]
    ended = softlore("train", "emma.png", "--model", model, "--out", "out", *short)
    assert ended.code == 0, ended.err
    assert [path.name for path in Path("out").glob("*.safetensors")] == ["bram.safetensors"]


def test_what_is_there_stays(here):
    run("import", "world.json")
    for arguments in (
        ("import", "world.json"),
        ("export", "emma.png", "--to", "agnai", "--out", "world.json"),
    ):
        ended = softlore("lore", *arguments)
        assert ended.code == 2
        assert len(ended.lines) == 1
        assert "exists already" in ended.err
        run(*arguments, "--force")


def test_export_to_mkultra_names_what_is_left_out(here):
    marta = Entry(name="Marta", blocks=[Block(call="Marta wore", responses=[" red."])])
    Lorebook(name="b", entries=[marta, Entry(name="Fog", text="x")]).save("b.yaml")
    assert run("export", "b.yaml", "--to", "mkultra").err == "left out: 'Fog' has no blocks\n"
    assert json.loads(Path("b.json").read_text()) == [{"call": "Marta wore", "response": " red."}]


def test_show(here):
    book = Lorebook.load("world.json")
    book["harbour"].blocks = [Block(call="a", responses=[" b", " c"])]
    book["harbour"].use = "text"
    book["harbour"].keys = ["[red]x[/bold]", "\x1b[2J"]
    book.save("lore.yaml")
    ended = run("show", "lore.yaml")
    assert "world: 3 entries (sillytavern)" in ended.out
    assert "[red]x[/bold]" in ended.out
    assert "\x1b[2J" not in ended.out
    assert "and 1 entry without text" in ended.out
    report = json.loads(run("show", "lore.yaml", "--json", "-").out)
    assert (report["name"], report["format"], report["without_lore"]) == ("world", "sillytavern", 1)
    assert report["entries"][2] == {
        "name": "harbour",
        "keys": ["[red]x[/bold]", "\x1b[2J"],
        "characters": 20,
        "pairs": 2,
        "use": "text",
        "enabled": True,
        "constant": True,
    }
    assert "softlore" in run("show", "../" + str(save_native(here).relative_to(here.parent))).out


def save_native(folder):
    path = folder / "native.yaml"
    path.write_text(yaml.safe_dump({"entries": []}))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", "none.json"),
        ("import", "world.json", "--out", "lore.txt"),
        ("export", "world.json", "--to", "mkultra"),
        ("export", "world.json", "--to", "agnai", "--out", "x.png"),
        ("export", "world.json", "--to", "nothing"),
        ("export", "world.json", "--to", "agnai", "--out", "none/x.json"),
        ("show", "."),
        ("show", "broken.png"),
    ],
)
def test_error_messages_are_one_line(here, arguments):
    Path("broken.png").write_bytes(picture())
    ended = softlore("lore", *arguments)
    assert ended.code == 2
    assert len(ended.lines) == 1
    assert ended.err.startswith("softlore: ")


def test_large_files_are_not_read(here, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    assert "too large" in softlore("lore", "show", "emma.png").err
