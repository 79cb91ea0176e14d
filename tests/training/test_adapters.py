"""Callbacks in the loops of transformers and of Lightning, where those are installed."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training_toys import recipe_of, toy_data

from gossamer import recipes
from gossamer.errors import ConfigError, MissingExtra
from gossamer.training.adapters import hf_callback, lightning_callback

STEPS = 24


def absent(package: str) -> bool:
    return importlib.util.find_spec(package) is None


class Net(nn.Module):
    """What both loops accept: keyword inputs, a dictionary with the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x, labels):
        logits = self.fc2(self.fc1(x).relu())
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def samples() -> list[dict]:
    inputs, labels = toy_data().train.source.tensors
    return [{"x": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]


def nonzero(model: nn.Module) -> float:
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize(("make", "package"), [(hf_callback, "transformers"), (lightning_callback, "lightning")])
def test_a_missing_package_is_named(make, package):
    if absent(package):
        with pytest.raises(MissingExtra, match=f"needs the package '{package}'.*gossamer"):
            make(recipe_of("rigl"))
    else:
        with pytest.raises(ConfigError, match="'sr-ste-2:4' trains through a parametrisation"):
            make(recipe_of("sr_ste"))


@pytest.mark.skipif(absent("transformers"), reason="needs transformers")
@pytest.mark.filterwarnings("default")
class TestTrainer:
    def train(self, folder, recipe, resume=None, clip=1.0, **changes):
        from transformers import Trainer, TrainingArguments

        options = {
            "max_steps": STEPS,
            "per_device_train_batch_size": 16,
            "learning_rate": 0.01,
            "max_grad_norm": 0.0,
            "use_cpu": True,
            "report_to": [],
            "save_steps": 8,
            "logging_steps": 8,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        model = Net()
        callback = hf_callback(recipe, clip=clip)
        arguments = TrainingArguments(output_dir=str(folder), **(options | changes))
        Trainer(model, arguments, train_dataset=samples(), callbacks=[callback]).train(resume_from_checkpoint=resume)
        return model, callback.sparsifier

    @pytest.mark.parametrize("recipe", ["rigl", "granet"])
    def test_training_and_resuming(self, tmp_path, recipe):
        whole, sparsifier = self.train(tmp_path, recipe_of(recipe))
        assert sparsifier.step == STEPS
        assert nonzero(whole) == sparsifier.density() == pytest.approx(0.3, abs=0.01)
        assert (tmp_path / "checkpoint-16" / "sparsifier.json").exists()
        resumed, _ = self.train(tmp_path, recipe_of(recipe), resume=str(tmp_path / "checkpoint-16"))
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_clipping_before_masking_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"max_grad_norm=1.0: the Trainer would clip"):
            self.train(tmp_path, recipe_of("rigl"), max_grad_norm=1.0)

    def test_clipping_sees_masked_gradients(self, tmp_path, monkeypatch):
        shares, real = [], nn.utils.clip_grad_norm_

        def look(parameters, *arguments, **options):
            parameters = list(parameters)
            if not options:  # the callback's call; the Trainer's own only measures the norm
                shares.append(nonzero_gradients(parameters))
            return real(parameters, *arguments, **options)

        monkeypatch.setattr(nn.utils, "clip_grad_norm_", look)
        self.train(tmp_path, recipes.random(sparsity=0.9))
        assert len(shares) == STEPS
        assert max(shares) <= 0.11


def nonzero_gradients(parameters: list) -> float:
    gradients = [p.grad for p in parameters if p.ndim > 1]
    return sum(int(g.count_nonzero()) for g in gradients) / sum(g.numel() for g in gradients)


@pytest.mark.skipif(absent("lightning"), reason="needs lightning")
@pytest.mark.filterwarnings("default")
class TestLightning:
    def train(self, folder, recipe, steps=STEPS, resume=None, **changes):
        from lightning import pytorch as lightning

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = Net()

            def training_step(self, batch, index):
                return self.net(**batch)["loss"]

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

        module, callback = Module(), lightning_callback(recipe)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        keep = lightning.callbacks.ModelCheckpoint(folder, every_n_train_steps=6, save_top_k=-1, filename="{step}")
        trainer = lightning.Trainer(
            max_steps=steps, callbacks=[callback, keep], gradient_clip_val=1.0, **(quiet | changes)
        )
        trainer.fit(module, DataLoader(samples(), 16), ckpt_path=resume)
        return module, callback.sparsifier

    @pytest.mark.parametrize("recipe", ["rigl", "granet"])
    def test_training_and_resuming(self, tmp_path, recipe):
        whole, sparsifier = self.train(tmp_path, recipe_of(recipe))
        assert sparsifier.step == STEPS
        assert nonzero(whole) == sparsifier.density() == pytest.approx(0.3, abs=0.01)
        resumed, _ = self.train(tmp_path, recipe_of(recipe), resume=str(tmp_path / "step=12.ckpt"))
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_an_endless_training_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="a known number of steps"):
            self.train(tmp_path, recipe_of("rigl"), steps=-1, max_epochs=-1)
