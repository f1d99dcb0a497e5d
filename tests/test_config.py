"""Settings: their types and ranges are checked where they come in, and the message names the setting."""

import pytest

from cohortseg.config import (
    PRESETS,
    CanonicalConfig,
    InferConfig,
    TrainConfig,
    config_from_mapping,
    preset_config,
    resolve_config,
)
from cohortseg.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("augment", "false"),
        ("bf16", "false"),
        ("semi_supervised", 0),
        ("supervised_iterations", 2.5),
        ("batch_labeled", True),
        ("learning_rate", "0.1"),
        ("learning_rate", float("inf")),
        ("momentum", -3.0),
        ("proportion_weight", float("nan")),
        ("seed", -1),
        ("seed", 2**43),
        ("warmup_iterations", 1000),
        ("class_offsets", [float("nan"), 0.0, 0.0]),
        ("predict_size", 192),
        ("model", {"codebook_size": 2**20}),
        ("seed", {"a": 1}),
        ("canonical", 5),
        ("optimizer", "adam"),
        ("class_offsets", [0.0, "a", 0.0]),
        ("class_offsets", [0.0, 0.0]),
        ("predict_size", 100),
        ("adversarial_iterations", 0),
        ("model", {"code_dim": 20}),
        ("model", {"decoder_channels": [100, 50, 20, 10]}),
        ("model", {"discriminator_channels": 0}),
        ("model", {"encoder_width": 60}),
        ("model", {"encoder_width": 4}),
        ("model", {"encoder_width": 32, "imagenet": True}),
        ("model", {"encoder": "efficientnet-lite0"}),
        ("canonical", {"size": "256"}),
        ("canonical", {"size": 80}),
        ("canonical", {"min_box": 0.0}),
        ("momentum", 1.0),
        ("imagenet_file", "resnet18.pth"),
        ("painted_foci", 1.1),
    ],
)
def test_a_value_of_another_type_or_range_is_refused_by_name(name, value):
    inner = next(iter(value)) if isinstance(value, dict) else name
    with pytest.raises(ConfigError, match="imagenet = true" if inner == "encoder" else inner):
        config_from_mapping(TrainConfig, {name: value})


def test_foci_are_painted_only_into_augmented_slices():
    with pytest.raises(ConfigError, match="painted_foci must be 0 without augment"):
        TrainConfig(augment=False, painted_foci=0.2)


def test_foci_are_painted_only_in_the_window_that_their_intensities_are_of():
    with pytest.raises(ConfigError, match="painted_foci must be 0 with another window_hu"):
        TrainConfig(canonical=CanonicalConfig(window_hu=(-1000.0, 400.0)), painted_foci=0.2)


def test_an_unknown_name_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match=r"unknown setting\(s\) lerning_rate; valid are .*learning_rate"):
        config_from_mapping(TrainConfig, {"lerning_rate": 1.0})
    with pytest.raises(ConfigError, match=r"unknown setting\(s\) sise"):
        config_from_mapping(TrainConfig, {"canonical": {"sise": 256}})


def test_values_that_mean_the_same_are_taken():
    """TOML has lists and whole numbers where a setting is a tuple or a float."""
    config = config_from_mapping(TrainConfig, {"class_offsets": [0, 1, 1], "learning_rate": 1, "bf16": None})
    assert (config.class_offsets, config.learning_rate, config.bf16) == ((0, 1, 1), 1.0, None)
    for select in ("all", ["all"], ("all",)):
        assert config_from_mapping(InferConfig, {"select": select}).select == ("all",)


def test_a_recipe_in_a_file_is_refused_rather_than_half_followed(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('preset = "cpu"\n')
    with pytest.raises(ConfigError, match="give it as --preset cpu"):
        resolve_config(TrainConfig, path, {})


@pytest.mark.parametrize("text", ["seed = = 1", "seed = " + "[" * 50_000])
def test_what_is_no_toml_is_told_with_its_file(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.toml: not a readable TOML file"):
        resolve_config(TrainConfig, tmp_path / "run.toml", {})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_changes_a_preset_and_the_command_line_both(tmp_path, encoding):
    path = tmp_path / "run.toml"
    path.write_text("learning_rate = 0.5\nseed = 1\n[canonical]\nmargin = 0.1\n", encoding=encoding)
    config = resolve_config(TrainConfig, path, {"seed": 2, "augment": None}, base=preset_config("cpu"))
    assert (config.learning_rate, config.seed, config.augment) == (0.5, 2, True)
    assert (config.canonical.margin, config.canonical.size) == (0.1, PRESETS["cpu"]["canonical"].size)
