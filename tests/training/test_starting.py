"""Training with an adapter: only it is trained, resumed and chosen, and the encoder that it starts from stays."""

import pickle
import sys

import numpy as np
import peft
import pyterrier as pt
import pytest
import torch

from pyterrier_selfdistill import SelfDistillTrainer
from pyterrier_selfdistill.encoder.adapters import adapters_of
from pyterrier_selfdistill.training.trainer import make_start

LORA = {"adapter": peft.LoraConfig(r=2, lora_dropout=0.1), "learning_rate": 1e-2, "num_train_epochs": 2}


def test_the_weights_of_the_base_are_shared_and_frozen(encoder):
    start = make_start(encoder, peft.LoraConfig(r=2), seed=1)
    own = {weights.data_ptr() for weights in encoder.model.parameters()}
    for adapted in start:
        weights = dict(adapted.model.named_parameters())
        shared = [name for name, tensor in weights.items() if tensor.data_ptr() in own]
        assert len(shared) == len(own)
        assert not any(weights[name].requires_grad for name in shared)
    assert start.encoder.model_name == start.before.model_name != encoder.model_name
    assert all(weights.requires_grad for weights in encoder.model.parameters())
    # each has weights of its own to train
    trained = [tensor for tensor in start.encoder.model.parameters() if tensor.requires_grad]
    with torch.no_grad():
        trained[0].add_(1)
    assert start.encoder.model_name != start.before.model_name


def test_all_weights_are_copied_without_an_adapter(encoder):
    start = make_start(encoder, None, seed=1)
    assert start.before is encoder
    assert next(start.encoder.model.parameters()).data_ptr() != next(encoder.model.parameters()).data_ptr()


def test_an_adapter_is_trained_merged_and_written_alone(make, encoder, collection, tmp_path):
    before = encoder.model_name
    trainer = make(**LORA).fit(collection.results, collection.qrels, collection.results, collection.qrels)
    trained = trainer.encoder
    assert encoder.model_name == before
    assert not adapters_of(trained.model)
    assert trained.training_summary["best_step"] > 0
    assert trained.training_summary["adapter"] == {"type": "LORA", "r": 2, "lora_dropout": 0.1}
    adapted = pt.Artifact.load(tmp_path / "run/adapter", dtype="float32")
    assert adapted.merge_adapter().model_name == trained.model_name
    assert pt.Artifact.load(tmp_path / "run/model").model_name == trained.model_name
    for folder in ("model", "adapter"):
        assert "type=LORA, r=2, lora_dropout=0.1" in (tmp_path / "run" / folder / "README.md").read_text()
    # of the next run, which trains all weights, there is no adapter
    plain = make(overwrite=True).fit(collection.results, collection.qrels)
    assert "adapter" not in plain.encoder.training_summary
    assert not (tmp_path / "run/adapter").exists()


def test_a_resumed_run_gives_the_same_model(make, collection, interrupted, ended_before_saving):
    results, qrels = collection.results, collection.qrels
    options = LORA | {"eval_steps": 2}
    whole = make("whole", **options).fit(results, qrels, results, qrels)
    for folder, cut in {"interrupted": interrupted, "unsaved": ended_before_saving}.items():
        with cut():
            make(folder, **options).fit(results, qrels, results, qrels)
        with pytest.raises(ValueError, match="adapter was"):
            make(folder, resume=True, **options | {"adapter": peft.LoraConfig(r=4)}).fit(results, qrels, results, qrels)
        resumed = make(folder, resume=True, **options).fit(results, qrels, results, qrels)
        assert resumed.encoder.model_name == whole.encoder.model_name


def test_an_encoder_that_an_adapter_does_not_improve_stays_as_it_was(make, encoder, collection, satisfied, caplog):
    trainer = make(**LORA).fit(collection.results, collection.qrels, collection.results, satisfied)
    assert trainer.encoder.training_summary["best_step"] == 0
    assert trainer.encoder.model_name == encoder.model_name
    assert "training did not improve" in caplog.text


# transformers 5.23 calls it activation_checkpointing, which 5.0 does not know
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_activations_are_computed_again_and_batches_divided_for_the_same_model(make, encoder, collection):
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    vectors = []
    for number, memory in enumerate([{}, {"gradient_checkpointing": True}, {"mini_batch_size": 4}]):
        options = {"adapter": peft.LoraConfig(r=2), "bf16": False, "max_steps": 2, "learning_rate": 1e-2}
        trainer = make(f"run{number}", **options, **memory).fit(collection.results, collection.qrels)
        vectors.append(trainer.encoder.encode_docs(["sort the rows", "plot"]))
        # what recomputing needs of the inputs is not left behind
        trainer.encoder.model.train()
        assert not pickle.loads(pickle.dumps(trainer.encoder)).model[0].model.embeddings._forward_hooks
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5)
    np.testing.assert_allclose(vectors[2], vectors[0], atol=1e-5)


def test_what_cannot_be_trained_is_refused(make, encoder, language_model, tmp_path, monkeypatch):
    for given in ("lora", {"r": 8}):
        with pytest.raises(
            ValueError, match=r"adapter must be a configuration of PEFT, such as peft.LoraConfig\(r=16\)"
        ):
            make(adapter=given)
    adapted = make_start(encoder, peft.LoraConfig(r=2), seed=1).encoder
    for adapter in (None, peft.LoraConfig(r=2)):
        with pytest.raises(ValueError, match=r"training needs plain weights.*merge_adapter"):
            SelfDistillTrainer(adapted, tmp_path / "again", adapter=adapter)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"pip install 'pyterrier-selfdistill\[adapters\]"):
            make(adapter="lora")
    changed = encoder.copy()
    with torch.no_grad():
        next(changed.model.parameters()).add_(0.1)
    trainer = SelfDistillTrainer(changed, tmp_path / "changed", adapter=peft.LoraConfig(r=2), verbose=False)
    with pytest.raises(ValueError, match="the weights of this encoder are not those in"):
        trainer.fit_triples([("sort", "sort the rows", "read a file")])
    assert not (tmp_path / "changed").exists()
