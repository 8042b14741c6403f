"""What trackers of experiments, such as TensorBoard and W&B, are told of a run.

transformers has a callback for each of them. Every one is given what the training loop logs, which
:mod:`.history` names, and takes the settings of the run from the dictionary of its training arguments:
:class:`TrackedArguments` says there what makes the run, and leaves out what is nobody's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import flatten_dict

from ..options import checked
from ..portable import portable_settings

PREFIX = "selfdistill"
"""What names of settings begin with in a tracker, to tell them from the arguments of transformers."""

REPORTED_ANYWAY = ("arguments", "seed")
"""Settings of a run that are training arguments."""


class TrackedArguments(SentenceTransformerTrainingArguments):
    """Training arguments of a run, which trackers read as a dictionary.

    Attributes:
        settings: What makes the run, as :func:`.settings.run_settings` returns it; none until it is known.

    Example:
        >>> arguments = TrackedArguments("run", use_cpu=True, hub_token="hf_x", learning_rate=1e-5)
        >>> arguments.settings = {"loss": {"target": "adaptive"}, "data": {"source": "/home/me/triples.tsv"}}
        >>> told = arguments.to_dict()
        >>> told["learning_rate"], told["selfdistill/loss/target"], told["selfdistill/data/source"]
        (1e-05, 'adaptive', 'triples.tsv')
        >>> "hub_token" in told
        False
    """

    settings: Mapping[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        """Describe the run, without secrets and absolute paths.

        Returns:
            The training arguments, and the settings of the run by names such as ``selfdistill/loss/target``.
        """
        told = portable_settings(super().to_dict())
        own = {name: value for name, value in self.settings.items() if name not in REPORTED_ANYWAY}
        portable = portable_settings(own)
        if "base_model" in portable:
            # trackers add it from the model, where it may be a path, unless it stands here
            told["_name_or_path"] = portable["base_model"]["name"]
        return told | flatten_dict(portable, parent_key=PREFIX, delimiter="/")


@checked
def require_trackers(report_to: str | list[str]) -> None:
    """Check that what a run is to be reported to is there, before an earlier run is touched.

    Args:
        report_to: The names of trackers, ``"all"`` that are installed, or ``"none"``.

    Raises:
        ValueError: If transformers does not know one.
        ImportError: If the package of one is not installed.

    Example:
        >>> require_trackers("wandb.ai")
        Traceback (most recent call last):
        ValueError: report_to='wandb.ai': wandb.ai is not supported, only azure_ml, comet_ml, ...
    """
    names = report_to
    if isinstance(names, str):
        names = [names]
    if names in (["all"], ["none"]):
        return
    for name in names:
        try:
            (callback,) = get_reporting_integration_callbacks([name])
            # as the training loop does later
            callback()
        except ValueError as error:
            raise ValueError(f"report_to={report_to!r}: {error}") from error
        except (ImportError, RuntimeError) as error:
            raise ImportError(
                f"report_to={report_to!r} needs {name}, which is not installed or not set up: pip install {name}, or "
                f"leave it out ({error})"
            ) from error
