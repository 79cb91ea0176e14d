"""Configuration: files, overrides, nearest names, ranges."""

import json
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError
from gossamer.training.config import FREE, Config, OptimConfig, TrainConfig, json_schema, load_config, with_overrides


def test_a_file_and_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {name: mlp, options: {hidden: [30]}}\ntrain:\n  steps: 50\n  optim: {lr: 0.2}\n")
    config = load_config(
        path, ["train.optim.lr=0.05", "train.clip=1", "recipe.options.sparsity=0.9", "data.name=mnist"]
    )
    assert config.train.steps == 50
    assert config.train.optim == OptimConfig(lr=0.05)
    assert config.train.clip == 1.0
    assert config.model.options == {"hidden": [30]}
    assert config.recipe.options == {"sparsity": 0.9}
    assert config.data.name == "mnist"
    assert load_config() == Config()
    assert load_config(overrides=["steps=7"], kind=TrainConfig).steps == 7
    assert with_overrides(config, ["train.optim.betas=[0.5, 0.9]"]).train.optim.betas == (0.5, 0.9)


def test_a_configuration_survives_yaml():
    config = Config(train=TrainConfig(clip=0.5, optim=OptimConfig(name="adamw", milestones=(0.3,))))
    again = load_values(yaml.safe_dump(config.model_dump(mode="json")))
    assert again == config


def load_values(text: str) -> Config:
    return Config(**yaml.safe_load(text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.optm.lr=1", r"unknown setting 'train.optm'; did you mean 'train.optim'"),
        ("trian.steps=1", r"unknown setting 'trian'; did you mean 'train'"),
        ("train.optim.learning=1", r"unknown setting 'train.optim.learning'.*train.optim.lr"),
        ("train.optim.name=adamm", r"unknown value of train.optim.name 'adamm'; did you mean 'adam"),
        ("train.steps=0", r"train.steps = 0: .*greater than or equal to 1"),
        ("train.steps=many", r"train.steps = 'many': .*integer"),
        ("train.optim.lr=.nan", r"train.optim.lr = nan: .*finite"),
        ("train.optim.lr=-1", r"train.optim.lr = -1: .*greater than 0"),
        ("train.clip=0", r"train.clip = 0: "),
        ("task=classify", r"unknown value of task 'classify'; did you mean 'classification'"),
        ("data.name.x=1", r"data.name"),
        ("train.steps", r"an override has the form a.b=value, not 'train.steps'"),
        ("train..steps=3", r"an override has the form"),
        ("train.steps=[1", r"cannot read the value of train.steps: '\[1'"),
        ("train.steps=!!python/object/apply:os.getcwd []", r"cannot read the value of train.steps"),
    ],
)
def test_bad_overrides_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


def test_a_value_is_no_section(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: 5\n")
    with pytest.raises(ConfigError, match=r"cannot set train.steps: train is a value, not a section"):
        load_config(path, ["train.steps=3"])


@pytest.mark.parametrize("text", ["[1, 2]", "3", "1: 2", "a: [", "x: !!python/object/apply:os.getcwd []", "\x00"])
def test_bad_files_are_named(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "absent.yaml")


@given(st.text(max_size=30))
def test_any_override_is_accepted_or_named(text):
    with suppress(ConfigError):
        assert load_config(overrides=[text]) is not None


def test_the_schema_and_the_free_settings_are_true():
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$defs"]["TrainConfig"]["properties"]["steps"]["default"] == TrainConfig().steps
    for key in FREE:
        section, name = key.split(".")
        assert name in Config.model_fields[section].annotation.model_fields


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().steps = 3
