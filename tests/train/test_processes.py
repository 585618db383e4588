"""Several processes that train one model: the same result as one, one that writes, all that end together."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import write_model
from tiny_scorers import write_chat_lm
from tiny_training import recipe_text, write_collection
from trained_together import Ended, Job, read_any, train_together

from rerank.cli import main
from rerank.errors import ConfigError
from rerank.runtime import Runtime
from rerank.train import grpo
from rerank.train.fitting import checkpoints, read_log
from rerank.train.processes import ALONE, Processes, launched, own_threads, together
from rerank.train.recipe import load_recipe, recipe_from
from rerank.train.sharding import layers_of
from rerank.train.training import train
from rerank.yamlfile import parse_yaml

needs_training = pytest.mark.needs("peft", "accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NO_DROPOUT = "{lora: {rank: 4, alpha: 8, dropout: 0.0, targets: all-linear}}"
MACHINE = {"tokens_per_second", "memory_mb"}
"""What a log says of the machine."""


class Tiny:
    """Recipes, and what two processes and what one made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended: list[list[Ended]] = []
        """How two processes ended that made most of it, and two that went on."""
        collection = write_collection(folder / "data")
        encoder, chat = write_model(folder / "encoder"), write_chat_lm(folder / "chat")
        form = "  dropout: 0.0\n  prompt: short-grades\n  max_tokens: 1536\n"
        writes = f"{form}  max_new_tokens: 6\n  completions: 4\n"
        lm: dict[str, Any] = {"engine": "causal_lm", "evaluation": False, "adapter": NO_DROPOUT}
        few = "learning_rate: 1.0e-3, groups: 3, steps: 3"
        # A loss that only differences of scores matter to leaves a head's bias to rounding.
        steps, loss = "learning_rate: 1.0e-3, groups: 5, steps: 5", "  loss: {bce: {threshold: 1}}\n"
        dropping = recipe_text(encoder, collection, optimiser=steps, more=loss)
        texts = {
            "contrastive": recipe_text(
                encoder, collection, adapter=NO_DROPOUT, more=f"  dropout: 0.0\n{loss}", optimiser=steps
            ),
            "sft": recipe_text(chat, collection, kind="sft", more=form, optimiser=few, **lm),
            "grpo": recipe_text(
                chat, collection, kind="grpo", optimiser=few, more=f"{writes}  resample: 3\n  iterations: 2\n", **lm
            ),
            # As few tokens at once that one process computes more often than the other.
            "sharded": recipe_text(
                chat, collection, kind="grpo", optimiser=f"{few}, batch_tokens: 64",
                more=f"{writes}  resample: 3\n  checkpointing: true\n", **lm,
            ),
            **dict.fromkeys(("dropping", "killed", "full", "fails"), dropping),
        }  # fmt: skip
        for name, text in texts.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")

    def job(self, name: str, happens: str = "") -> Job:
        return Job(self.folder / f"{name}.yaml", self.out(name), happens)

    def out(self, name: str) -> Path:
        return self.folder / "together" / name

    def alone(self, name: str) -> Path:
        with Runtime(self.folder / "home", threads=1, device="cpu", progress=False, cache=False) as runtime:
            train(load_recipe(self.folder / f"{name}.yaml").recipe, self.folder / "alone" / name, runtime)
        return self.folder / "alone" / name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Two processes made most of it, until they were killed; two went on, until one had an error."""
    made = Tiny(tmp_path_factory.mktemp("trained"))
    first = [made.job(name) for name in ("contrastive", "sft", "grpo", "dropping")]
    first += [made.job(name, name) for name in ("sharded", "full", "killed")]
    then = [made.job("full"), made.job("killed"), made.job("fails", "fails")]
    made.ended = train_together(made.folder / "home", [first, then])
    shutil.copytree(made.out("fails"), made.folder / "alone" / "fails")
    return made


def weights(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(out / "adapter" / "adapter_model.safetensors")


def log(out: Path) -> list[dict[str, Any]]:
    lines = read_log(out / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in MACHINE} for line in lines]


# -- the same result ------------------------------------------------------------


@needs_training
@pytest.mark.parametrize("name", ["contrastive", "sft", "grpo", "sharded"])
def test_two_processes_come_to_what_one_does(tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the rounding of sums that have another order."""
    import torch

    monkeypatch.setattr(grpo, "read_reply", read_any)
    one, two = tiny.alone(name), tiny.out(name)
    ours, theirs = weights(two), weights(one)
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        torch.testing.assert_close(ours[key], weight, atol=2e-5, rtol=1e-3)
        assert weight.any(), key
    for left, right in zip(log(one), log(two), strict=True):
        assert right == pytest.approx(left, rel=1e-3, abs=1e-4)
    if name in ("grpo", "sharded"):
        assert any(line["reward_std"] > 0 for line in log(one)) and any(line["resampled"] > 0 for line in log(one))
        written = [(out / "completions.jsonl").read_text(encoding="utf-8") for out in (one, two)]
        assert written[0] == written[1]
    facts = json.loads((two / "facts.json").read_text(encoding="utf-8"))
    assert (facts["processes"], facts["divided"]) == (2, name == "sharded")
    card = (two / "README.md").read_text(encoding="utf-8")
    assert "by 2 processes" in card and ("each with a part of the frozen layers" in card) == (name == "sharded")


@needs_training
def test_frozen_layers_are_divided(tiny: Tiny) -> None:
    """Seven matrices and two norms in each of two layers, and nothing else."""
    assert ["18 in parts" in said for _, said in tiny.ended[0]] == [True, True]


