"""Model cards from the metadata of an encoder: architecture, training, measures and citation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..losses import CITATION, TARGETS

# titles of the columns of the training history that are not measures
PROGRESS = {"step": "step", "loss": "loss", "margin": "mean margin", "target": "mean target"}
PYTERRIER = "[PyTerrier](https://pyterrier.readthedocs.io)"
HOW_OF_PAPER = ", trained by self-distillation with adaptive relevance margins"

USAGE = """```python
# pip install pyterrier-selfdistill
import pyterrier as pt
from pyterrier_selfdistill import SelfDistillIndex

encoder = {load}
index = SelfDistillIndex("corpus.flex")
(encoder >> index).index([{{"docno": "d1", "text": "a document"}}, {{"docno": "d2", "text": "another one"}}])
retriever = encoder >> index
reranker = first_stage >> pt.text.get_text(dataset) >> encoder
```"""


def saved_card(metadata: Mapping[str, Any], *, title: str, load: str) -> str:
    """Write the model card of a saved encoder, in the form of a sentence-transformers model on the Hugging Face hub."""
    base = metadata["training"].get("base_model", {})
    is_on_hub = base.get("is_on_hub") or re.fullmatch(r"[\w.-]+/[\w.-]+", base.get("name") or "")
    matter = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "pyterrier", "dense-retrieval", "pyterrier-selfdistill"],
        "base_model": base["name"] if is_on_hub else None,
    }
    return _card(matter, metadata, title=title, load=load)


def read_license(model: str) -> str | None:
    """Read the license from the card of a model, in its folder or in the cache of the hub."""
    try:
        card = cached_file(model, "README.md", local_files_only=True)
        text = Path(card or "").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = re.match(r"---\n(?:(?!---).*\n)*?license: *['\"]?([\w.-]+)", text)
    return found and found[1]


def artifact_card(metadata: Mapping[str, Any], *, repo: str, branch: str | None, pretty_name: str | None) -> str:
    """Write the card of an encoder as a PyTerrier artifact, which is a dataset on the Hugging Face hub."""
    kind = f"pyterrier-artifact.{metadata['type']}"
    matter = {
        "pretty_name": pretty_name,
        "tags": ["pyterrier", "pyterrier-artifact", kind, f"{kind}.{metadata['format']}"],
        "task_categories": ["text-retrieval"],
        "viewer": False,
    }
    title = pretty_name or repo.rpartition("/")[2]
    place = repo if branch in (None, "main") else f"{repo}@{branch}"
    return _card(matter, metadata, title=title, load=f"pt.Artifact.from_hf({place!r})")


def _card(front_matter: Mapping[str, Any], metadata: Mapping[str, Any], *, title: str, load: str) -> str:
    description, training = metadata["model"], metadata["training"]
    sections = [
        f"# {title}",
        f"A single-vector biencoder for dense retrieval with {PYTERRIER}{_how_trained(training)}.",
        _table(["", ""], description_rows(description)),
        "## Usage",
        USAGE.format(load=load),
    ]
    if training:
        sections += ["## Training", _table(["", ""], training_rows(training))]
        sections += _measure_sections(training)
    if _how_trained(training) == HOW_OF_PAPER:
        sections += ["## Citation", f"```bibtex{CITATION}```"]
    front_matter = {**front_matter, "license": training.get("base_model", {}).get("license", "unknown")}
    # JSON is valid YAML, with the necessary quotes
    matter = "".join(f"{name}: {json.dumps(value)}\n" for name, value in front_matter.items() if value is not None)
    return f"---\n{matter}---\n" + "\n\n".join(sections) + "\n"


def _how_trained(training: Mapping[str, Any]) -> str:
    if not training:
        return ""
    if training.get("best_step") == 0:
        return ": the base model as it was, since training did not improve it"
    loss = training.get("loss", {})
    name, target = loss.get("name"), loss.get("target")
    if name != "SelfDistillationLoss":
        return f", trained with {name}" if name else ""
    if target in TARGETS:
        return HOW_OF_PAPER
    how = {"softmax": "with InfoNCE", "listwise": "by listwise self-distillation"}
    return f", trained {how.get(target, f'with a margin of {target}')}"


def description_rows(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe an encoder in pairs of title and text, with names between backticks."""
    prompts = ", ".join(f"{name} `{prompt}`" for name, prompt in description["prompts"].items())
    lengths = [description[name] for name in ("query_length", "document_length")]
    rows = [
        ("Architecture", f"{description['architecture']}, {description['parameters']:,} parameters"),
        ("Vectors", f"{description['dimension']} dimensions, unit length; pooling: {description['pooling']}"),
        ("Queries and documents", " and ".join(f"cut at {n} tokens" if n else "not cut" for n in lengths)),
        ("Prompts", prompts or "none"),
        ("Checksum", f"`{description['checksum'][:12]}`"),
    ]
    if adapter := description.get("adapter"):
        refers = f"`{adapter['base']}` `{adapter['base_checksum'][:12]}`, which is not in the folder"
        rows.insert(0, ("Adapter of", refers))
    return rows


