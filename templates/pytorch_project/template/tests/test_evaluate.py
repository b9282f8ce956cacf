import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from records import metrics, the_run

import evaluate
from engine import checkpoint as ckpt
from engine.errors import run_script
from engine.predict import loss_and_accuracy, predict

CLASSES = tuple("abc")


@pytest.fixture
def run_evaluate():
    """Runs evaluate.py in this process with the given arguments; returns its exit code."""
    return lambda *arguments: run_script(lambda: evaluate.main(list(arguments)))


def results(split):
    return json.loads((the_run() / "evaluation" / split / "metrics.json").read_text())


def test_validation_accuracy_is_the_one_that_training_saw(run_train, run_evaluate):
    assert run_train("--set", "epochs=4") == 0
    assert run_evaluate("--split", "val") == 0
    best = torch.load(ckpt.BEST, weights_only=True)["best"]
    line = metrics("epoch")[best["epoch"] - 1]
    assert results("val")["accuracy"] == best["accuracy"] == line["val_accuracy"]
    assert results("val")["loss"] == line["val_loss"]


def test_test_images_are_read_by_evaluation_alone(run_train, run_evaluate, tiny_source):
    assert run_train("--set", "epochs=1") == 0
    assert run_evaluate("--split", "val") == 0
    assert set(tiny_source) == {"train"}
    assert run_evaluate() == 0
    assert tiny_source[-1] == "test"
    assert results("test")["samples"] == 40


def test_results_add_up(run_train, run_evaluate, capsys):
    assert run_train("--set", "epochs=2") == 0
    assert run_evaluate() == 0
    found = results("test")
    matrix = torch.tensor(found["confusion_matrix"])
    assert matrix.sum() == 40
    assert matrix.diagonal().sum() / 40 == pytest.approx(found["accuracy"])
    assert len(found["misclassified"]) == 40 - matrix.diagonal().sum()
    for row, entry in zip(matrix, found["per_class"].values(), strict=True):
        assert entry["samples"] == row.sum() == 4
    printed = capsys.readouterr().out
    assert f"Test accuracy: {found['accuracy']:.2%}" in printed
    assert str(the_run() / "evaluation" / "test") in printed
    for name in ("confusion_matrix", "per_class_accuracy", "misclassified"):
        picture = imread(the_run() / "evaluation" / "test" / f"{name}.png")[..., :3]
        assert (picture < 0.5).any(-1).mean() > 0.02, name  # not a white page


def test_evaluation_uses_the_checkpoints_configuration(run_train, run_evaluate, project):
    assert run_train("--set", "epochs=1") == 0
    (project / "config.yaml").write_text("dataset: cifar10\n")
    assert run_evaluate() == 0
    assert results("test")["dataset"] == "digits"


def test_other_checkpoint(run_train, run_evaluate):
    assert run_train("--set", "epochs=2") == 0
    assert run_evaluate("--checkpoint", "checkpoints/last.pt", "--split", "val") == 0
    assert results("val")["epoch"] == 2
    assert results("val")["accuracy"] == metrics("epoch")[-1]["val_accuracy"]


@pytest.mark.parametrize("content", [None, b"", b"half"])
def test_missing_or_damaged_checkpoint(project, run_evaluate, capsys, content):
    if content is not None:
        ckpt.BEST.parent.mkdir()
        ckpt.BEST.write_bytes(content)
    assert run_evaluate() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: checkpoints/best.pt ")
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_split_that_is_not_the_checkpoints(run_train, run_evaluate, capsys, monkeypatch):
    assert run_train("--set", "epochs=1") == 0
    checkpoint = torch.load(ckpt.BEST, weights_only=True)
    ckpt.save_checkpoint(checkpoint | {"split": {"train": "0", "val": "0"}}, ckpt.BEST)
    assert run_evaluate("--split", "val") == 2
    assert "another division into training and validation images" in capsys.readouterr().err


def test_metrics_of_known_answers():
    #                     right  right  wrong  wrong (class c never occurs)
    labels = torch.tensor([0, 0, 1, 1])
    logits = torch.tensor([[5.0, 0, 0], [1, 0, 0], [3, 0, 0], [0, 0, 2]])
    found = evaluate.compute_metrics(logits, labels, CLASSES)
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
    assert found["confusion_matrix"] == [[2, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert [entry["accuracy"] for entry in found["per_class"].values()] == [1.0, 0.0, None]
    mistakes = evaluate.find_misclassified(logits, labels)
    assert [(m["index"], m["true"], m["predicted"]) for m in mistakes] == [(2, 1, 0), (3, 1, 2)]
    assert mistakes[0]["confidence"] == pytest.approx(0.9094, abs=1e-4)


def test_loss_weighs_every_image_the_same():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    images, labels = torch.randn(10, 4), torch.randint(3, (10,))
    batches = [(images[:8], labels[:8]), (images[8:], labels[8:])]
    loss, accuracy = loss_and_accuracy(*predict(model, batches))
    whole = model(images)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(whole, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((whole.argmax(1) == labels).float().mean().item())
    assert not model.training


def test_a_perfect_model_has_a_picture_of_no_mistakes(tmp_path):
    from engine.plots import plot_images

    plot_images(torch.zeros(0, 32, 32, 3).numpy(), [], "No mistakes", tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 500
