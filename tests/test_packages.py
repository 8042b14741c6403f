"""Packages: what loads, and what is refused before anything of it is left."""

import io
import json
import multiprocessing
import os
import tarfile
from pathlib import Path

import pyterrier as pt
import pytest
from lz4.frame import LZ4FrameFile

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, packages
from pyterrier_selfdistill.packages import LimitedReader, Package


@pytest.fixture
def package(encoder, tmp_path):
    """The file of a packaged encoder."""
    encoder.save(tmp_path / "model")
    return Path(encoder.build_package(str(tmp_path / "model.tar.lz4"), verbose=False))


def cached():
    return set((Path(pt.io.pyterrier_home()) / "artifacts").glob("*"))


def test_local_packages_is_needed(package):
    # if this loads it, see LocalPackages
    with pytest.raises(OSError, match="not found"):
        pt.Artifact.from_url(package.as_uri())


@pytest.mark.parametrize("max_file_size", [None, 20_000])
def test_from_url_loads_a_package_of_this_machine(encoder, tmp_path, max_file_size):
    encoder.training_summary = {"seed": 7}
    encoder.save(tmp_path / "model")
    path = str(tmp_path / "model.tar.lz4")
    package = encoder.build_package(path, max_file_size=max_file_size, verbose=False)
    assert (tmp_path / "model.tar.lz4").exists() == (max_file_size is None)
    for url in (f"file://{package}", (tmp_path / "model").as_uri()):
        loaded = SelfDistillBiEncoder.from_url(url)
        assert loaded == encoder
        assert loaded.training_summary == encoder.training_summary


def test_from_url_unpacks_once(package, encoder):
    first = SelfDistillBiEncoder.from_url(package.as_uri())
    files = cached()
    assert SelfDistillBiEncoder.from_url(package.as_uri(), batch_size=7).path == first.path
    assert cached() == files


def test_from_url_loads_a_package_that_was_built_again(package, encoder):
    first = SelfDistillBiEncoder.from_url(package.as_uri())
    encoder.model.prompts["query"] = "query: "
    encoder.save(encoder.path, overwrite=True)
    encoder.build_package(str(package), verbose=False)
    assert SelfDistillBiEncoder.from_url(package.as_uri()) == encoder
    assert first != encoder


def test_from_url_refuses_a_package_that_was_changed(package):
    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    package.write_bytes(content)
    before = cached()
    with pytest.raises(ValueError, match="damaged|sha256"):
        SelfDistillBiEncoder.from_url(package.as_uri())
    assert cached() == before


def test_from_url_refuses_a_package_of_another_checksum(package):
    before = cached()
    with pytest.raises(ValueError, match="sha256"):
        SelfDistillBiEncoder.from_url(package.as_uri(), expected_sha256="0" * 64)
    assert cached() == before
    checksum = json.loads(Path(f"{package}.json").read_text())["expected_sha256"]
    assert SelfDistillBiEncoder.from_url(package.as_uri(), expected_sha256=checksum)


def test_from_url_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_package"):
        SelfDistillBiEncoder.from_url(f"file://{tmp_path}/nothing.tar.lz4")


def test_from_url_loads_an_index(encoder, tmp_path):
    corpus = [{"docno": str(number), "text": f"plot {number}"} for number in range(5)]
    encoder.build_retriever(corpus, tmp_path / "index.flex")
    package = SelfDistillIndex(tmp_path / "index.flex").build_package(str(tmp_path / "index.tar.lz4"), verbose=False)
    index = SelfDistillIndex.from_url(f"file://{package}", any_encoder=True)
    assert index.encoder.checksum == encoder.model_name
    assert index.any_encoder
    assert len((encoder >> index).search("plot 3")) == 5


@pytest.mark.parametrize("content", ["garb\u00e9ge", "[]", '{"segments": 7}', '{"expected_sha256": 7}'])
def test_from_url_refuses_a_damaged_file_beside_the_package(package, content):
    Path(f"{package}.json").write_text(content)
    with pytest.raises(ValueError, match="is not what artifact.build_package.*copy it again"):
        SelfDistillBiEncoder.from_url(package.as_uri())


@pytest.mark.parametrize("host", ["host", "127.0.0.1", "me@host"])
def test_from_url_refuses_files_of_other_machines(package, host):
    with pytest.raises(ValueError, match=f"of the machine '{host}'.*three slashes"):
        SelfDistillBiEncoder.from_url(f"file://{host}{package}")
    assert SelfDistillBiEncoder.from_url(f"file://localhost{package}")