def training_rows(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the training in pairs of title and text, without rows for missing entries."""
    rows = []
    if base := training.get("base_model"):
        rows.append(("Base model", f"`{base.get('name')}` `{base.get('checksum', '')[:12]}`"))
    if adapter := training.get("adapter"):
        rows.append(("Adapter", f"trained in place of all weights, with PEFT: {_assignments(adapter)}"))
    if training.get("data"):
        rows += _data_rows(training["data"])
    if loss := training.get("loss", {}):
        options = {name: value for name, value in loss.items() if name != "name"}
        rows.append(("Loss", f"`{loss['name']}` {_assignments(options)}"))
    if shorter := ", ".join(map(str, loss.get("matryoshka_dims", [])[1:])):
        rows.append(("Shorter vectors", f"the first {shorter} dimensions were trained too: `encoder.truncate(...)`"))
    if "truncated_from" in training:
        rows.append(("Truncated", f"after training; measures are of all {training['truncated_from']} dimensions"))
    given = [f"preset `{training.get('preset')}`", _assignments(training.get("arguments", {}))]
    rows.append(("Arguments", ", ".join(filter(None, given))))
    if training.get("seed") is not None:
        rows.append(("Seed", str(training["seed"])))
    rows.append(("Steps", f"{training.get('steps')}, in {training.get('seconds')} seconds"))
    if best := training.get("best_measure"):
        mean = " (mean over collections)" if "collections" in (training.get("evaluation") or {}) else ""
        remark = ", before training: no later step was better" if training.get("best_step") == 0 else ""
        rows.append(("Best", f"{best['name']} {best['value']:.4f} at step {training.get('best_step')}{mean}{remark}"))
    versions = training.get("versions", {})
    rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def _data_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, part in data.get("collections", {}).items():
        rows += [(f"{title}, {name}", text) for title, text in _data_rows(part)]
    if rows:
        return rows
    triples = f"{data.get('triples', 0):,} triples of {data.get('queries', 0):,} queries"
    origin = f"from {data.get('source')}, negatives per triple: {data.get('negatives')}"
    rows = [("Data", f"{triples}, {origin}; fingerprint `{data.get('fingerprint')}`")]
    if data.get("dropped"):
        rows.append(("Left out", f"{data['dropped']:,} rows"))
    return rows


def _measure_sections(training: Mapping[str, Any]) -> list[str]:
    history = training.get("history")
    if not history:
        return []
    measures = [name for name in history[-1] if name not in PROGRESS]
    # some losses have no target
    progress = {name: title for name, title in PROGRESS.items() if name in history[-1]}
    titles = [*progress.values(), *measures, ""]
    rows = []
    for measured in history:
        values = [measured.get(column) for column in [*progress, *measures]]
        row = [f"{value:.4f}" if isinstance(value, float) else str("" if value is None else value) for value in values]
        rows.append([*row, "best" if measured["step"] == training.get("best_step") else ""])
    remark = "Measured on the validation queries, which chose the best step: they say less about other queries."
    if not measures:
        remark = "There were no validation queries."
    return ["## Measures while training", _table(titles, rows), remark]


def _assignments(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for cells in [titles, ["---"] * len(titles), *rows]:
        # a bar would end the cell
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
