"""Entry points that open and write folders: of encoders and of indexes, whole or damaged."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyterrier as pt

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex

from . import worlds
from .exploring import EntryPoint, Mutation, WrongAnswerError
from .mutations import FLAG, POSITIVE, Kind, malformed_options, replace, valid_options

TEXTS = ["sort the rows", "plot a matrix"]


def _damage(description: str, change: Callable[[Path], Any], *names: str) -> Mutation:
    """Change a copy of the folder, once there is one."""

    def add(arguments: Any) -> dict[str, Any]:
        return {**arguments, "damages": [*arguments["damages"], change]}

    return Mutation(description, add, names)


def damaged_file(name: str) -> st.SearchStrategy[Mutation]:
    """Take a file away, or the end of it, or what it holds."""
    damages: dict[str, Callable[[Path], Any]] = {
        "removed": lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "without its last byte": lambda path: path.write_bytes(path.read_bytes().rstrip()[:-1]),
        "noise": lambda path: path.write_bytes(bytes(range(256)) * (path.stat().st_size // 256 + 1)),
        "a folder": lambda path: (path.unlink(), path.mkdir()),
    }
    return st.sampled_from(list(damages)).map(
        lambda damage: _damage(f"{name} {damage}", lambda folder: damages[damage](folder / name), name)
    )


def damaged_json(
    name: str, keys: Sequence[str], names: Sequence[str], values: Sequence[Any]
) -> st.SearchStrategy[Mutation]:
    """Take an entry out of a file of JSON, or put something else in; errors may name others than these, too."""

    def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
        def edit_file(folder: Path) -> None:
            content = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(change(content)))

        return edit_file

    def drop(key: str) -> Mutation:
        change = edit(lambda content: {other: value for other, value in content.items() if other != key})
        return _damage(f"{name} without {key}", change, name, key, *names)

    def put(key: str, value: Any) -> Mutation:
        return _damage(
            f"{name} with {key} = {value!r}", edit(lambda content: {**content, key: value}), name, key, *names
        )

    def give(value: Any) -> Mutation:
        return _damage(f"{name} is {value!r}", edit(lambda content: value), name)

    return st.one_of(
        st.sampled_from(keys).map(drop),
        st.builds(put, st.sampled_from(keys), st.sampled_from(values)),
        st.sampled_from([[], "text", 3, None]).map(give),
    )


def as_a_link(folder: Path) -> None:
    """Move a folder, and leave a symbolic link."""
    moved = folder.rename(folder.with_name(f"{folder.name}-moved"))
    folder.symlink_to(moved)


def remove(folder: Path) -> None:
    """Remove a folder, or the link to it."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def as_a_file(folder: Path) -> None:
    """Replace a folder by a file."""
    remove(folder)
    folder.write_text("not a folder")


def empty(folder: Path) -> None:
    """Remove all files of a folder."""
    remove(folder)
    folder.mkdir()


WHOLE = (
    st.just(_damage("a symbolic link", as_a_link, "folder")),
    st.just(_damage("another file", lambda folder: (folder / "more").write_text("more"), "more")),
    st.just(_damage("another folder", lambda folder: (folder / "a folder").mkdir(), "more")),
)
"""What a folder may be, or have in it."""

NOTHING = (
    st.just(_damage("no folder", remove, "no ", "folder")),
    st.just(_damage("a file in its place", as_a_file, "folder", "file", "index")),
    st.just(_damage("an empty folder", empty, "folder", "it is no index", "model")),
)
"""What is no folder of ours."""


class OpenIndex(EntryPoint):
    """The index finds the best document, whatever else is in its folder."""

    name = "SelfDistillIndex, damaged"
    valid = st.sampled_from(worlds.TEXTS).map(lambda query: {"query": query, "damages": []})
    equivalent = WHOLE
    damaged = (
        *NOTHING,
        *map(damaged_file, ["pt_meta.json", "vecs.f4", "docnos.npids"]),
        damaged_json(
            "pt_meta.json", ["doc_count", "vec_size"], ["vecs.f4"], [None, "12", 0, -1, 11, 13, 1.5, [12], 10**12]
        ),
        damaged_json("pt_meta.json", ["type", "format"], ["expected"], [None, "", "other", 3, ["dense_index"]]),
        st.sampled_from([3, "encoder", [], {"name": "model"}, {"checksum": 3, "name": None}, {"name": 3}, {}]).map(
            lambda value: _damage(
                f"encoder is {value!r}", lambda folder: _edit(folder, encoder=value), "encoder", "pt_meta.json"
            )
        ),
        st.just(_damage("one vector more", lambda folder: _append(folder / "vecs.f4", 128), "vecs.f4")),
    )

    def call(self, query: str, damages: Sequence[Callable[[Path], Any]]) -> Any:
        """Return the best document of a copy of the index."""
        folder = _damaged_copy(self.tools.indexed, self.tools.path(), damages)
        index = SelfDistillIndex(folder, verbose=False)
        found = (self.tools.encoder >> index.retriever(num_results=1)).search(query)
        return [found["docno"].tolist(), found["score"].to_numpy()]

    def expected(self, query: str, damages: Any) -> Any:
        """Return the document with the highest product."""
        products = self.tools.scores([query], worlds.TEXTS)[0]
        return [[list(worlds.INDEXED)[products.argmax()]], products.max(keepdims=True)]