def test_from_url_unpacks_once_for_many_processes(package):
    before = cached()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=Package(package, None).unpack) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(cached() - before) == 1


# --- archives that nobody should unpack -----------------------------------------------------------------------------


@pytest.fixture
def pack(tmp_path):
    """Write a package of members and their contents."""

    def pack(*members):
        path = tmp_path / "bad.tar.lz4"
        with (
            LZ4FrameFile(path, "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for member, content in members:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    return pack


def member(name, **attributes):
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


REFUSED = {
    "a name above": (member("../outside"), "outside"),
    "a name above, below": (member("folder/../../outside"), "outside"),
    "a link": (member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'link', which is neither"),
    "a link inside": (member("link", type=tarfile.SYMTYPE, linkname="pt_meta.json"), "'link', which is neither"),
    "a hard link": (member("link", type=tarfile.LNKTYPE, linkname="pt_meta.json"), "'link', which is neither"),
    "a device": (member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "'device', which is neither"),
    "a pipe": (member("pipe", type=tarfile.FIFOTYPE), "'pipe', which is neither"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_packages_hold_nothing_but_files_of_their_folder(pack, tmp_path, name):
    refused, message = REFUSED[name]
    path = pack((member("pt_meta.json"), b"{}"), (refused, b""))
    before = cached()
    with pytest.raises(ValueError, match=message):
        Package(path, None).unpack()
    assert cached() == before
    assert not list(Path(pt.io.pyterrier_home()).rglob("outside"))


def test_absolute_names_are_names_in_the_folder(pack, tmp_path):
    folder = Package(pack((member(f"{tmp_path}/outside"), b"inside")), None).unpack()
    assert not (tmp_path / "outside").exists()
    assert [path.read_text() for path in folder.rglob("outside")] == ["inside"]


def test_packages_unpack_to_a_number_of_bytes(pack, monkeypatch):
    monkeypatch.setattr(packages, "MAX_BYTES", 100_000)
    # as large as it may be, with what the archive adds
    assert Package(pack((member("zeros"), bytes(80_000))), None).unpack()
    before = cached()
    with pytest.raises(ValueError, match=r"unpacks to more than 1\d+ bytes"):
        Package(pack((member("zeros"), bytes(20_000_000))), None).unpack()
    assert cached() == before
    # random bytes hardly get smaller
    assert Package(pack((member("weights"), os.urandom(1_000_000))), None).unpack()


@pytest.mark.parametrize("where", ["header", "after"])
def test_packages_hide_no_bytes(pack, monkeypatch, where):
    monkeypatch.setattr(packages, "MAX_BYTES", 100_000)
    path = pack((member("file", pax_headers={"comment": "x" * 20_000_000 if where == "header" else ""}), b"content"))
    if where == "after":
        with LZ4FrameFile(path, "ab") as file:
            file.write(bytes(20_000_000))
    with pytest.raises(ValueError, match=r"unpacks to more than 1\d+ bytes"):
        Package(path, None).unpack()


def test_packages_unpack_to_a_number_of_files(pack, monkeypatch):
    monkeypatch.setattr(packages, "MAX_FILES", 3)
    files = [(member(f"file-{number}"), b"") for number in range(4)]
    assert Package(pack(*files[:3]), None).unpack()
    before = cached()
    with pytest.raises(ValueError, match="more than 3 files"):
        Package(pack(*files), None).unpack()
    assert cached() == before


@pytest.mark.parametrize("content", [b"", b"garbage", os.urandom(1000)])
def test_what_is_no_package_is_refused(tmp_path, content):
    (tmp_path / "bad.tar.lz4").write_bytes(content)
    with pytest.raises(ValueError, match="is not a package, or damaged"):
        Package(tmp_path / "bad.tar.lz4", None).unpack()


@pytest.mark.parametrize("size", [-1, 3, 10**12])
def test_limited_reader_reads_no_more_than_it_may(size):
    asked = []

    class Endless:
        def read(self, size):
            asked.append(size)
            return bytes(size)

    reader = LimitedReader(Endless(), 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        list(iter(lambda: reader.read(size), b""))
    assert sum(asked) <= 12
