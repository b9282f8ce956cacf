"""Train the model that conf/ describes: python train.py optimizer=sgd epochs=20."""

import logging
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

log = logging.getLogger(__name__)


def make_data(n, noise, seed):
    """Points around three centres, (n, 16), and the centre's number, (n,)."""
    centers = torch.randn(3, 16, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    return TensorDataset(centers[labels] + noise * torch.randn(n, 16, generator=generator), labels)


def train_epoch(model, loader, loss_fn, optimizer, clip_norm):
    model.train()
    total, seen = 0.0, 0
    for x, y in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        total += loss.item() * len(y)
        seen += len(y)
    return total / seen


@torch.no_grad()
def evaluate(model, loader, loss_fn):
    model.eval()
    total, correct, seen = 0.0, 0, 0
    for x, y in loader:
        logits = model(x)
        total += loss_fn(logits, y).item() * len(y)
        correct += (logits.argmax(1) == y).sum().item()
        seen += len(y)
    return total / seen, correct / seen


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    log.info("configuration\n%s", OmegaConf.to_yaml(cfg))
    torch.manual_seed(cfg.seed)
    train_set = make_data(cfg.data.train_samples, cfg.data.noise, seed=1)
    val_set = make_data(cfg.data.val_samples, cfg.data.noise, seed=2)
    train_loader = DataLoader(train_set, batch_size=cfg.batch_size, shuffle=True)
    val_loader = DataLoader(val_set, batch_size=cfg.batch_size)

    model = hydra.utils.instantiate(cfg.model)
    optimizer = hydra.utils.instantiate(cfg.optimizer)(model.parameters())
    scheduler = hydra.utils.instantiate(cfg.scheduler)(optimizer)
    loss_fn = nn.CrossEntropyLoss()
    out_dir = Path(HydraConfig.get().runtime.output_dir)

    best = 0.0
    for epoch in range(cfg.epochs):
        train_loss = train_epoch(model, train_loader, loss_fn, optimizer, cfg.clip_norm)
        val_loss, val_acc = evaluate(model, val_loader, loss_fn)
        scheduler.step()
        log.info("epoch %d: train %.4f, val %.4f, accuracy %.4f", epoch, train_loss, val_loss, val_acc)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "epoch": epoch,
        }
        torch.save(state, out_dir / "last.pt")
        if val_acc > best:
            best = val_acc
            torch.save(state, out_dir / "best.pt")
    log.info("best accuracy %.4f", best)


if __name__ == "__main__":
    main()