def _damaged_copy(source: Path, folder: Path, damages: Sequence[Callable[[Path], Any]]) -> Path:
    shutil.copytree(source, folder)
    for damage in damages:
        damage(folder)
    return folder


def _edit(folder: Path, **entries: Any) -> None:
    path = folder / "pt_meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def _append(path: Path, number: int) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * number)


class OpenEncoder(EntryPoint):
    """The encoder of a folder encodes as the one that was saved."""

    name = "SelfDistillBiEncoder, damaged"
    milliseconds = 35
    valid = st.fixed_dictionaries(
        {"damages": st.just([]), "options": valid_options({"batch_size": POSITIVE, "device": Kind(st.just("cpu"), [])})}
    )
    equivalent = WHOLE
    damaged = (
        *NOTHING,
        *map(damaged_file, ["modules.json", "model.safetensors", "config.json", "tokenizer.json"]),
        *map(damaged_file, ["1_Pooling/config.json", "config_sentence_transformers.json"]),
        damaged_json("config.json", ["hidden_size", "model_type"], [], [None, "12", 0, -1, 16, 1.5, [], "gpt2"]),
        st.sampled_from([b"{", b"", b"[]", b"null", b"\xff", b'{"training": 3}']).map(
            lambda content: _damage(
                f"pt_meta.json is {content!r}",
                lambda folder: (folder / "pt_meta.json").write_bytes(content),
                "pt_meta.json",
            )
        ),
    )
    malformed = tuple(
        replace("options", [{name: value} for value in kind.malformed], name)
        for name, kind in {
            "batch_size": POSITIVE,
            "verbose": FLAG,
            "device": Kind(st.just("cpu"), [3.5, "gpu", "", "cuda:99", ["cpu"], True]),
            "text_field": Kind(st.just("text"), [None, "", 3, ["text"], True]),
        }.items()
    )

    def load(self, folder: Path, options: dict[str, Any]) -> SelfDistillBiEncoder:
        """Open the folder."""
        return SelfDistillBiEncoder(folder, **options)

    def call(self, damages: Any, options: dict[str, Any]) -> Any:
        """Return the vectors of texts, by the encoder of a copy of the folder."""
        folder = _damaged_copy(self.tools.saved, self.tools.path(), damages)
        return self.load(folder, options).encode_queries(TEXTS)

    def expected(self, damages: Any, options: Any) -> Any:
        """Return the vectors of the encoder that was saved."""
        return self.tools.vectors("query", TEXTS)


class LoadArtifact(OpenEncoder):
    """The artifact of a folder encodes as the one that was saved; PyTerrier says which class loads a folder."""

    name = "pt.Artifact.load, damaged"
    milliseconds = 35
    valid = st.just({"damages": [], "options": {}})
    malformed = ()
    damaged = tuple(map(damaged_file, ["modules.json", "model.safetensors", "config.json", "1_Pooling/config.json"]))

    def load(self, folder: Path, options: dict[str, Any]) -> SelfDistillBiEncoder:
        """Open the folder."""
        return pt.Artifact.load(str(folder))


class SaveEncoder(EntryPoint):
    """A folder that opens again, in place of what was there only if asked to."""

    name = "encoder.save"
    milliseconds = 75
    valid = st.sampled_from(
        [
            {"there": "nothing", "overwrite": False},
            {"there": "nothing", "overwrite": True},
            {"there": "an encoder", "overwrite": True},
            {"there": "a folder above", "overwrite": False},
        ]
    )
    equivalent = (replace("as_type", [str]), replace("options", [{}]))
    malformed = (
        st.just(Mutation("an encoder is there", lambda given: {"there": "an encoder", "overwrite": False}, ("there",))),
        st.just(Mutation("a folder of others", lambda given: {"there": "a folder", "overwrite": True}, ("before",))),
        st.just(Mutation("a file is there", lambda given: {"there": "a file", "overwrite": True}, ("file",))),
        malformed_options({"overwrite": FLAG}),
        replace("path", [None, 3, "", b"model", True, ["model"], math.nan]),
    )

    def call(self, there: str, overwrite: Any, as_type: Any = Path, path: Any = ..., options: Any = None) -> Any:
        """Return the vectors of texts, by the encoder that was saved."""
        folder = self.tools.path()
        if there == "a folder":
            folder.mkdir()
            (folder / "before").write_text("before")
        elif there == "an encoder":
            self.tools.encoder.copy().save(folder)
            (folder / "before").write_text("before")
        elif there == "a file":
            folder.write_text("before")
        elif there == "a folder above":
            folder = folder / "model"
        target = as_type(folder)
        if path is not ...:
            target = path
        saved = self.tools.encoder.copy().save(target, overwrite=overwrite)
        if (Path(saved) / "before").exists():
            raise WrongAnswerError("files of before are there beside those of the encoder")
        return SelfDistillBiEncoder(saved, device="cpu").encode_queries(TEXTS)

    def expected(self, **_: Any) -> Any:
        """Return the vectors of the encoder that was saved."""
        return self.tools.vectors("query", TEXTS)
