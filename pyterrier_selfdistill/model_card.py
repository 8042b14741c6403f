"""Model cards: what an encoder is, how it was trained, what it reached, and what to cite.

:func:`describe` is the facts, as they stand in the metadata of a saved encoder; :func:`model_card` is the page for
people, with the front matter that the Hugging Face hub reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .losses import CITATION

if TYPE_CHECKING:
    from .biencoder import SelfDistillBiEncoder

PROGRESS = {"step": "step", "loss": "loss", "margin": "mean margin", "target": "mean target"}
"""The columns of the training table that are no measures, and their titles."""


def describe(encoder: SelfDistillBiEncoder) -> dict[str, Any]:
    """Returns what an encoder is, for people and programs.

    Example:
        >>> describe(encoder)["dimension"]
        32
    """
    pooling = [module.pooling_mode for module in encoder.model if hasattr(module, "pooling_mode")]
    return {
        "checksum": encoder.model_name,
        "architecture": type(getattr(encoder.model[0], "model", encoder.model[0])).__name__,
        "parameters": sum(parameter.numel() for parameter in encoder.model.parameters()),
        "dimension": encoder.dimension,
        "pooling": pooling[0] if pooling else None,
        "query_length": encoder.query_length,
        "document_length": encoder.document_length,
        "prompts": {name: prompt for name, prompt in encoder.model.prompts.items() if prompt},
    }


def model_card(
    description: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    title: str,
    load: str,
    front_matter: Mapping[str, Any],
) -> str:
    """Writes the page about an encoder.

    Args:
        description: What :func:`describe` returns.
        training: The training summary of an encoder.
        title: The title of the page.
        load: The expression that loads the encoder.
        front_matter: What stands before the page in YAML.

    Returns:
        Markdown.

    Example:
        >>> page = model_card(describe(encoder), {}, title="Tiny", load='pt.Artifact.load("tiny")', front_matter={})
        >>> page.splitlines()[2]
        '# Tiny'
    """
    prompts = ", ".join(f"{name} `{prompt}`" for name, prompt in description["prompts"].items())
    facts = {
        "Architecture": f"{description['architecture']}, {description['parameters']:,} parameters",
        "Vectors": f"{description['dimension']} dimensions, unit length; pooling: {description['pooling']}",
        "Queries and documents": f"cut at {description['query_length']} and {description['document_length']} tokens",
        "Prompts": prompts or "none",
        "Checksum": f"`{description['checksum'][:12]}`",
    }
    sections = [
        f"# {title}",
        "A single-vector biencoder for dense retrieval with "
        "[PyTerrier](https://pyterrier.readthedocs.io), trained by self-distillation with adaptive relevance margins."
        if training
        else "A single-vector biencoder for dense retrieval with [PyTerrier](https://pyterrier.readthedocs.io).",
        _table(["", ""], list(facts.items())),
        "## Usage",
        f"""```python
# pip install pyterrier-selfdistill
import pyterrier as pt
from pyterrier_selfdistill import SelfDistillIndex

encoder = {load}
index = SelfDistillIndex("corpus.flex")
(encoder >> index).index([{{"docno": "d1", "text": "a document"}}, {{"docno": "d2", "text": "another one"}}])
retriever = encoder >> index
reranker = first_stage >> pt.text.get_text(dataset) >> encoder
```""",
    ]
    if training:
        sections += ["## Training", _table(["", ""], _training_rows(training))]
        rows = training.get("history", [])
        measures = [name for name in (rows[-1] if rows else {}) if name not in PROGRESS]
        if rows:
            columns = {**PROGRESS, **{name: name for name in measures}}
            best = training.get("best_step")
            sections += [
                "## Measures while training",
                _table(
                    [*columns.values(), ""],
                    [[*(_figure(row.get(c)) for c in columns), "best" * (row["step"] == best)] for row in rows],
                ),
                "Measured on the validation queries, which chose the best step: they say less about other queries."
                if measures
                else "There were no validation queries.",
            ]
    sections += ["## Citation", f"```bibtex{CITATION}```"]
    return f"---\n{_yaml(front_matter)}---\n" + "\n\n".join(sections) + "\n"


def front_matter(training: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the Hugging Face hub reads of a model that sentence-transformers loads."""
    base = training.get("base_model", {}).get("name")
    named = {"base_model": base} if base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else {}
    return {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "pyterrier", "dense-retrieval", "pyterrier-selfdistill"],
        **named,
    }


def artifact_front_matter(metadata: Mapping[str, Any], pretty_name: str | None) -> dict[str, Any]:
    """Returns what the Hugging Face hub reads of a PyTerrier artifact, which it keeps among data sets."""
    kind = f"pyterrier-artifact.{metadata['type']}"
    named = {} if pretty_name is None else {"pretty_name": pretty_name}
    return {
        **named,
        "tags": ["pyterrier", "pyterrier-artifact", kind, f"{kind}.{metadata['format']}"],
        "task_categories": ["text-retrieval"],
        "viewer": False,
    }


def _training_rows(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, loss = training.get("data", {}), dict(training.get("loss", {}))
    base, best = training.get("base_model", {}), training.get("best_measure")
    dropped = "; ".join(f"{count:,} x {reason}" for reason, count in data.get("dropped", {}).items())
    rows = {
        "Base model": f"`{base.get('name')}` `{base.get('checksum', '')[:12]}`" if base else None,
        "Data": f"{data.get('triples', 0):,} triples of {data.get('queries', 0):,} queries, from {data.get('source')}, "
        f"{data.get('negatives')} negatives each; fingerprint `{data.get('fingerprint')}`"
        if data
        else None,
        "Left out": dropped or None,
        "Loss": f"`{loss.pop('name')}` " + ", ".join(f"{k}={v}" for k, v in loss.items()) if loss else None,
        "Arguments": f"preset `{training.get('preset')}`, "
        + ", ".join(f"{k}={v}" for k, v in training.get("arguments", {}).items()),
        "Seed": training.get("seed"),
        "Steps": f"{training.get('steps')}, in {training.get('seconds')} seconds",
        "Best": f"{best['name']} {best['value']:.4f} at step {training.get('best_step')}" if best else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in training.get("versions", {}).items()),
    }
    return [(title, str(value)) for title, value in rows.items() if value is not None]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _yaml(values: Mapping[str, Any]) -> str:
    # JSON is YAML, and quotes what needs it
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
