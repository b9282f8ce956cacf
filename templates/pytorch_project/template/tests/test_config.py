from pathlib import Path

import pytest

from engine.config import Config, load_config
from engine.errors import UserError

PROJECT = Path(__file__).parents[1]


def test_the_projects_file_is_valid():
    config = load_config(PROJECT / "config.yaml", [])
    assert set(config._origin) <= set(Config.model_fields)


def test_values_and_defaults(load_text):
    config = load_text("epochs: 7\nlearning_rate: 1e-2\n", "augment=false", "dataset=digits")
    assert (config.epochs, config.learning_rate, config.augment, config.dataset) == (7, 0.01, False, "digits")
    assert (config.batch_size, config.optimizer) == (128, "adam")


def test_the_last_override_wins(load_text):
    assert load_text("epochs: 7\n", "epochs=8", "epochs=9").epochs == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.yaml is empty"),
        ("# nothing\n", "config.yaml is empty"),
        ("- epochs\n", "config.yaml:1: must consist of lines `key: value`"),
        ("epochs: 3\nseed: [1\n", "config.yaml:3: not valid YAML"),
        ("epochs: 3\nseed: !!python/name:os.system 1\n", "config.yaml:2: not valid YAML"),
        ("epochs: 3\nepoch: 3\n", "config.yaml:2: unknown key 'epoch'; did you mean 'epochs'?"),
        ("frobnicate: 3\n", "config.yaml:1: unknown key 'frobnicate'; known keys: model"),
        ("model: mlp\n", "config.yaml:1: model should be 'cnn', 'resnet' or 'vit' (it is 'mlp')"),
        ("epochs: 3\nepochs: 4\n", "config.yaml:2: epochs is set in line 1 already"),
        ("? [a]\n: 3\n", "config.yaml:1: a key must be a plain word"),
        ("yes: 3\n", "config.yaml:1: unknown key 'yes'"),
        ("epochs: many\n", "config.yaml:1: epochs should be a valid integer (it is 'many')"),
        ("epochs: 2.5\n", "config.yaml:1: epochs should be a valid integer (it is 2.5)"),
        ("epochs: true\n", "config.yaml:1: epochs should be a valid integer (it is True)"),
        ("epochs:\n", "config.yaml:1: epochs should be a valid integer (it is None)"),
        ("epochs: 0\n", "config.yaml:1: epochs should be greater than or equal to 1 (it is 0)"),
        ("learning_rate: true\n", "config.yaml:1: learning_rate must be a number (it is True)"),
        ("learning_rate: .nan\n", "config.yaml:1: learning_rate should be"),
        ("augment: 1\n", "config.yaml:1: augment should be a valid boolean (it is 1)"),
        ("optimizer: lion\n", "config.yaml:1: optimizer should be 'adam', 'adamw' or 'sgd' (it is 'lion')"),
        ("milestones: [3, 0]\n", "config.yaml:1: milestones should be greater than or equal to 1 (it is 0)"),
        ("variant: XL\n", "config.yaml:1: variant should be 'micro', 'mini', 'Ti', 'S', 'B', 'L' or 'H' (it is 'XL')"),
        ("val_fraction: 1\n", "config.yaml:1: val_fraction should be less than 1"),
    ],
)
def test_mistakes_in_the_file(load_text, text, message):
    with pytest.raises(UserError) as error:
        load_text(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "--set epochs: write it as key=value"),
        ("epoch=3", "--set epoch=3: unknown key 'epoch'; did you mean 'epochs'?"),
        ("epochs=soon", "--set epochs=soon: epochs should be a valid integer (it is 'soon')"),
        ("epochs=[1", "--set epochs=[1: the value is not valid YAML"),
        ("epochs=", "--set epochs=: epochs should be a valid integer (it is None)"),
    ],
)
def test_mistakes_on_the_command_line(load_text, override, message):
    with pytest.raises(UserError) as error:
        load_text("seed: 1\n", override)
    assert str(error.value).startswith(message)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml", [])
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path, [])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "binary.yaml", [])


def test_a_file_may_be_built_on_another(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 7\nseed: 1\n")
    (tmp_path / "more").mkdir()
    change = tmp_path / "more" / "change.yaml"
    change.write_text("base: ../config.yaml\nepochs: 8\n")
    config = load_config(change, ["seed=2"])
    assert (config.epochs, config.seed) == (8, 2)

    change.write_text("base: ../nowhere.yaml\n")
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config(change, [])
    change.write_text("base: change.yaml\n")
    with pytest.raises(UserError, match=r"change\.yaml:1: .* must not have a base of its own"):
        load_config(change, [])
    change.write_text("epochs: 3\nbase: [1]\n")
    with pytest.raises(UserError, match=r"change\.yaml:2: base must be the path of a file"):
        load_config(change, [])


def test_given_keys_must_be_read(load_text):
    config = load_text("seed: 1\nepochs: 3\n", "momentum=0.5")
    _ = config.seed, config.epochs, config.as_dict()
    with pytest.raises(UserError, match=r"--set momentum=0\.5: .* nothing reads it with optimizer=adam"):
        config.check_all_read()
    assert config.momentum == 0.5
    config.check_all_read()


def test_a_setting_without_effect_stops_training(run_train, capsys):
    assert run_train("--set", "momentum=0.5") == 2
    assert "momentum is set, but nothing reads it" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert run_train("--set", "momentum=0.5", "optimizer=sgd", "epochs=1") == 0


@pytest.mark.parametrize("setting", ["warmup_steps=5", "milestones=[2]", "color_jitter=0.1"])
def test_settings_that_others_leave_without_effect(run_train, capsys, setting):
    assert run_train("--set", setting, "rand_augment=5") == 2
    assert f"--set {setting}: {setting.partition('=')[0]} is set, but nothing reads it" in capsys.readouterr().err
