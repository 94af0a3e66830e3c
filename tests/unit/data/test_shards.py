"""Records of tar shards: correct captions, no silent losses, and clear errors."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from blip3o.data.lint import LintChecks, lint
from blip3o.data.sources.webdataset import WebDatasetConfig, WebDatasetSource

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n"
Names = tuple[str, ...]


def write(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    """Writes members in order; names may repeat."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def opened(path: Path | str) -> WebDatasetSource:
    return WebDatasetConfig(path=str(path), name="s").build()


def named(*names: str) -> list[tuple[str, bytes]]:
    """Members that contain their own name, as image bytes, caption or caption in a JSON."""
    return [
        (
            name,
            f'{{"caption": "{name}"}}'.encode() if name.lower().endswith("json") else name.encode(),
        )
        for name in names
    ]


Record = tuple[str, Mapping[str, bytes], Mapping[str, Any]]


def records(path: Path, *names: str) -> list[Record | str]:
    """Returns the records of a shard, with the reason in place of a bad one."""
    source = opened(write(path / "s.tar", *named(*names)))
    found: list[Record | str] = []
    for position in range(len(source)):
        try:
            found.append(source.read(position))
        except ValueError as error:
            found.append(str(error))
    return found


def record(key: str, image: str, caption: str | None = None) -> Record:
    return key, {"image": image.encode()}, {} if caption is None else {"caption": caption}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a.png", "a.txt"), [record("a", "a.png", "a.txt")]),
        (("a.JPG", "a.TXT"), [record("a", "a.JPG", "a.TXT")]),
        (("a.jfif", "a.caption"), [record("a", "a.jfif", "a.caption")]),
        (("a.png", "a.png.txt"), [record("a", "a.png", "a.png.txt")]),
        (("a.gif", "a.JSON"), [record("a", "a.gif", "a.JSON")]),
        (("d.v1/a.png", "d.v1/a.txt"), [record("d.v1/a", "d.v1/a.png", "d.v1/a.txt")]),
        (("./a.png", "a.txt"), [record("./a", "./a.png", "a.txt")]),
        (("../a.png", "../a.txt"), [record("../a", "../a.png", "../a.txt")]),
        (("x/a.png", "y/a.txt", "y/a.png"), [record("x/a", "x/a.png"), None]),
        (("a.txt", "a.json", "a.png"), [record("a", "a.png", "a.txt")]),
        (("a.json", "a.txt", "a.png"), [record("a", "a.png", "a.txt")]),
        (("a.png", "a.txt", "a.alt.txt"), [record("a", "a.png", "a.txt")]),
        (("a.png", "a.alt.txt", "a.txt"), [record("a", "a.png", "a.txt")]),
        (("a.png", "a.txt", "a.src.json"), [record("a", "a.png", "a.txt")]),
        (("a.png", "a.txt", "a.cls", "a.emb.npy"), [record("a", "a.png", "a.txt")]),
        (("a.png", "a.mask.png", "a.txt"), [("a", None, {"caption": "a.txt"})]),
        (("e\u0301.png", "\u00e9.txt"), [record("e\u0301", "e\u0301.png", "\u00e9.txt")]),
    ],
)
def test_a_record_is_its_key_and_nothing_else(
    tmp_path: Path, names: Names, expected: list[Any]
) -> None:
    found = records(tmp_path, *names)
    assert len(found) == len(expected)
    for one, wanted in zip(found, expected, strict=True):
        for value, right in zip(one, wanted or (), strict=bool(wanted)):
            assert right is None or value == right


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "a.txt", "a.v2.png", "a.v2.txt"),
        ("a.v2.txt", "a.v2.png", "a.txt", "a.png"),
        ("a.png", "a.json", "a.v2.png", "a.v2.json"),
        ("a.1.png", "a.1.txt", "a.2.png", "a.2.txt"),
        ("v1.0-a.png", "v1.0-a.caption"),
        ("a.jpg", "a.png", "a.txt"),
        ("a.png", "a.PNG", "a.txt"),
        ("a.png", "a.image.png", "a.txt"),
        ("a.tif", "a.avif"),
        ("a.source.png", "a.source.jpg", "a.target.png"),
        ("a.png", "a.txt", "a.TXT"),
        ("a.png", "a.txt", "a.caption"),
        ("a.png", "a.txt", "a.png.txt"),
        ("a.png", "a.json", "a.JSON"),
        ("a.alt.txt",),
    ],
)
def test_two_members_for_one_thing_are_a_bad_record(tmp_path: Path, names: Names) -> None:
    (reason,) = records(tmp_path, *names, "good/b.png", "good/b.txt")[:-1]
    assert isinstance(reason, str)
    report = lint([str(tmp_path / "s.tar")], LintChecks())
    first = report.findings[0]
    assert (first.problem, first.position) == ("broken record", 0)
    assert not report.is_clean


