"""Train a new head on a frozen, pretrained backbone."""

from pathlib import Path

import torch
import torch.nn as nn
from data import make_task
from model import Net
from pretrain import pretrain
from torch.utils.data import DataLoader

PRETRAINED = Path("pretrained.pt")
NUM_CLASSES = 5
EPOCHS = 12


def build_model():
    """The pretrained backbone, frozen, under a head with random weights."""
    model = Net(NUM_CLASSES)
    state = torch.load(PRETRAINED, weights_only=True)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) == {"head.weight", "head.bias"}
    assert not unexpected
    for parameter in model.backbone.parameters():
        parameter.requires_grad = False
    return model


def train_epoch(model, loader, criterion, optimizer):
    model.train()
    model.backbone.eval()  # the statistics of the frozen batch norms stay as they are
    total, seen = 0.0, 0
    for images, labels in loader:
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        seen += len(labels)
    return total / seen


@torch.no_grad()
def evaluate(model, loader, criterion):
    model.eval()
    total, correct, seen = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        total += criterion(logits, labels).item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        seen += len(labels)
    return total / seen, correct / seen


def main():
    torch.manual_seed(0)
    if not PRETRAINED.exists():
        pretrain(PRETRAINED)

    train_loader = DataLoader(make_task(NUM_CLASSES, 250, seed=2), batch_size=32, shuffle=True)
    val_loader = DataLoader(make_task(NUM_CLASSES, 120, seed=3), batch_size=32)
    model = build_model()
    criterion = nn.CrossEntropyLoss()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.3)
    best_acc = 0.0
    for epoch in range(EPOCHS):
        train_loss = train_epoch(model, train_loader, criterion, optimizer)
        val_loss, val_acc = evaluate(model, val_loader, criterion)
        scheduler.step()
        print(f"epoch {epoch}: train {train_loss:.4f}, val {val_loss:.4f}, accuracy {val_acc:.4f}")
        if val_acc > best_acc:
            best_acc = val_acc
            torch.save(model.state_dict(), "finetuned.pt")
    print(f"best accuracy {best_acc:.4f}")


if __name__ == "__main__":
    main()
