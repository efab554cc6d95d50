"""The command line of an experiment: preset, then the model to start from, then file, then flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import mlflow
import pytest
import tyro

from hisem import cli
from hisem.errors import BundleError, ConfigError, StorageError, TrackingError
from hisem.tracking import resolve_model, sqlite_uri
from hisem.training.options import parse_experiment
from hisem.training.presets import PresetName, preset
from hisem.training.recipe import Experiment


@dataclass(frozen=True, kw_only=True)
class Options(cli.Common):
    """As an entry point has them."""

    preset: PresetName = "small"
    config: str | None = None
    name: str = "train"
    experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default_factory=Experiment)


def parsed(*arguments: str) -> Options:
    return parse_experiment(Options, "test", arguments)


@dataclass(frozen=True, kw_only=True)
class FineTuning(Options):
    """As an entry point that can start from a model has them."""

    init: str | None = None
    tracking: str | None = None


def tuned(*arguments: str) -> FineTuning:
    return parse_experiment(FineTuning, "test", arguments, resolve_model)


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory) -> str:
    """A model whose every size differs from the presets'."""
    folder = str(tmp_path_factory.mktemp("options") / "bundle")
    tiny(hasd={"threshold": 0.3}).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_without_arguments_the_default_preset_holds() -> None:
    options = parsed()
    assert options.preset == "small"
    assert options.experiment == preset("small")
    assert parsed("--preset", "hasd-only").experiment == preset("hasd-only")


def test_a_command_s_own_values_go_over_the_preset_and_below_file_and_flag(config) -> None:
    def metric_and_meteor(*arguments: str) -> tuple[str, bool]:
        own = {"training": {"meteor": True, "metric": "rouge_l"}}
        training = parse_experiment(Options, "test", arguments, over_preset=own).experiment.training
        assert training.epochs == preset("small").training.epochs
        return training.metric, training.meteor

    assert not preset("small").training.meteor
    assert metric_and_meteor() == ("rouge_l", True)
    file = config("training:\n  metric: cider_d\n")
    assert metric_and_meteor("--config", file) == ("cider_d", True)
    assert metric_and_meteor("--config", file, "--training.no-meteor") == ("cider_d", False)


def test_file_goes_over_preset_and_flag_over_file(config) -> None:
    file = config("training:\n  epochs: 7\n  batch_size: 12\nmodel:\n  hasd: {hidden: 100}\n")
    base = preset("demo").training
    assert base.epochs != 7
    assert base.batch_size != 12
    options = parsed("--config", file, "--training.epochs", "9", "--preset=demo", "--name", "x")
    training = options.experiment.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (9, 12, base.learning_rate)
    assert options.experiment.model.hasd.hidden == 100
    assert options.experiment.model.backbone == preset("demo").model.backbone
    assert (options.preset, options.config, options.name) == ("demo", file, "x")


def test_order_of_arguments_does_not_matter(config) -> None:
    file = config("training: {epochs: 7}")
    one = parsed("--training.epochs", "9", "--config", file, "--preset", "demo")
    two = parsed(f"--config={file}", "--preset=demo", "--training.epochs=9")
    assert one == two
    assert one.experiment.training.epochs == 9


def test_a_model_to_start_from_stands_in_for_the_presets_model(tiny, bundle: str) -> None:
    for name in ("small", "demo", "bdam-only"):  # demo sets backbone.options that the bundle must not inherit
        options = tuned("--init", bundle, "--preset", name)
        assert options.experiment.model == tiny(hasd={"threshold": 0.3}).config
        assert options.experiment.training == preset(name).training
        assert (options.init, options.preset) == (bundle, name)
    assert tuned("--preset", "demo").experiment == preset("demo")


def test_file_goes_over_the_model_to_start_from_and_flag_over_file(bundle: str, config) -> None:
    file = config("training: {epochs: 7}\nmodel: {decoder: {max_length: 9, dropout: 0.5}, hasd: {threshold: 0.4}}")
    model = tuned(f"--init={bundle}", "--config", file, "--model.decoder.dropout", "0.6").experiment.model
    assert (model.decoder.max_length, model.decoder.dropout, model.hasd.threshold) == (9, 0.6, 0.4)
    assert model.decoder.heads == 2
    assert tuned("--model.decoder.dropout=0.6", "--config", file, "--init", bundle).experiment.model == model


def test_a_registered_model_is_looked_up_in_the_store_that_the_flag_names(tiny, bundle: str, tmp_path: Path) -> None:
    store = sqlite_uri(str(tmp_path))
    client = mlflow.MlflowClient(tracking_uri=store, registry_uri=store)
    client.create_registered_model("hisem")
    client.create_model_version("hisem", Path(bundle).as_uri())
    client.set_registered_model_alias("hisem", "champion", "1")
    options = tuned("--init", "models:/hisem@champion", "--tracking", store)
    assert options.experiment.model == tiny(hasd={"threshold": 0.3}).config
    with pytest.raises(TrackingError, match="alias other not found"):
        tuned("--init", "models:/hisem@other", "--tracking", store)