def test_members_of_a_record_need_not_be_neighbors(tmp_path: Path) -> None:
    names = ("b.txt", "a.png", "c.txt", "b.png", "a.txt", "c.png", "d.png")
    assert records(tmp_path, *names) == [
        record("b", "b.png", "b.txt"),
        record("a", "a.png", "a.txt"),
        record("c", "c.png", "c.txt"),
        record("d", "d.png"),
    ]


def test_a_large_gap_between_members_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "s.tar", ("a.png", b"A"), ("b.png", bytes(300_000)), ("a.txt", b"a"))
    source = opened(path)
    sizes: list[int] = []
    read = source._files.read

    def note(path: str, offset: int, size: int) -> bytes:
        sizes.append(size)
        return read(path, offset, size)

    monkeypatch.setattr(source._files, "read", note)
    assert source.read(0) == ("a", {"image": b"A"}, {"caption": "a"})
    assert sum(sizes) < 2000


def test_a_complete_second_group_with_a_key_is_another_record(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", *named("a.png", "a.txt", "b.png", "b.txt"), ("a.png", b"2"))
    found = [opened(path).read(k) for k in range(3)]
    assert found == [record("a", "a.png", "a.txt"), record("b", "b.png", "b.txt"), record("a", "2")]
    problems = [one.problem for one in lint([str(path)], LintChecks()).findings]
    assert "duplicate key" in problems


@pytest.mark.parametrize("is_same_key", [False, True])
def test_archives_one_after_another_are_read_and_never_mixed(
    tmp_path: Path, is_same_key: bool
) -> None:
    write(tmp_path / "1.tar", ("a.png", b"1"))
    write(tmp_path / "2.tar", ("a.txt" if is_same_key else "b.txt", b"text"))
    both = tmp_path / "both.tar"
    both.write_bytes((tmp_path / "1.tar").read_bytes() + (tmp_path / "2.tar").read_bytes())
    found = [opened(both).read(k) for k in range(2)]
    assert found[0] == ("a", {"image": b"1"}, {})
    assert found[1][1:] == ({}, {"caption": "text"})


@pytest.mark.parametrize(
    ("json", "text", "expected"),
    [
        ('{"caption": null}', "t", {"caption": "t"}),
        ('{"caption": 3, "id": 1}', "t", {"caption": "t", "id": 1}),
        ('{"captions": ["j"], "id": 1}', "t", {"caption": "t", "id": 1}),
        ('{"caption": "j"}', None, {"caption": "j"}),
        ('{"caption": null}', None, {"caption": None}),
    ],
)
@pytest.mark.parametrize("is_text_first", [False, True])
def test_a_text_takes_precedence_over_the_json_in_any_order(
    tmp_path: Path, json: str, text: str | None, expected: dict[str, Any], is_text_first: bool
) -> None:
    members = [("a.json", json.encode())]
    if text is not None:
        members.insert(0 if is_text_first else 1, ("a.txt", text.encode()))
    assert opened(write(tmp_path / "s.tar", ("a.png", b"A"), *members)).read(0)[2] == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (named(".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png"), 2),
        (named("__MACOSX/._a.png", "._a.png", "x/._a.txt", ".a.png"), 4),
        (named("@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "x/@eaDir/a.txt"), 2),
        (named(".DS_Store", "x/.DS_Store", "Thumbs.db", "x/thumbs.DB", "desktop.ini"), 5),
        (named("./PaxHeaders.1234/a.png", "PaxHeader/a.txt"), 2),
        (named(".cache/huggingface/a.png", "./.git/a.png", "$RECYCLE.BIN/a.png"), 3),
        (named("x/lost+found/a.png", "RECYCLER/a.png", "Network Trash Folder/x/a.txt"), 3),
        (named("x/.ipynb_checkpoints/a-checkpoint.png", "x/#recycle/a.png", "~snapshot/a.png"), 3),
        ([link(".hidden/a.png", "../good.png")], 1),
    ],
)
def test_hidden_and_junk_members_are_passed_over_and_counted(
    tmp_path: Path, members: list[Any], expected: int
) -> None:
    path = write(tmp_path / "s.tar", *members, *named("good.png", "good.txt"))
    for source in (opened(path), opened(path)):  # made, and loaded
        assert len(source) == 1
        assert source.read(0) == record("good", "good.png", "good.txt")
        assert source.passed_over == {"a hidden or junk file": expected}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", LFS)], "record a: it is a git-lfs pointer"),
        ([("a.caption", LFS)], "git lfs pull"),
        ([("a.json", LFS)], "git lfs pull"),
        ([("a.txt", bytes(30))], "only zero bytes"),
        ([("a.json", bytes(30))], "only zero bytes"),
        ([("a.txt", b"caf\xe9")], "record a: not utf-8 text: .* save it as UTF-8"),
        ([("a.txt", "a cat".encode("utf-16"))], "record a: not utf-8 text: .* save it as UTF-8"),
        ([("a.json", b'["a cat"]')], "record a: the record's JSON is not an object"),
        ([("a.json", b'{"m": {"a": 1, "a": 2}}')], "record a: the key 'a' appears twice"),
        ([("a.json", b'{"caption": "x",}')], "record a: not JSON: a comma"),
    ],
)
def test_a_text_that_cannot_be_read_names_its_record(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    path = write(tmp_path / "s.tar", *members, ("a.png", b"A"), *named("b.png", "b.txt"))
    source = opened(path)
    with pytest.raises(ValueError, match=message):
        source.read(0)
    assert source.read(1) == record("b", "b.png", "b.txt")


@pytest.mark.parametrize("kind", [b"D", b"V", tarfile.DIRTYPE])
def test_folders_and_labels_of_gnu_tar_are_not_members(tmp_path: Path, kind: bytes) -> None:
    name = "label" if kind == b"V" else "folder.png/"
    info = tarfile.TarInfo(name)
    info.type = kind
    source = opened(write(tmp_path / "s.tar", info, *named("a.png", "a.txt")))
    assert source.passed_over == {}
    assert source.read(0) == record("a", "a.png", "a.txt")


@pytest.mark.parametrize(
    "kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"M", b"I", b"N"]
)
@pytest.mark.parametrize("name", ["a.png", "a.txt"])
def test_members_that_are_not_files_are_counted_as_passed_over(
    tmp_path: Path, kind: bytes, name: str
) -> None:
    info = tarfile.TarInfo(name)
    info.type = kind
    other = "a.txt" if name == "a.png" else "a.png"
    source = opened(write(tmp_path / "s.tar", info, *named(other, "b.png", "b.txt")))
    assert source.read(0)[1:] == record("a", other)[1:] if other == "a.png" else True
    assert source.read(1) == record("b", "b.png", "b.txt")
    assert list(source.passed_over.values()) == [1]
    assert not lint([str(tmp_path / "s.tar")], LintChecks(tasks=("text_to_image",))).is_clean


def test_every_member_is_a_records_or_counted(tmp_path: Path) -> None:
    pipe = tarfile.TarInfo("p.png")
    pipe.type = tarfile.FIFOTYPE
    names = ("a.png", "a.txt", "a.alt.txt", "a.cls", "b.cls", "a.heic", "README", "x.npy")
    path = write(tmp_path / "s.tar", *named(*names), pipe)
    assert opened(path).passed_over == {
        "a text with a longer name than KEY.txt": 1,
        "neither an image nor a text: .cls": 2,
        "neither an image nor a text: .npy": 1,
        "neither an image nor a text: no ending": 1,
        "an image of a kind that is not read: .heic": 1,
        "a device, a pipe or something else that is not a file": 1,
    }
    many = [(f"a.{k}.png", b"A") for k in range(300)] + [(f"b.e{k}", b"") for k in range(300)]
    source = opened(write(tmp_path / "many.tar", *many))
    assert sum(source.passed_over.values()) == 44 + 300
    assert len(source.passed_over) < 25


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_lead_to_their_member(tmp_path: Path, kind: bytes) -> None:
    is_hard = kind == tarfile.LNKTYPE
    path = write(
        tmp_path / "s.tar",
        ("d/0.png", b"zero"),
        link("d/1.png", "./d/0.png" if is_hard else "0.png", kind),
        ("d/1.txt", b"one"),
        link("e/2.png", "d/1.png" if is_hard else "../d/1.png", kind),  # through another link
        link("3.txt", "blobs/abc", kind),  # a file without an ending, after the link
        ("blobs/abc", b"three"),
        link("d/0.png", "d/0.png", tarfile.LNKTYPE),  # tar writes this for a file given twice
    )
    source = opened(path)
    assert [source.read(k) for k in range(len(source))] == [
        ("d/0", {"image": b"zero"}, {}),
        ("d/1", {"image": b"zero"}, {"caption": "one"}),
        ("e/2", {"image": b"zero"}, {}),
        ("3", {}, {"caption": "three"}),
    ]


def test_links_to_folders_are_followed_within_their_archive(tmp_path: Path) -> None:
    one = write(
        tmp_path / "1.tar",
        link("all", "data"),
        ("data/0.png", b"first"),
        link("a.png", "all/0.png"),
    ).read_bytes()
    two = write(tmp_path / "2.tar", ("data/0.png", b"second"), link("b.png", "data/0.png"))
    both = tmp_path / "both.tar"
    both.write_bytes(one + two.read_bytes())
    source = opened(both)
    found = {key: files["image"] for key, files, _ in map(source.read, range(len(source)))}
    assert found == {"data/0": b"second", "a": b"first", "b": b"second"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([link("a.png", "b.png")], "a symbolic link to b.png, and the shard holds no such file"),
        ([link("a.png", "b.png", tarfile.LNKTYPE)], "a hard link to b.png, and the shard holds no"),
        ([link("a.png", "../x.png")], r"\.\./x\.png, which leads out of the shard"),
        ([link("a.png", "/etc/passwd")], "/etc/passwd, which leads out of the shard"),
        ([link("d/a.png", "../../etc/passwd")], "leads out of the shard"),
        ([link("a.png", "a.png")], "leads in a circle"),
        ([link("a.png", "b"), link("b", "c"), link("c", "a.png")], "leads in a circle"),
        ([link("a.png", "d/x.png"), link("d", "d")], "leads in a circle"),
        ([link("a.png", "."), ("d/x.png", b"")], "holds no such file"),
        ([("a.png", b"A"), link("a.txt", "gone.txt")], r"a\.txt is a symbolic link to gone\.txt"),
    ],
)
def test_a_link_that_leads_to_no_member_is_a_bad_record(
    tmp_path: Path, members: list[Any], reason: str
) -> None:
    path = write(tmp_path / "s.tar", *members, *named("good.png"))
    for source in (opened(path), opened(path)):
        bad = next(k for k in range(len(source)) if source.shards[0].key(k).endswith("a"))
        with pytest.raises(ValueError, match=f"record .*a: .*{reason}"):
            source.read(bad)
        assert source.read(len(source) - 1) == record("good", "good.png")


def test_names_that_are_not_utf_8_stay_distinct(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        for name in ("\u00e9.png", "\u00e8.png"):
            tar.addfile(tarfile.TarInfo(name))
    source = opened(path)
    assert [source.read(k)[0] for k in range(2)] == ["\\xe9", "\\xe8"]