@needs_training
def test_killed_processes_go_on_to_the_same_bits(tiny: Tiny) -> None:
    """With what each drops out."""
    import torch

    assert [code for code, _ in tiny.ended[0]] == [-signal.SIGKILL] * 2
    whole = weights(tiny.out("dropping"))
    for name in ("killed", "full"):
        assert all(torch.equal(weight, whole[key]) for key, weight in weights(tiny.out(name)).items())
        assert log(tiny.out(name)) == log(tiny.out("dropping"))


@needs_training
def test_one_process_goes_on_from_what_two_began(tiny: Tiny) -> None:
    assert [path.name for path in checkpoints(tiny.folder / "alone" / "fails")][-1] == "step-0000002"
    out = tiny.alone("fails")
    assert [line["step"] for line in log(out)] == [line["step"] for line in log(tiny.out("dropping"))]


# -- errors ------------------------------------------------------------


@needs_training
def test_an_error_of_the_first_process_is_told_by_all(tiny: Tiny) -> None:
    first, second = (said for _, said in tiny.ended[0])
    assert "process 0, full: " in first and "step-0000004: the checkpoint cannot be written" in first
    assert "process 1, full: the first process: " in second and "last good checkpoint is" in second


@needs_training
def test_an_error_of_another_process_ends_all(tiny: Tiny) -> None:
    (first_code, first), (second_code, second) = tiny.ended[1]
    assert (first_code, second_code) == (2, 2)
    assert "process 1, fails: there is no room for it" in second
    assert "process 0, fails: another process of this training has ended" in first
    assert "Traceback" not in first + second
    assert [path.name for path in checkpoints(tiny.out("fails"))][-1] == "step-0000002"


# -- who does what ------------------------------------------------------------


@given(st.lists(st.integers(0, 1000)), st.integers(1, 5))
def test_every_place_is_somebodys_and_nobody_has_much_more(sizes: list[int], n: int) -> None:
    shares = [Processes(rank, n).share(sizes) for rank in range(n)]
    assert sorted(place for share in shares for place in share) == list(range(len(sizes)))
    loads = [sum(max(1, sizes[place]) for place in share) for share in shares]
    assert max(loads) - min(loads) <= max([1, *sizes])


def test_one_process_has_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with together("cpu") as processes:
        assert processes is ALONE
    assert ALONE.first(lambda: 1) == ALONE.lead(lambda: 1) == ALONE.in_turn(lambda: 1) == 1
    assert ALONE.merge({2: "a"}) == {2: "a"}


def test_processes_share_a_machines_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert launched() == (3, 8)
    assert (own_threads(16), own_threads(2)) == (4, 1)


@needs_training
def test_a_dry_run_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_text(write_model(tmp_path / "model"), write_collection(tmp_path / "data")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, shown in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", str(path), "--dry-run", "--threads", "1"]) == 0
        assert ("12 groups" in capsys.readouterr().out) == shown


# -- launchers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "device", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "cpu", "DeepSpeed .* is not used here: .*accelerate-fsdp.yaml"),
        ({"ACCELERATE_USE_FSDP": "true"}, "cpu", "fsdp_version: 1, where 2 is needed"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "cpu",
            "fsdp_activation_checkpointing: true, where false is needed; the recipe's 'checkpointing' does that",
        ),
        ({"WORLD_SIZE": "2"}, "cuda:1", "several processes train, each on a CUDA device .* leave --device out"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "9"}, "cuda", "process 9 of this machine has no device"),
    ],
)
@pytest.mark.needs("torch")
def test_a_launch_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], device: str, said: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said), together(device):
        pass


@needs_training
@pytest.mark.parametrize("name", ["accelerate.yaml", "accelerate-fsdp.yaml"])
def test_example_configurations_are_accelerates_and_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(EXAMPLES / name))
    assert (config.num_processes, config.distributed_type.value) == (4, "FSDP" if "fsdp" in name else "MULTI_GPU")
    settings = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8")).get("fsdp_config", {})
    assert set(settings) <= {action.dest for action in launch_command_parser()._actions}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(bool(settings)).lower())
    for key, value in settings.items():
        monkeypatch.setenv(key.upper(), str(value).lower())
    with together("cpu") as processes:
        assert processes is ALONE


@needs_training
@pytest.mark.parametrize("more", ["", "  adapter: null\n", "  quantise: nf4\n"])
def test_what_cannot_be_divided_is_refused(tmp_path: Path, own_home: Path, more: str) -> None:
    model = write_model(tmp_path / "model")
    text = recipe_text(model, write_collection(tmp_path / "data"), more=more)
    if "adapter" in more:
        text = text.replace("  adapter: {lora: {rank: 4, alpha: 8, dropout: 0.1}}\n", "")
    processes = Processes()
    processes.shards = object()  # type: ignore[assignment]
    recipe = recipe_from(parse_yaml(text)).recipe
    runtime = Runtime(own_home, threads=1, device="cpu", progress=False)
    with pytest.raises(ConfigError, match="FSDP, which divides the frozen layers of causal_lm models with"):
        recipe.student(runtime, processes)


@pytest.mark.needs("torch")
def test_a_model_that_does_not_name_its_layers_cannot_be_divided() -> None:
    import torch

    with pytest.raises(ConfigError, match="Sequential does not say which its layers are"):
        layers_of(torch.nn.Sequential(torch.nn.Linear(2, 2)))