def test_what_is_no_model_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="none: no such model bundle"):
        tuned("--init", f"{tmp_path}/none")
    with pytest.raises(BundleError, match=r"config\.json: not readable as JSON"):
        tuned("--init", str(tmp_path))
    with pytest.raises(SystemExit):
        parsed("--init", str(tmp_path))  # of an entry point that starts from no model


def test_numbers_as_yaml_writers_write_them(config) -> None:
    # YAML 1.1, which PyYAML reads, takes 1e-3 for a string and 1 for an int.
    training = parsed("--config", config("training: {learning_rate: 1e-3, weight_decay: 1}")).experiment.training
    assert training.learning_rate == 0.001
    assert isinstance(training.weight_decay, float)


def test_dashes_and_underscores_and_lists() -> None:
    model = parsed("--model.backbone.image-size", "64", "96", "--model.hasd.moe.top_k", "1").experiment.model
    assert model.backbone.image_size == (64, 96)
    assert model.hasd.moe.top_k == 1
    channels = ("--model.backbone.options.channels", "8", "8", "16", "16")
    assert parsed("--preset", "demo", *channels).experiment.model.backbone.options["channels"] == [8, 8, 16, 16]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("training: {learnin_rate: 1}", r"training\.learnin_rate \(did you mean training\.learning_rate\?\)"),
        ("epochs: 3", "unknown key.* epochs"),
        ("model: {bdam: {layer: 3}}", r"model\.bdam\.layer "),
        ("1: 2", "unknown key.* 1"),
        ("training: {epochs: 2.5}", r"training\.epochs.*2\.5"),
        ("training: {epochs: true}", r"training\.epochs"),
        ("training: {epochs: '12'}", r"training\.epochs"),
        ("training: {learning_rate: fast}", r"training\.learning_rate.*fast"),
        ("training: {optimizer: sgd}", r"training\.optimizer.*sgd"),
        ("training: 3", "training"),
        ("training:", "training"),
        ("model: {backbone: {image_size: 64}}", r"model\.backbone\.image_size.*64"),
        ("model: {backbone: {image_size: [64, 64, 64]}}", r"model\.backbone\.image_size"),
        ("model: {backbone: {image_size: '64'}}", r"model\.backbone\.image_size.*64"),
        ("model: {backbone: {options: {pretrained: 1}}}", "pretrained"),
        ("training: {epochs: [}", "YAML"),
        ("", "mapping"),
        ("- 3", "mapping"),
    ],
)
def test_mistakes_in_the_file_are_named(config, text: str, named: str) -> None:
    file = config(text)
    with pytest.raises(ConfigError, match=named) as caught:
        parsed("--config", file)
    assert caught.value.exit_code == cli.Exit.USAGE
    if "must" not in str(caught.value) and "options" not in str(caught.value):
        assert file in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--training.epoch", "3"), "--training.epoch"),
        (("--training.epochs", "three"), "--training.epochs"),
        (("--training.optimizer", "sgd"), "--training.optimizer"),
        (("--preset", "huge"), "--preset"),
        (("--preset",), "--preset"),
        (("--config",), "--config"),
        (("stray",), "stray"),
    ],
)
def test_mistakes_in_flags_end_with_2_and_are_named(
    arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == cli.Exit.USAGE
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model.hasd.moe.groups", "3"), r"model\.hasd\.moe\.groups=3: must divide experts=8"),
        (("--model.hasd.moe.top-k", "5"), r"model\.hasd\.moe\.top_k=5: only 4 .*lower top_k or raise groups_kept"),
        (("--model.hasd.moe.groups-kept", "5"), r"model\.hasd\.moe\.groups_kept=5: must be at most groups=4"),
        (("--training.clip-norm", "nan"), r"--training\.clip-norm is nan: a value from 0"),
    ],
)
def test_values_that_do_not_fit_together(arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parsed(*arguments)


def test_cross_field_mistake_between_file_and_flag(config) -> None:
    file = config("model: {hasd: {moe: {experts: 6, groups: 3, groups_kept: 1}}}")
    assert parsed("--config", file).experiment.model.hasd.moe.experts == 6
    with pytest.raises(ConfigError, match="groups=4: must divide experts=6"):
        parsed("--config", file, "--model.hasd.moe.groups", "4")


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.yaml"):
        parsed("--config", str(tmp_path / "none.yaml"))


def test_help_shows_the_values_in_force(config, capsys: pytest.CaptureFixture[str]) -> None:
    file = config("training: {epochs: 77}")
    with pytest.raises(SystemExit) as caught:
        parsed("--preset", "demo", "--config", file, "--help")
    assert caught.value.code == cli.Exit.DONE
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: resnet10t)" in shown
    assert "Passes over the training split, numbered from 0. (default: 77)" in shown
    assert "(default: demo)" in shown


def test_help_shows_the_values_of_the_model_to_start_from(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tuned("--init", bundle, "--help")
    assert caught.value.code == cli.Exit.DONE
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "in [0, 1]; 0.5 equals the paper's arg max. (default: 0.3)" in shown
    assert f"(default: {preset('small').training.epochs})" in shown
